"""Whole numbers rounded up: how many tiles cover a size, and the next size that they divide."""

from __future__ import annotations


def ceil_div(size: int, unit: int) -> int:
    """Return how many units cover a size: size / unit, rounded up."""
    return -(-size // unit)


def round_up(size: int, unit: int) -> int:
    """Return the next multiple of a unit that is no less than a size."""
    return ceil_div(size, unit) * unit
