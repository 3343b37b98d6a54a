"""A zero point that GPTQ v1 stores as 15, which readers take for one of three values.

v1 stores a zero point less 1 in four bits, so that 0 becomes 15; all other values have one meaning.

"carry"   the whole word gets 0x11111111 added, as it was subtracted from the whole word: 0, and 1
          more in the next column, from which the writer borrowed. GPTQModel writes and reads so
"wrap"    each for itself, modulo 16: 0
"sixteen" each for itself, in more than four bits: 16, as kernels do that add 1 after unpacking
"""

from __future__ import annotations

import warnings

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import ProblemError, ZeroOverflowWarning
from ferrum_numba.reference.gptq import pack_codes, unpack_codes

CARRY, WRAP, SIXTEEN = "carry", "wrap", "sixteen"
READINGS = (CARRY, WRAP, SIXTEEN)
# of each nibble of a word: its lowest bit, its highest
ONES, TOPS = np.uint32(0x11111111), np.uint32(0x88888888)


def check(reading: str | None, where: str = "") -> None:
    """Raise ProblemError for an unknown reading; `where` begins the sentence."""
    if reading is not None and reading not in READINGS:
        known = ", ".join(f'"{each}"' for each in READINGS)
        raise ProblemError(f"{where}zero_overflow must be one of {known}; got {reading!r}")


def resolved(name: str, qzeros: Array, reading: str | None) -> Array:
    """Return v1 words that mean, whole words at a time, what stored ones do in a reading.

    name:    of the layer
    qzeros:  [G, N/8] int32; returned as they are where none holds a 15
    reading: one of READINGS, or None for "carry" with a warning. "sixteen" becomes 15, for codes
             that `lowered` made 1 less

    Raises:
        ProblemError: an unknown reading.
    """
    check(reading, f"{name}: ")
    number = count(qzeros)
    if not number:
        return qzeros
    if reading is None:
        warnings.warn(
            f"{name}: {number} of {8 * qzeros.size} stored zero points are 15, "
            'which is read as zero_overflow = "carry"; say so, or "wrap" or "sixteen"',
            ZeroOverflowWarning,
            stacklevel=4,
        )
    if reading in (None, CARRY):
        return qzeros
    words = qzeros.view(np.uint32)
    # one more in each nibble, without a carry
    true = ((words & ~TOPS) + ONES) ^ (words & TOPS)
    if reading == SIXTEEN:
        true |= _full(words) * np.uint32(15)
    result: Array = true - ONES
    return result.view(np.int32)


def count(qzeros: Array) -> int:
    """Return how many zero points of v1 words are stored as 15."""
    full = _full(qzeros.view(np.uint32))
    return int(np.bitwise_count(full).sum())


def of_15(qzeros: Array) -> Array:
    """Return [G, N] bool: which zero points of v1 words are stored as 15."""
    full = _full(qzeros.view(np.uint32))
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    return (full[:, :, None] >> shifts & np.uint32(1)).astype(bool).reshape(len(qzeros), -1)


def lowered(name: str, qweight: Array, groups: Array, at: Array) -> Array:
    """Return codes less 1 where the zero point is 16: with 15 in its place they mean the same.

    qweight: [K/8, N] int32
    groups:  [K], the group of each row
    at:      [G, N] bool, where the zero point is 16

    Raises:
        ProblemError: a code of 0 there: no int4 weight is 16 below zero.
    """
    columns = np.flatnonzero(at.any(axis=0))
    lower = at[:, columns][groups]
    codes = unpack_codes(np.ascontiguousarray(qweight[:, columns]))
    wrong = np.argwhere(lower & (codes == 0))
    if len(wrong):
        k, n = wrong[0]
        raise ProblemError(
            f"{name}: a zero point of 16 with a code of 0, as in row {k}, column {columns[n]}, is "
            'outside of int4: no kernel runs it; zero_overflow must be "carry" or "wrap"'
        )
    words = qweight.copy()
    words[:, columns] = pack_codes(codes - lower)
    return words


def _full(words: Array) -> Array:
    """Return words with 1 in each nibble that is 15, else 0."""
    full: Array = words & (words >> np.uint32(1))
    full &= full >> np.uint32(2)
    return full & ONES
