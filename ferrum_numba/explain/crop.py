"""The part of a tile that a picture has room for."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from ferrum_numba.layout import Tile


def cropped(tile: Tile, most_rows: int, most_columns: int) -> tuple[npt.NDArray[Any], str]:
    """Return the lanes of a tile's first rows and columns, and in words what is left out.

    Columns are cut at a multiple of 8, which every layout here repeats or goes on after.
    """
    rows, columns = tile.lane.shape
    shown = min(columns, max(8, most_columns // 8 * 8))
    part = tile.lane[:most_rows, :shown]
    left = []
    if rows > most_rows:
        left.append(f"{tile.rows} {most_rows} to {rows - 1}")
    if columns > shown:
        left.append(f"{tile.columns} {shown} to {columns - 1}")
    return part, f"not drawn: {' and '.join(left)}" if left else ""
