"""What the kernels compute and how their operands are laid out, in NumPy and its types alone."""

from ferrum_numba.reference.w4a8 import w4a8_gemm
from ferrum_numba.reference.w4a16 import w4a16_gemm

__all__ = ["w4a8_gemm", "w4a16_gemm"]
