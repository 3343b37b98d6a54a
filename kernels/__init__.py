"""The kernels, one design a file."""

from ferrum_numba.kernels.gptq import W4A16Gptq

KERNELS = (W4A16Gptq(),)
