"""The types that tensor cores multiply: their numbers, whose sums are exact, and what sums them.

A step of k is 32 bytes of a row, whatever the type: 16 elements of 16 bits or 32 of 8.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ferrum_numba.contract import Tolerance

STEP_BYTES = 32


@dataclass(frozen=True)
class Element:
    """A type of A and B.

    name, ptx: "fp8", "e4m3"
    dtype, sums: of the operands and of the result
    alternate: whether A changes its sign every few steps, so that sums stay small: Hopper sums fp8
               in fewer bits than fp32 has
    """

    name: str
    ptx: str
    dtype: object
    sums: object = np.float32
    alternate: bool = False

    def __reduce__(self):
        # there is one of each, in every process
        return element_of, (self.name,)

    @property
    def size_bytes(self):
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    @property
    def per_step(self):
        """Elements of a row in a step of k."""
        return STEP_BYTES // self.size_bytes

    @property
    def unit(self):
        """What the operations of a second are called."""
        return "TOP/s" if self.is_integer else "TFLOP/s"

    @property
    def is_integer(self):
        """Whether integers are multiplied."""
        return np.dtype(self.sums).kind == "i"

    @property
    def tolerance(self):
        """Bounds on the result."""
        return FEW_BITS if self.alternate else EXACT

    def random(self, shape, rng):
        """Return random numbers, none of them zero, whose sums of products are exact.

        Multiples of 1/8 between -15/8 and 15/8; of int8 all there are but -128.
        """
        sign = rng.choice((-1, 1), shape)
        if self.is_integer:
            return (rng.integers(1, 128, shape) * sign).astype(self.dtype)
        return (rng.integers(1, 16, shape) * sign / 8).astype(self.dtype)


EXACT = Tolerance(0.0, 0.0, "sums of multiples of 1/64 below 2^24 / 64 are exact in fp32")
# a step that was left out is a quarter of the result
FEW_BITS = Tolerance(1e-2, 5e-2, "Hopper sums fp8 with some 13 bits after the largest product")
FP16 = Element("fp16", "f16", np.float16)
BF16 = Element("bf16", "bf16", ml_dtypes.bfloat16)
FP8 = Element("fp8", "e4m3", ml_dtypes.float8_e4m3fn, alternate=True)
INT8 = Element("int8", "s8", np.int8, np.int32)
ELEMENTS = (FP16, BF16, FP8, INT8)


def element_of(name):
    """Return the type of a name."""
    return next(one for one in ELEMENTS if one.name == name)
