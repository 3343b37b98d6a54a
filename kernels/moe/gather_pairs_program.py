"""The device program of gather_pairs: gather_pairs.py says what is computed."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.moe.experts_here import make_load_experts
from ferrum_numba.kernels.moe.pairs import COLUMNS
from ferrum_numba.ptx.memory import ld_global_nc_v4, ld_global_u16, st_global_v4
from ferrum_numba.ptx.sync import griddepcontrol_launch_dependents, griddepcontrol_wait


def build(config):
    """Return the kernel of a config: a function of `GatherPairs`'s parameters, in order."""
    num_threads, programmatic = config.num_threads, config.programmatic
    load_experts = make_load_experts(1, 1)

    @cuda.jit(device=True, forceinline=True)
    def two(line, first, second):
        low = uint32(ld_global_u16(line + uint64(first) * uint64(2)))
        high = uint32(ld_global_u16(line + uint64(second) * uint64(2)))
        return uint32(low | uint32(high << 16))

    def gather_pairs(
        x, perm, ids, expert_map, out,
        num_pairs, columns, x_divisor, num_experts, num_ids, has_map,
    ):  # fmt: skip
        pair = uint32(cuda.blockIdx.x)
        thread = uint32(uint32(cuda.blockIdx.y) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        column = uint32(thread * uint32(COLUMNS))
        if programmatic:
            griddepcontrol_wait()
            griddepcontrol_launch_dependents()
        experts = cuda.local.array(1, uint32)
        load_experts(experts, (ids, expert_map, num_experts, num_ids, has_map), pair, num_pairs)
        if experts[0] < num_experts and column < columns:
            order = uint64(experts[0]) * uint64(columns) + uint64(column)
            place = perm + order * uint64(4)
            low, high = ld_global_nc_v4(place), ld_global_nc_v4(place + uint64(16))
            row = uint32(pair // x_divisor)
            line = x + uint64(row) * uint64(columns) * uint64(2)
            words = (two(line, low[0], low[1]), two(line, low[2], low[3]),
                     two(line, high[0], high[1]), two(line, high[2], high[3]))  # fmt: skip
            target = uint64(pair) * uint64(columns) + uint64(column)
            st_global_v4(out + target * uint64(2), words)

    return gather_pairs
