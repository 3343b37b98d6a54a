"""Arithmetic of floats and powers as numba compiles it, where NumPy's scalars do something else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# beyond, numba asks `pow` of libdevice
_LONGEST_POWER = 0x10000
_LOWEST = np.iinfo(np.int64).min


def divide(x: Any, y: Any) -> Any:
    """Return x / y of two floats of one type; of zero, an infinity or NaN."""
    if y:
        return x / y
    with np.errstate(all="ignore"):
        return x / y


def floor_divide(x: Any, y: Any) -> Any:
    """Return x // y of two floats of one type."""
    with np.errstate(all="ignore"):
        return _divmod(x, y)[0]


def modulo(x: Any, y: Any) -> Any:
    """Return x % y of two floats of one type."""
    with np.errstate(all="ignore"):
        return _divmod(x, y)[1]


def floor_divide_signed(x: Any, y: Any) -> Any:
    """Return x // y of two int64; the one quotient that is no int64 is 0 to numba."""
    return x // y if y != -1 else (-x if x > _LOWEST else np.int64(0))


def _divmod(x: Any, y: Any) -> tuple[Any, Any]:
    """Return quotient and remainder; the remainder is inexact for large quotients, as on the GPU.

    Source: `real_divmod_func_body` of numba, and LLVM's way to compute `frem`.
    """
    kind = type(x)
    size, by = abs(x), abs(y)
    rest = size - np.floor(size / by) * by
    rest = -rest if x < 0 else rest
    if y == 0:
        return x / y, rest
    quotient = (x - rest) / y
    if rest != 0:
        if (y < 0) != (rest < 0):
            quotient, rest = quotient - kind(1), rest + y
    else:
        rest = kind(-0.0) if y < 0 else kind(0.0)
    if quotient == 0 or np.isnan(quotient):
        # zero with the sign of the quotient
        return quotient * quotient * x / y, rest
    whole = np.floor(quotient)
    return (whole + kind(1) if quotient - whole > 0.5 else whole), rest


def power(base: Any, exponent: Any) -> Any:
    """Return base ** exponent; of integers as a double, which numba makes of them on the way."""
    with np.errstate(all="ignore"):
        if isinstance(exponent, np.floating):
            return base**exponent
        whole = isinstance(base, np.integer)
        if exponent < 0 and whole and base not in (1, -1):
            lowest = float(-(1 << (8 * base.dtype.itemsize - 1)))
            return np.float64(0.0 if base != 0 else lowest)
        times = abs(int(exponent))
        if times > _LONGEST_POWER:
            return np.float64(base) ** np.float64(exponent)
        product, square = type(base)(1), base
        while times:
            if times & 1:
                product = product * square
            times >>= 1
            square = square * square
        return np.float64(1.0) / np.float64(product) if exponent < 0 else np.float64(product)


def minimum(x: Any, y: Any) -> Any:
    """Return the smaller of two of one type: a number before NaN, -0 before 0."""
    if x != x:
        return y
    if x == y:
        return x if math.copysign(1, x) < 0 else y
    return y if y < x else x


def maximum(x: Any, y: Any) -> Any:
    """Return the larger of two of one type: a number before NaN, 0 before -0."""
    if x != x:
        return y
    if x == y:
        return y if math.copysign(1, x) < 0 else x
    return y if y > x else x


# by the class of the AST; of floats, but for the power
SAFE_OPERATORS = {"Div": divide, "FloorDiv": floor_divide, "Mod": modulo, "Pow": power}
