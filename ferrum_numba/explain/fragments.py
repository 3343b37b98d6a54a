"""Who holds what of the operands of the tensor-core instructions that a program has.

The instructions are read off the PTX, so this knows them of any kernel. Their layouts are those
that `ptx/` and its NumPy twins have.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.layout import Tile

Array = npt.NDArray[Any]
# the shape, the type of A, and whether A of a warpgroup is in registers
_MMA = re.compile(r"\bmma\.sync\.aligned\.m16n8k(16|32)\.row\.col\.\w+\.(\w+)\.")
_WGMMA = re.compile(
    r"\bwgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(16|32)\.\w+\.(\w+)\.\w+\s*"
    r"\{[^}]*\},\s*(\{)?"
)


def fragments(ptx: str) -> tuple[Tile, ...]:
    """Return the tiles of every tensor-core instruction of a program, each shape once."""
    products = sorted({(int(k), dtype) for k, dtype in _MMA.findall(ptx)})
    wide = {(int(n), int(k), dtype, bool(a)) for n, k, dtype, a in _WGMMA.findall(ptx)}
    found = [tile for k, dtype in products for tile in _mma(k, dtype)]
    return (*found, *(tile for n, k, dtype, a in sorted(wide) for tile in _wgmma(n, k, dtype, a)))


def _mma(k: int, dtype: str) -> list[Tile]:
    """Return A, B and C of a warp's product."""
    from ferrum_numba.ptx import mma, mma8

    of = mma if k == 16 else mma8
    # elements of a register
    name, each = f"mma.m16n8k{k}, {dtype}", k // 8
    return [
        _tile(f"A of {name}", "m", "k", of.A_ROW, of.A_COLUMN, each),
        _tile(f"B of {name}", "k", "n", of.B_ROW, of.B_COLUMN, each),
        _tile(f"C of {name}", "m", "n", mma.C_ROW, mma.C_COLUMN, 1),
    ]


def _wgmma(n: int, k: int, dtype: str, a_in_registers: bool) -> list[Tile]:
    """Return A, where it is in registers, and D of a warpgroup's product."""
    from ferrum_numba.ptx import mma, mma8
    from ferrum_numba.ptx.wgmma import accumulator_index

    of, name = mma if k == 16 else mma8, f"wgmma.m64n{n}k{k}, {dtype}"
    found = []
    if a_in_registers:
        row = np.concatenate([16 * warp + of.A_ROW for warp in range(4)])
        column = np.tile(of.A_COLUMN, (4, 1))
        found.append(_tile(f"A of {name}", "m", "k", row, column, k // 8))
    return [*found, _tile(f"D of {name}", "m", "n", *accumulator_index(n), 1)]


def _tile(name: str, rows: str, columns: str, row: Array, column: Array, each: int) -> Tile:
    """Return a tile of index arrays [lanes, elements of a lane].

    each: elements of a register
    """
    lane = np.empty((row.max() + 1, column.max() + 1), np.int64)
    place = np.empty(lane.shape, "U7")
    for holder, element in np.ndindex(row.shape):
        at = row[holder, element], column[holder, element]
        lane[at] = holder
        place[at] = f"{element // each}.{element % each}" if each > 1 else str(element)
    return Tile(name, rows, columns, lane, place, "register.part" if each > 1 else "register")
