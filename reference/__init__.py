"""What the kernels compute and how their operands are laid out, in NumPy and nothing else."""

from ferrum_numba.reference.w4a16 import w4a16_gemm

__all__ = ["w4a16_gemm"]
