"""The warpgroups of kernels/prefill.py that multiply: a stage's weights times its rows of x."""

from numba import cuda
from numba.cuda.types import float32, uint32

from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.prefill_schedule import ROW_BYTES
from ferrum_numba.ptx.asynchronous import mbarrier_arrive
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.dequantize import dequantize as make_dequantize
from ferrum_numba.ptx.memory import ld_shared_u32, ld_shared_v2, ld_shared_v4
from ferrum_numba.ptx.sync import bar_arrive, bar_sync
from ferrum_numba.ptx.wgmma import (
    descriptor_step,
    smem_descriptor,
    wgmma_commit,
    wgmma_fence,
    wgmma_rs,
    wgmma_wait,
    wgmma_wait_acc,
)

# named barriers: 1 and 2 are the warpgroups' own, the next two say whose turn it is to multiply
TURN_BARRIER = 3


@cuda.jit(device=True, inline="always")
def release(bar):
    """Give a stage back to the producers, once a warp."""
    if uint32(uint32(cuda.threadIdx.x) & 31) == uint32(0):
        mbarrier_arrive(bar + 8)


def make_turns(config):
    """Return (take_turn, pass_turn), which do nothing where the warpgroups go as they come."""
    in_turn = config.in_turn

    @cuda.jit(device=True, inline="always")
    def take_turn():
        """Wait until the other warpgroup has issued its group."""
        if in_turn:
            bar_sync(uint32(TURN_BARRIER + (uint32(cuda.threadIdx.x) >> 7)), uint32(256))

    @cuda.jit(device=True, inline="always")
    def pass_turn():
        if in_turn:
            other = uint32(1 - (uint32(cuda.threadIdx.x) >> 7))
            bar_arrive(uint32(TURN_BARRIER + other), uint32(256))

    return take_turn, pass_turn


