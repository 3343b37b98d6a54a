"""A buffer that a program reads or writes, as the manifest has it."""

from __future__ import annotations

from typing import NamedTuple

# what kernels read and write at once
ALIGNMENT_BYTES = 16


class Operand(NamedTuple):
    """A buffer.

    element:   "dtype", "int32", "fp32", or "16 bits" of any type
    access:    "read" or "write"
    layout:    its name in LAYOUTS
    alignment: bytes, of a multiple of which it begins
    """

    element: str
    shape: str
    access: str
    layout: str
    meaning: str
    alignment: int = ALIGNMENT_BYTES
