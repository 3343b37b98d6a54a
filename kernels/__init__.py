"""The kernels, one design a file."""

from ferrum_numba.kernels.gptq import W4A16Gptq
from ferrum_numba.kernels.marlin import Marlin

# on a checkpoint's own tensors, and on the packed layout of kernels/packed.py
RAW = (W4A16Gptq(),)
PACKED = (Marlin(),)
KERNELS = RAW + PACKED
