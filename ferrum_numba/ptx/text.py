"""Pieces of the text of an instruction that is made for a size: lists of registers, blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

# the 16-bit types, by their names in PTX
Half = Literal["f16", "bf16"]


def registers(operand: str, first: int, count: int = 4) -> str:
    """Return some registers of a vector operand, as a vector of PTX."""
    return "{" + ", ".join(f"<{operand}.{first + i}>" for i in range(count)) + "}"


def braced(lines: Iterable[str]) -> str:
    """Return lines of PTX as a block with registers of its own."""
    return "{\n" + "\n".join(lines) + "\n}"
