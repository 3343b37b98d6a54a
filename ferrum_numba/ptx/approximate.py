"""Functions of fp32 that a GPU approximates in one instruction.

Subnormal operands and results become zero. The twins are exact but for their rounding: they differ
from a GPU by the errors that are given here.
"""

from __future__ import annotations

import numpy as np

from ferrum_numba.ptx.instruction import F32, Array, instruction

_TINY = np.finfo(np.float32).tiny


def _flush(values: Array) -> Array:
    """Return float32 with zeros of the same sign for what is smaller than any normal number."""
    return np.where(np.abs(values) < _TINY, np.copysign(0, values), values).astype(np.float32)


@instruction("ex2.approx.ftz.f32 <d>, <a>;")
def ex2_approx(a: F32) -> F32:
    """Return 2 to the power of a, with a relative error of 2**-22 at most.

    Source: PTX ISA, "Floating-Point Instructions: ex2".
    """
    with np.errstate(over="ignore"):
        return _flush(np.exp2(_flush(a).astype(np.float64)).astype(np.float32))


@instruction("rcp.approx.ftz.f32 <d>, <a>;")
def rcp_approx(a: F32) -> F32:
    """Return 1 / a, with an error of one in the last place at most.

    Source: PTX ISA, "Floating-Point Instructions: rcp".
    """
    with np.errstate(divide="ignore"):
        return _flush((1 / _flush(a).astype(np.float64)).astype(np.float32))
