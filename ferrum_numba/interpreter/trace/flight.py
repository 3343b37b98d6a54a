"""Bytes of copies that a block has begun, and nobody has waited for yet."""

from __future__ import annotations

from collections import Counter


class Flight:
    """Copies of one block in flight.

    What `cp.async` has in flight is counted by warp, because the interpreter runs one warp after
    the other where a GPU runs them beside each other; bulk copies are counted by block.
    """

    def __init__(self) -> None:
        self._own: Counter[int] = Counter()
        self._most_own: Counter[int] = Counter()
        self._bulk = self._most_bulk = 0

    @property
    def most(self) -> int:
        """The most bytes: each warp's own together, and the bulk copies."""
        return self._most_own.total() + self._most_bulk

    def of(self, warp: int) -> int:
        """Return what a warp and the block's bulk copies have in flight now."""
        return self._own[warp] + self._bulk

    def begin(self, warp: int, size_bytes: int) -> None:
        """Count a `cp.async` of a warp in."""
        self._own[warp] += size_bytes
        self._most_own[warp] = max(self._most_own[warp], self._own[warp])

    def end(self, warp: int, size_bytes: int) -> None:
        """Count one out that its warp has waited for."""
        self._own[warp] -= size_bytes

    def begin_bulk(self, size_bytes: int) -> None:
        """Count a bulk copy in."""
        self._bulk += size_bytes
        self._most_bulk = max(self._most_bulk, self._bulk)

    def end_bulk(self, size_bytes: int) -> None:
        """Count one out whose mbarrier somebody has waited for."""
        self._bulk -= size_bytes
