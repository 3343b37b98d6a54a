"""The device program of add_bias_pairs: add_bias_pairs.py says what is computed."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.moe.experts_here import make_load_experts
from ferrum_numba.kernels.moe.pairs import COLUMNS
from ferrum_numba.ptx.convert import PACK, UNPACK
from ferrum_numba.ptx.memory import ld_global_nc_v4, ld_global_v4, st_global_v4
from ferrum_numba.ptx.sync import griddepcontrol_launch_dependents, griddepcontrol_wait


def build(config):
    """Return the kernel of a config: a function of `AddBiasPairs`'s parameters, in order."""
    num_threads, programmatic = config.num_threads, config.programmatic
    half = HALVES[config.dtype]
    unpack, pack = UNPACK[half], PACK[half]
    load_experts = make_load_experts(1, 1)

    @cuda.jit(device=True, forceinline=True)
    def add(a, b):
        left, right = unpack(a), unpack(b)
        return pack(left[0] + right[0], left[1] + right[1])

    def add_bias_pairs(
        x, bias, ids, expert_map, out, num_pairs, columns, num_experts, num_ids, has_map
    ):
        pair = uint32(cuda.blockIdx.x)
        thread = uint32(uint32(cuda.blockIdx.y) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        column = uint32(thread * uint32(COLUMNS))
        if programmatic:
            griddepcontrol_wait()
            griddepcontrol_launch_dependents()
        experts = cuda.local.array(1, uint32)
        load_experts(experts, (ids, expert_map, num_experts, num_ids, has_map), pair, num_pairs)
        if experts[0] < num_experts and column < columns:
            slab = uint64(experts[0]) * uint64(columns) + uint64(column)
            b = ld_global_nc_v4(bias + slab * uint64(2))
            at = (uint64(pair) * uint64(columns) + uint64(column)) * uint64(2)
            # not by the read-only path: x may be out
            a = ld_global_v4(x + at)
            words = (add(a[0], b[0]), add(a[1], b[1]), add(a[2], b[2]), add(a[3], b[3]))
            st_global_v4(out + at, words)

    return add_bias_pairs
