"""The kernels that measure what a GPU can do at most: the ceilings of the roofline."""

from ferrum_numba.kernels.ceilings.bulk import ReadBulk
from ferrum_numba.kernels.ceilings.dequantize import DequantizeAnd, DequantizeF16, DequantizeScaled
from ferrum_numba.kernels.ceilings.elements import ELEMENTS
from ferrum_numba.kernels.ceilings.fed import MmaFed, WgmmaFed
from ferrum_numba.kernels.ceilings.memory import Copy, Nothing, Read, ReadL2, Write
from ferrum_numba.kernels.ceilings.on_chip import Fma, Lop3, SharedBandwidth
from ferrum_numba.kernels.ceilings.tensor import MmaSync, Wgmma
from ferrum_numba.kernels.ceilings.waiting import GridBarrier, KernelRamp

CEILINGS = (
    Read(), ReadBulk(), Copy(), Write(), ReadL2(), SharedBandwidth(),
    *(make(element) for make in (MmaSync, Wgmma, MmaFed, WgmmaFed) for element in ELEMENTS),
    Fma(), Lop3(), DequantizeAnd(), DequantizeF16(), DequantizeScaled(),
    Nothing(), KernelRamp(), GridBarrier(),
)  # fmt: skip