def make_accumulators(config):
    """Return (start, finish): sums of zero, and a wait for all products."""
    strips = config.strips
    zeros, wait_acc = splat_f32(config.tile_m // 2), wgmma_wait_acc(config.tile_m)

    @cuda.jit(device=True, inline="always")
    def start():
        nothing = zeros(float32(0))
        if strips == 1:
            return (nothing,)
        if strips == 2:
            return nothing, nothing
        return nothing, nothing, nothing, nothing

    @cuda.jit(device=True, inline="always")
    def finish(acc):
        """Wait for all products."""
        if strips == 1:
            return (wait_acc(acc[0], 0),)
        if strips == 2:
            return wait_acc(acc[0], 0), wait_acc(acc[1], 0)
        return (
            wait_acc(acc[0], 0), wait_acc(acc[1], 0), wait_acc(acc[2], 0), wait_acc(acc[3], 0),
        )  # fmt: skip

    return start, finish


def make_fragments(config):
    """Return (load_words, load_group, fragment): from a stage to operand A."""
    strips, per_channel, has_zeros = config.strips, config.group_size < 0, config.has_zeros
    scale_row_bytes, zero_row_bytes = config.tile_n * 2, config.tile_n // 2
    # pinned: a product may still read what registers a fragment is written to, until the wait that
    # comes before it
    convert = make_dequantize(
        HALVES[config.dtype], zeros=has_zeros, scaled=not per_channel, pinned=True
    )

    @cuda.jit(device=True, inline="always")
    def load_words(address):
        """Return the words of a warp's strips of 16 columns, which lie side by side."""
        if strips == 1:
            return (ld_shared_u32(address),)
        if strips == 2:
            return ld_shared_v2(address)
        return ld_shared_v4(address)

    @cuda.jit(device=True, inline="always")
    def load_group(stage, s_place, z_place, group):
        """Return the scales of a lane's columns, and their zero points in one word."""
        zero = uint32(0)
        if has_zeros:
            zero = ld_shared_u32(stage + z_place + group * zero_row_bytes)
        return load_words(stage + s_place + group * scale_row_bytes), zero

    @cuda.jit(device=True, inline="always")
    def fragment(word, scale, zero, strip):
        """Return a strip as operand A: rows are columns of the weight."""
        pair = uint32((zero >> (4 * strip)) & 0x000F000F)
        if has_zeros and per_channel:
            d = convert(word, pair)
        elif has_zeros:
            d = convert(word, pair, scale)
        elif per_channel:
            d = convert(word)
        else:
            d = convert(word, scale)
        return d[0], d[2], d[1], d[3]

    return load_words, load_group, fragment


def make_multiply_stage(config):
    """Return what multiplies a stage, in the groups that the config asks for."""
    return _grouped(config) if config.group_steps else _one_by_one(config)


def _one_by_one(config):
    strips, scale_rows, per_channel = config.strips, config.scale_rows, config.group_size < 0
    w_row_bytes = config.tile_n * 8
    # groups of products that run while the next is dequantised, each with registers of its own for
    # A; the step of a stage after which those of the stage before are none of them
    in_flight = config.in_flight
    last_overlap = -(-in_flight // strips) - 1
    describe_x = smem_descriptor(128, 8 * ROW_BYTES)
    step_x = descriptor_step(32)  # 16 of k
    mma = wgmma_rs(config.tile_m, HALVES[config.dtype])
    load_words, load_group, fragment = make_fragments(config)

    @cuda.jit(device=True, inline="always")
    def multiply_strip(acc, word, scale, zero, strip, x_desc):
        """Begin the products of a strip; of those begun before, at most `in_flight` still run."""
        wgmma_wait(in_flight)
        a = fragment(word, scale, zero, strip)
        wgmma_fence()
        acc = mma(acc, a, x_desc, uint32(1))
        wgmma_commit()
        return acc

    @cuda.jit(device=True, inline="always")
    def multiply(acc, words, scale, zero, strip, x_desc):
        """Begin the products of 16 of k with every strip."""
        acc0 = multiply_strip(acc[0], words[0], scale[0], zero, strip, x_desc)
        if strips == 1:
            return (acc0,)
        acc1 = multiply_strip(acc[1], words[1], scale[1], zero, uint32(strip + 1), x_desc)
        if strips == 2:
            return acc0, acc1
        acc2 = multiply_strip(acc[2], words[2], scale[2], zero, uint32(strip + 2), x_desc)
        acc3 = multiply_strip(acc[3], words[3], scale[3], zero, uint32(strip + 3), x_desc)
        return acc0, acc1, acc2, acc3

    @cuda.jit(device=True, inline="always")
    def pass_back(step, k_tile, k_first, before):
        """Release the stage before this one, after the step that leaves none of its products."""
        if step == last_overlap:
            wgmma_wait(in_flight)
            if k_tile > k_first:
                release(before)

    @cuda.jit(device=True, inline="always")
    def multiply_stage(acc, at, places, zero, k_tile, k_first, before):
        """Multiply a stage, one group of products a strip and step of 16 of k."""
        w_place, s_place, z_place, strip = places
        words = load_words(at + w_place)
        scale = words
        if not per_channel:
            scale, zero = load_group(at, s_place, z_place, uint32(0))
        x_desc = describe_x(at)
        next_words = load_words(at + w_place + w_row_bytes)
        acc = multiply(acc, words, scale, zero, strip, x_desc)
        pass_back(0, k_tile, k_first, before)
        words = load_words(at + w_place + 2 * w_row_bytes)
        x_desc = step_x(x_desc)
        acc = multiply(acc, next_words, scale, zero, strip, x_desc)
        pass_back(1, k_tile, k_first, before)
        if scale_rows == 2:
            scale, zero = load_group(at, s_place, z_place, uint32(1))
        next_words = load_words(at + w_place + 3 * w_row_bytes)
        x_desc = step_x(x_desc)
        acc = multiply(acc, words, scale, zero, strip, x_desc)
        pass_back(2, k_tile, k_first, before)
        acc = multiply(acc, next_words, scale, zero, strip, step_x(x_desc))
        return acc, zero

    return multiply_stage


def _grouped(config):
    strips, scale_rows, per_channel = config.strips, config.scale_rows, config.group_size < 0
    w_row_bytes, group_steps = config.tile_n * 8, config.group_steps
    describe_x = smem_descriptor(128, 8 * ROW_BYTES)
    step_x = descriptor_step(32)  # 16 of k
    mma = wgmma_rs(config.tile_m, HALVES[config.dtype])
    load_words, load_group, fragment = make_fragments(config)
    take_turn, pass_turn = make_turns(config)

    @cuda.jit(device=True, inline="always")
    def fragments(words, scale, zero, strip):
        """Return every strip as operand A."""
        a0 = fragment(words[0], scale[0], zero, strip)
        if strips == 1:
            return (a0,)
        a1 = fragment(words[1], scale[1], zero, uint32(strip + 1))
        if strips == 2:
            return a0, a1
        a2 = fragment(words[2], scale[2], zero, uint32(strip + 2))
        return a0, a1, a2, fragment(words[3], scale[3], zero, uint32(strip + 3))

    @cuda.jit(device=True, inline="always")
    def multiply_fragments(acc, a, x_desc):
        acc0 = mma(acc[0], a[0], x_desc, uint32(1))
        if strips == 1:
            return (acc0,)
        acc1 = mma(acc[1], a[1], x_desc, uint32(1))
        if strips == 2:
            return acc0, acc1
        acc2 = mma(acc[2], a[2], x_desc, uint32(1))
        return acc0, acc1, acc2, mma(acc[3], a[3], x_desc, uint32(1))

    @cuda.jit(device=True, inline="always")
    def multiply_pair(acc, words, next_words, scale, zero, strip, x_desc):
        """Begin the products of two steps of 16 of k, as one group or two; the last still runs."""
        a = fragments(words, scale, zero, strip)
        if group_steps == 1:
            take_turn()
            wgmma_fence()
            acc = multiply_fragments(acc, a, x_desc)
            wgmma_commit()
            pass_turn()
            wgmma_wait(1)
            a = fragments(next_words, scale, zero, strip)
            take_turn()
            wgmma_fence()
            acc = multiply_fragments(acc, a, step_x(x_desc))
        else:
            next_a = fragments(next_words, scale, zero, strip)
            take_turn()
            wgmma_fence()
            acc = multiply_fragments(acc, a, x_desc)
            acc = multiply_fragments(acc, next_a, step_x(x_desc))
        wgmma_commit()
        pass_turn()
        wgmma_wait(1)
        return acc

    @cuda.jit(device=True, inline="always")
    def multiply_stage(acc, at, places, zero, k_tile, k_first, before):
        """Multiply a stage, `group_steps` steps of 16 of k a group, all dequantised before it."""
        w_place, s_place, z_place, strip = places
        words0 = load_words(at + w_place)
        words1 = load_words(at + w_place + w_row_bytes)
        scale = words0
        if not per_channel:
            scale, zero = load_group(at, s_place, z_place, uint32(0))
        words2 = load_words(at + w_place + 2 * w_row_bytes)
        words3 = load_words(at + w_place + 3 * w_row_bytes)
        x_desc = describe_x(at)
        acc = multiply_pair(acc, words0, words1, scale, zero, strip, x_desc)
        if k_tile > k_first:
            release(before)
        if scale_rows == 2:
            scale, zero = load_group(at, s_place, z_place, uint32(1))
        x_desc = step_x(step_x(x_desc))
        return multiply_pair(acc, words2, words3, scale, zero, strip, x_desc), zero

    return multiply_stage
