"""Marlin's stripe partition: how its tiles are dealt to a fixed number of blocks.

Tiles are numbered down the K dimension first, column after column, problem after problem. Every
block takes an equal run of consecutive tiles, so that all blocks end together whatever the shape:
with 3 x 3 tiles and 5 blocks

    0 1 3
    0 2 3
    1 2 4

A column that several blocks touch is summed from the bottom up: `turn` 0 writes its partial sum
first, `turn` num_shares - 1 owns the top tile, adds the last and stores the result. A block meets
its bottom share first in its run and its top share last, so the wait is short; but it is a wait,
and all blocks must be resident at once.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


class Share(NamedTuple):
    """One block's share of one column of tiles.

    block:      thread block
    problem:    0..parallel - 1, the batch of rows of x
    n_tile:     column
    k_first:    first tile of the share
    k_count:    tiles in it
    num_shares: blocks that share the column
    turn:       turn of this block in the column's sum, 0 for the bottom one
    """

    block: int
    problem: int
    n_tile: int
    k_first: int
    k_count: int
    num_shares: int
    turn: int


def stripes(
    grid: int, k_tiles: int, n_tiles: int, parallel: int = 1, group_tiles: int = 1
) -> list[Share]:
    """Return every block's shares, in the order in which it works on them.

    Args:
        grid:        thread blocks
        k_tiles:     tiles along K
        n_tiles:     tiles along N
        parallel:    problems solved by one launch
        group_tiles: K tiles a quantisation group spans; no run starts inside a group

    Returns:
        Shares, ordered by block, then by tile.

    Raises:
        ValueError: a count below 1, or groups that do not divide the column.
    """
    if min(grid, k_tiles, n_tiles, parallel, group_tiles) < 1:
        raise ValueError(
            f"grid, tiles and problems must be at least 1; got grid {grid}, {k_tiles} x {n_tiles} "
            f"tiles, {parallel} problems, {group_tiles} tiles a group"
        )
    if k_tiles % group_tiles:
        raise ValueError(f"{k_tiles} K tiles do not divide into groups of {group_tiles}")
    runs = _runs(k_tiles * n_tiles * parallel, grid, k_tiles, group_tiles)
    counts = Counter(first // k_tiles for _, first, _ in runs)
    met: Counter[int] = Counter()
    shares = []
    for block, first, last in runs:
        column, k_first = divmod(first, k_tiles)
        met[column] += 1
        turn = counts[column] - met[column]
        problem, n_tile = divmod(column, n_tiles)
        share = Share(block, problem, n_tile, k_first, last - first, counts[column], turn)
        shares.append(share)
    return shares


def _runs(tiles: int, grid: int, k_tiles: int, group_tiles: int) -> list[tuple[int, int, int]]:
    """Return (block, first tile, end tile), a block's run cut where a column ends."""
    length = -(-tiles // grid)
    length = group_tiles * -(-length // group_tiles)
    runs = []
    for block in range(grid):
        first, end = length * block, min(length * (block + 1), tiles)
        while first < end:
            cut = min(end, (first // k_tiles + 1) * k_tiles)
            runs.append((block, first, cut))
            first = cut
    return runs
