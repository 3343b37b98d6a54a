"""The device programs of dequantize.py, which says what they measure."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.ceilings.dequantize import INCREMENT, SCALES, XOR3
from ferrum_numba.kernels.shared.int4 import dequantize as make_dequantize
from ferrum_numba.ptx.arithmetic import lop3
from ferrum_numba.ptx.memory import ld_global_nc_u32, st_global_u32

dequantize_f16 = make_dequantize("f16")
dequantize_scaled_f16 = make_dequantize("f16", scaled=True)


@cuda.jit(device=True, forceinline=True)
def unpack_and(word):
    """Return four pairs of codes."""
    mask = uint32(0x000F000F)
    return (
        uint32(word & mask),
        uint32(uint32(word >> 4) & mask),
        uint32(uint32(word >> 8) & mask),
        uint32(uint32(word >> 12) & mask),
    )


@cuda.jit(device=True, forceinline=True)
def unpack_f16(word):
    """Return four pairs of code - 8."""
    return dequantize_f16(word)


@cuda.jit(device=True, forceinline=True)
def unpack_scaled(word):
    """Return four pairs of (code - 8) * scale."""
    return dequantize_scaled_f16(word, uint32(SCALES))


# by the kernel's name
UNPACK = {"dequant_and": unpack_and, "dequant_f16": unpack_f16, "dequant_scaled": unpack_scaled}


def build(config, name):
    unroll, num_threads, unpack = config.unroll, config.num_threads, UNPACK[name]

    def dequantize(data, out, chains, steps):
        chain = uint32(uint32(cuda.blockIdx.x) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        if chain < chains:
            word = ld_global_nc_u32(data + uint64(chain) * uint64(4))
            total = uint32(0)
            left = steps
            while left > 0:
                for _ in range(unroll):
                    pairs = unpack(word)
                    total = lop3(total, pairs[0], pairs[1], XOR3)
                    total = lop3(total, pairs[2], pairs[3], XOR3)
                    word = uint32(word + INCREMENT)
                left = uint32(left - uint32(unroll))
            st_global_u32(out + uint64(chain) * uint64(4), total)

    return dequantize
