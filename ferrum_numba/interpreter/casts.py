"""Conversions between number types as compiled code does them: integers wrap, floats saturate."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ferrum_numba.interpreter.numba_types import types

Cast = Callable[[Any], Any]
CASTS: set[Cast] = set()
_FLOATS = frozenset({float, np.float16, np.float32, np.float64})


def as_cast(dtype: Any) -> Cast:
    """Return the cast to a Numba or NumPy number type; a cast is returned as it is."""
    if dtype in CASTS:
        found: Cast = dtype
        return found
    return _make_cast(scalar_type(dtype))


def scalar_type(dtype: Any) -> np.dtype[Any]:
    """Return the NumPy type of a Numba or NumPy number type."""
    return np.dtype(str(dtype) if isinstance(dtype, types.Type) else dtype)


@cache
def _make_cast(dtype: np.dtype[Any]) -> Cast:
    scalar = dtype.type
    mask = (1 << 8 * dtype.itemsize) - 1
    lowest = _lowest(dtype) if dtype.kind in "iu" else 0

    def wrap(value: Any) -> Any:
        kind = type(value)
        if kind is scalar:
            return value
        whole = _truncate(value, dtype) if kind in _FLOATS else int(value)
        return scalar(((whole - lowest) & mask) + lowest)

    def rounded(value: Any) -> Any:
        # a Python int stands for an int64, which is rounded once
        return scalar(np.int64(value) if type(value) is int else value)

    casts = {"i": wrap, "u": wrap, "f": rounded}
    cast: Cast = casts.get(dtype.kind, scalar)
    CASTS.add(cast)
    return cast


def _lowest(dtype: np.dtype[Any]) -> int:
    return -(1 << (8 * dtype.itemsize - 1)) if dtype.kind == "i" else 0


def _truncate(value: Any, dtype: np.dtype[Any]) -> int:
    """Return a float cut to an integer that fits, as `cvt.rzi` does it.

    Source: PTX ISA, "Data Movement and Conversion Instructions: cvt". There are no conversions to
    8 bits: the code goes through 16.
    """
    bits = max(8 * dtype.itemsize, 16)
    lowest = -(1 << (bits - 1)) if dtype.kind == "i" else 0
    if math.isnan(value):
        # of fp16 and fp32 it is 0 in 32 bits and less
        wide = bits == 64 or type(value) in (float, np.float64)
        return 1 << (bits - 1) if wide else 0
    if math.isinf(value):
        return lowest if value < 0 else lowest + (1 << bits) - 1
    return min(max(int(value), lowest), lowest + (1 << bits) - 1)
