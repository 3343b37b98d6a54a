"""The device program of combine: combine.py says what is computed."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.moe.experts_here import make_load_experts
from ferrum_numba.kernels.moe.pairs import COLUMNS
from ferrum_numba.ptx.convert import PACK, UNPACK
from ferrum_numba.ptx.memory import ld_global_f32, ld_global_v4, ld_global_v4_if, st_global_v4
from ferrum_numba.ptx.sync import griddepcontrol_launch_dependents, griddepcontrol_wait


def make_sums(config):
    """Return what loads a token's rows, and what adds 8 columns of one."""
    top_k, unpack = config.top_k, UNPACK[HALVES[config.dtype]]

    @cuda.jit(device=True, forceinline=True)
    def load_rows(words, address, stride, experts, num_experts):
        """Set words [top_k, 4]; zeros for a pair of no expert."""
        for i in range(top_k):
            is_here = uint32(experts[i] < num_experts)
            four = ld_global_v4_if(address + uint64(i) * stride, is_here)
            words[i, 0], words[i, 1], words[i, 2], words[i, 3] = four

    @cuda.jit(device=True, forceinline=True)
    def add(sums, i, word, weight):
        both = unpack(word)
        sums[i] = sums[i] + weight * both[0]
        sums[i + 1] = sums[i + 1] + weight * both[1]

    return load_rows, add


def build(config):
    """Return the kernel of a config: a function of `Combine`'s parameters, in order."""
    num_threads, top_k, programmatic = config.num_threads, config.top_k, config.programmatic
    pack = PACK[HALVES[config.dtype]]
    load_experts = make_load_experts(top_k, 1)
    load_rows, add = make_sums(config)

    def combine(
        rows, ids, topk_weights, shared, expert_map, out,
        tokens, columns, num_experts, num_ids, has_weights, has_shared, has_map,
    ):  # fmt: skip
        token = uint32(cuda.blockIdx.x)
        thread = uint32(uint32(cuda.blockIdx.y) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        column = uint32(thread * uint32(COLUMNS))
        experts = cuda.local.array(top_k, uint32)
        weights = cuda.local.array(top_k, float32)
        first = uint32(token * uint32(top_k))
        routing = (ids, expert_map, num_experts, num_ids, has_map)
        load_experts(experts, routing, first, uint32(tokens * uint32(top_k)))
        for i in range(top_k):
            weights[i] = float32(1)
        if has_weights > uint32(0):
            for i in range(top_k):
                weights[i] = ld_global_f32(topk_weights + uint64(uint32(first + i)) * uint64(4))
        if programmatic:
            griddepcontrol_wait()
            griddepcontrol_launch_dependents()
        if column < columns:
            stride, at = uint64(columns) * uint64(2), uint64(column) * uint64(2)
            words = cuda.local.array((top_k, 4), uint32)
            load_rows(words, rows + uint64(first) * stride + at, stride, experts, num_experts)
            sums = cuda.local.array(8, float32)
            for j in range(8):
                sums[j] = float32(0)
            if has_shared > uint32(0):
                own = ld_global_v4(shared + uint64(token) * stride + at)
                for j in range(4):
                    add(sums, 2 * j, own[j], float32(1))
            for i in range(top_k):
                # a weight of what is not here may be anything
                weight = weights[i] if experts[i] < num_experts else float32(0)
                for j in range(4):
                    add(sums, 2 * j, words[i, j], weight)
            total = (pack(sums[0], sums[1]), pack(sums[2], sums[3]),
                     pack(sums[4], sums[5]), pack(sums[6], sums[7]))  # fmt: skip
            st_global_v4(out + uint64(token) * stride + at, total)

    return combine
