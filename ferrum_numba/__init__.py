"""Write, prove, tune and ship int4 GEMM kernels in Python."""

__version__ = "0.1.0"
