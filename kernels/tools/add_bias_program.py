"""The device program of add_bias: add_bias.py says what is computed."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.tools.add_bias import COLUMNS
from ferrum_numba.ptx.convert import PACK, UNPACK
from ferrum_numba.ptx.memory import ld_global_nc_v4, ld_global_v4, st_global_v4


def build(config):
    """Return the kernel of a config: a function of `AddBias`'s parameters, in order."""
    num_threads, rows = config.num_threads, config.rows
    half = HALVES[config.dtype]
    unpack, pack = UNPACK[half], PACK[half]

    @cuda.jit(device=True, forceinline=True)
    def add(a, b):
        left, right = unpack(a), unpack(b)
        return pack(left[0] + right[0], left[1] + right[1])

    def add_bias(x, bias, out, m, n):
        thread = uint32(uint32(cuda.blockIdx.y) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        column = uint32(thread * COLUMNS)
        row = uint32(uint32(cuda.blockIdx.x) * uint32(rows))
        if column < n:
            b = ld_global_nc_v4(bias + uint64(column) * uint64(2))
            for _ in range(rows):
                if row < m:
                    offset = (uint64(row) * uint64(n) + uint64(column)) * uint64(2)
                    # not by the read-only path: x may be out
                    a = ld_global_v4(x + offset)
                    words = (add(a[0], b[0]), add(a[1], b[1]), add(a[2], b[2]), add(a[3], b[3]))
                    st_global_v4(out + offset, words)
                row = uint32(row + 1)

    return add_bias
