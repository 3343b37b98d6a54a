"""The kernels, one design a file."""

from ferrum_numba.kernels.decode import Decode
from ferrum_numba.kernels.gptq import W4A16Gptq
from ferrum_numba.kernels.marlin import Marlin

KERNELS = (W4A16Gptq(), Marlin(), Decode())
