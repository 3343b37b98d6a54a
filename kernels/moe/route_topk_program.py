"""The device program of route_topk: route_topk.py says what is computed."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.ptx.approximate import ex2_approx, rcp_approx
from ferrum_numba.ptx.convert import bf16_to_f32, bits_f32, f16_to_f32, f32_bits
from ferrum_numba.ptx.memory import (
    ld_global_f32,
    ld_global_u16,
    st_global_f32,
    st_global_u32,
)
from ferrum_numba.ptx.shuffle import redux_max, redux_min, shfl_idx, shfl_xor_f32
from ferrum_numba.ptx.sync import griddepcontrol_launch_dependents, griddepcontrol_wait

LOG2_E = 1.4426950408889634
NOBODY = 0xFFFFFFFF


def make_load_key(dtype):
    """Return what loads a logit as its key."""
    widen = {"fp16": f16_to_f32, "bf16": bf16_to_f32}.get(dtype)
    is_wide = widen is None
    element_bytes = 4 if is_wide else 2

    @cuda.jit(device=True, forceinline=True)
    def load_key(logits, element):
        """Return a word that is larger for a larger logit; NaN is -inf, both zeros are equal."""
        address = logits + element * uint64(element_bytes)
        if is_wide:
            bits = f32_bits(ld_global_f32(address))
        else:
            bits = f32_bits(widen(ld_global_u16(address)))
        size = uint32(bits & uint32(0x7FFFFFFF))
        if size > uint32(0x7F800000):
            bits = uint32(0xFF800000)
        if size == uint32(0):
            bits = uint32(0)
        flipped = uint32(0xFFFFFFFF) if bits > uint32(0x7FFFFFFF) else uint32(0x80000000)
        return uint32(bits ^ flipped)

    return load_key


@cuda.jit(device=True, forceinline=True)
def logit_of(key):
    """Return the logit of a key."""
    flipped = uint32(0x80000000) if key > uint32(0x7FFFFFFF) else uint32(0xFFFFFFFF)
    return bits_f32(uint32(key ^ flipped))


@cuda.jit(device=True, forceinline=True)
def exp_below(key, peak):
    """Return exp(logit - largest), 1 where they are equal, be they infinite."""
    below = float32(0) if key == peak else logit_of(key) - logit_of(peak)
    return ex2_approx(float32(below * float32(LOG2_E)))


@cuda.jit(device=True, forceinline=True)
def sigmoid(key):
    """Return 1 / (1 + exp(-logit))."""
    return rcp_approx(float32(1) + ex2_approx(float32(logit_of(key) * float32(-LOG2_E))))


@cuda.jit(device=True, forceinline=True)
def warp_sum(value):
    """Return, to every lane, the sum over the warp, in a fixed order."""
    for mask in (16, 8, 4, 2, 1):
        value = value + shfl_xor_f32(value, mask)
    return value


def build(config):
    """Return the kernel of a config: a function of `RouteTopk`'s parameters, in order."""
    num_warps, per_lane, programmatic = (
        config.num_warps, config.logits_per_lane, config.programmatic,
    )  # fmt: skip
    load_key = make_load_key(config.dtype)

    def route_topk(logits, out, tokens, num_experts, top_k, is_sigmoid, renormalise):
        lane = uint32(uint32(cuda.threadIdx.x) & uint32(31))
        warp = uint32(uint32(cuda.threadIdx.x) >> uint32(5))
        token = uint32(uint32(cuda.blockIdx.x) * uint32(num_warps) + warp)
        if programmatic:
            griddepcontrol_wait()
            griddepcontrol_launch_dependents()
        if token < tokens:
            keys = cuda.local.array(per_lane, uint32)
            first = uint64(token) * uint64(num_experts)
            for i in range(per_lane):
                expert = uint32(lane + uint32(32 * i))
                # no branch, so that all loads are on their way before the first is needed; 0 is
                # below the key of every logit
                held = min(expert, uint32(num_experts - uint32(1)))
                key = load_key(logits, first + uint64(held))
                keys[i] = key if expert == held else uint32(0)

            # place after place: the largest key left, of equal ones the smallest id
            chosen, chosen_id = uint32(0), uint32(NOBODY)
            taken = uint32(NOBODY)
            place = uint32(0)
            while place < top_k:
                best, best_id = uint32(0), uint32(NOBODY)
                for i in range(per_lane):
                    expert = uint32(lane + uint32(32 * i))
                    if expert == taken:
                        keys[i] = uint32(0)
                    if keys[i] > best:
                        best, best_id = keys[i], expert
                largest = redux_max(best)
                taken = redux_min(best_id if best == largest else uint32(NOBODY))
                if lane == place:
                    chosen, chosen_id = largest, taken
                place = uint32(place + uint32(1))

            has_place = lane < top_k
            peak = shfl_idx(chosen, uint32(0))
            score = float32(0)
            if has_place:
                score = sigmoid(chosen) if is_sigmoid > uint32(0) else exp_below(chosen, peak)
            total = score
            if renormalise == uint32(0) and is_sigmoid == uint32(0):
                # those that are not chosen count too
                for i in range(per_lane):
                    expert = uint32(lane + uint32(32 * i))
                    if keys[i] > uint32(0) and expert != taken:
                        total = total + exp_below(keys[i], peak)
            total = warp_sum(total)
            scale = rcp_approx(total) if total > float32(0) else float32(0)
            if renormalise == uint32(0) and is_sigmoid > uint32(0):
                scale = float32(1)
            if has_place:
                place_bytes = (uint64(token) * uint64(top_k) + uint64(lane)) * uint64(4)
                weights = out + uint64(tokens) * uint64(top_k) * uint64(4)
                st_global_u32(out + place_bytes, chosen_id)
                st_global_f32(weights + place_bytes, score * scale)

    return route_topk
