"""fp16, bf16 and fp32 by exact rational arithmetic, one number at a time: nothing of ours in it."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Format:
    """A binary floating-point format of 16 or 32 bits."""

    exponent_bits: int
    mantissa_bits: int

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number."""
        return 2 - 2 ** (self.exponent_bits - 1)

    @property
    def infinity(self) -> int:
        """Bits of infinity."""
        return (2**self.exponent_bits - 1) << self.mantissa_bits


F16, BF16, F32 = Format(5, 10), Format(8, 7), Format(8, 23)
CANONICAL_NAN = 0x7FFF


def decode(bits: int, form: Format) -> float:
    """Return the value of bits, exactly."""
    sign = -1.0 if bits >> (form.exponent_bits + form.mantissa_bits) else 1.0
    exponent = bits >> form.mantissa_bits & (2**form.exponent_bits - 1)
    mantissa = bits & (2**form.mantissa_bits - 1)
    if exponent == 2**form.exponent_bits - 1:
        return math.nan if mantissa else sign * math.inf
    if exponent:
        mantissa += 2**form.mantissa_bits
    scale = form.min_exponent + max(exponent, 1) - 1 - form.mantissa_bits
    return sign * math.ldexp(mantissa, scale)


def encode(value: Fraction, form: Format) -> int:
    """Return the bits of |value| rounded once, to nearest even."""
    if not value:
        return 0
    value = abs(value)
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if value < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, form.min_exponent)
    steps = round(value / Fraction(2) ** (exponent - form.mantissa_bits))  # half to even
    # the mantissa's leading bit, or its carry, counts the exponent up
    bits = ((exponent - form.min_exponent) << form.mantissa_bits) + steps
    return min(bits, form.infinity)


def rounded_fma(a: float, b: float, c: float, form: Format) -> int:
    """Return the bits of a * b + c rounded once; NaN is 0x7fff."""
    approximate = a * b + c  # in float64: right for NaN, Inf and the sign
    if math.isnan(approximate):
        return CANONICAL_NAN
    sign_bit = 1 << (form.exponent_bits + form.mantissa_bits)
    sign = sign_bit if math.copysign(1, approximate) < 0 else 0
    if math.isinf(approximate):
        return sign | form.infinity
    return sign | encode(Fraction(a) * Fraction(b) + Fraction(c), form)


# zeros, subnormals, ones and neighbours, extremes, infinities, NaNs
SPECIAL_F16 = np.array(
    [0x0000, 0x0001, 0x0002, 0x000F, 0x03FF, 0x0400, 0x0401, 0x1400, 0x3BFF, 0x3C00, 0x3C01,
     0x3555, 0x6400, 0x6408, 0x7BFE, 0x7BFF, 0x7C00, 0x7C01, 0x7E00, 0x7FFF], np.uint16,
)  # fmt: skip
SPECIAL_BF16 = np.array(
    [0x0000, 0x0001, 0x0002, 0x007F, 0x0080, 0x0081, 0x3F7F, 0x3F80, 0x3F81, 0x3EAB, 0x4300,
     0x4308, 0x1F80, 0x5F80, 0x7F7E, 0x7F7F, 0x7F80, 0x7F81, 0x7FC0, 0x7FFF], np.uint16,
)  # fmt: skip
# fp32 on the edges of fp16 and bf16: halves of a step, subnormals of both, overflow, NaN
SPECIAL_F32 = np.array(
    [0x00000000, 0x00000001, 0x00008000, 0x00007FFF, 0x00008001, 0x007FFFFF, 0x00800000,
     0x33000000, 0x33000001, 0x32FFFFFF, 0x33800000, 0x33C00000, 0x387FC000, 0x387FE000,
     0x387FFFFF, 0x38800000, 0x3F800000, 0x3F801000, 0x3F803000, 0x3F801001, 0x3F808000,
     0x3F818000, 0x3F808001, 0x3F80FFFF, 0x477FE000, 0x477FEFFF, 0x477FF000, 0x47800000,
     0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF],
    np.uint32,
)  # fmt: skip


def adversarial(rng: np.random.Generator, special: np.ndarray, count: int) -> np.ndarray:
    """Return bits: half of them special values of either sign, half of them any."""
    bits = rng.integers(0, 2 ** (8 * special.itemsize), count, dtype=special.dtype)
    sign = np.array(1 << (8 * special.itemsize - 1), special.dtype)
    chosen = rng.choice(special, count) | np.where(rng.random(count) < 0.5, sign, 0).astype(
        special.dtype
    )
    return np.where(rng.random(count) < 0.5, chosen, bits)
