"""The kernels that measure what a GPU can do at most: the ceilings of the roofline."""

from ferrum_numba.kernels.ceilings.dequantize import DequantizeAnd, DequantizeF16, DequantizeScaled
from ferrum_numba.kernels.ceilings.memory import Copy, Nothing, Read, ReadL2, Write
from ferrum_numba.kernels.ceilings.tensor import MmaSync, Wgmma

CEILINGS = (
    Read(), Copy(), Write(), ReadL2(), MmaSync(), Wgmma(), DequantizeAnd(), DequantizeF16(),
    DequantizeScaled(), Nothing(),
)  # fmt: skip
