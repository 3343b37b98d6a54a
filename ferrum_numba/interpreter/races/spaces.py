"""Shared memory of a block, and a buffer in global memory, as the detector keeps them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ferrum_numba.division import ceil_div
from ferrum_numba.interpreter.memory import Array
from ferrum_numba.interpreter.races.clocks import RAN, WARP_SIZE, Clocks
from ferrum_numba.interpreter.races.shadow import (
    STRONG,
    WEAK,
    Access,
    Past,
    Race,
    SharedReads,
    Writes,
)


class _Cells:
    """Cells of a run of bytes, as wide as the narrowest access to it."""

    def __init__(self, base: int, size_bytes: int, cell_bytes: int) -> None:
        self.base = base
        self.size_bytes = size_bytes
        self.cell_bytes = cell_bytes

    @property
    def count(self) -> int:
        """Return how many cells there are."""
        return ceil_div(self.size_bytes, self.cell_bytes)

    def find(self, address: Array, size_bytes: int) -> tuple[Array, int]:
        """Return the cells of each address, one after the other, and how many each has."""
        offset = address.astype(np.int64) - self.base
        bits = int(np.bitwise_or.reduce(offset)) | size_bytes
        unit = bits & -bits
        if unit < self.cell_bytes:
            self.divide(self.cell_bytes // unit)
        first = offset // self.cell_bytes
        parts = size_bytes // self.cell_bytes
        if parts == 1:
            return first, 1
        return (first[:, None] + np.arange(parts)).reshape(-1), parts

    def divide(self, parts: int) -> None:
        """Make several cells of each."""
        self.cell_bytes //= parts


class SharedSpace(_Cells):
    """The shared memory of a block, for its lanes, the cluster's, products and copies."""

    def __init__(self, home: Clocks, base: int, size_bytes: int, cell_bytes: int) -> None:
        super().__init__(base, size_bytes, cell_bytes)
        self.home = home
        self.writes = Writes(self.count)
        self.reads = SharedReads(home, self.count)

    def divide(self, parts: int) -> None:
        """Make several cells of each."""
        super().divide(parts)
        self.writes.divide(parts)
        self.reads.divide(parts)

    def read(self, access: Access, clocks: Clocks) -> Race | None:
        """Note a read by lanes of one block; return what it races with."""
        race = self.writes.conflict(access, clocks)
        if race is not None:
            return race
        if clocks is not self.home:
            for actor, cell in zip(
                access.actors(clocks).tolist(), access.cells.tolist(), strict=True
            ):
                kept = self.reads.others.setdefault(cell, [])
                kept.append((actor, access.epoch, access.site))
            return None
        first = int(access.thread[0]) // WARP_SIZE
        bits = np.left_shift(np.uint32(1), (access.thread % WARP_SIZE).astype(np.uint32))
        self.reads.put(first, access, bits, clocks.joined_epoch[first])
        return None

    def read_by_products(self, access: Access, clocks: Clocks, warpgroup: int) -> Race | None:
        """Note a read by wgmma of a warpgroup, whose lanes all must see what is read."""
        late = self.writes.unseen_by_all(access, clocks)
        if late is not None:
            return late
        bits = np.ones(len(access.cells), np.uint32)
        self.reads.put(clocks.num_warps + warpgroup, access, bits, access.epoch)
        return None

    def may_write(self, access: Access, clocks: Clocks) -> Race | None:
        """Return what a write by lanes, or by a copy that they begin, races with."""
        race = self.writes.conflict(access, clocks, writes=True)
        if race is not None:
            return race
        return self.reads.unordered(access, clocks)

    def wrote(self, access: Access, clocks: Clocks) -> int | None:
        """Note a write; return the first row that another one of it wrote over, or None."""
        self.writes.keep_beside(access, clocks)
        return self.writes.put(access, access.actors(clocks))


class GlobalSpace(_Cells):
    """A buffer; until it is first written its reads are only listed."""

    def __init__(self, base: int, size_bytes: int) -> None:
        super().__init__(base, size_bytes, 16)
        self._listed: list[tuple[Access, Array]] = []
        self.writes: Writes | None = None
        # the latest reader of each cell, and those before it that it did not know of: their epochs
        self._latest = Writes(0)
        self._earlier: dict[int, dict[Past, int]] = {}

    def divide(self, parts: int) -> None:
        """Make several cells of each."""
        super().divide(parts)
        if self.writes is None:
            steps = np.arange(parts)
            for i, (access, actors) in enumerate(self._listed):
                cells = (access.cells[:, None] * parts + steps).reshape(-1)
                self._listed[i] = replace(access, cells=cells), np.repeat(actors, parts)
            return
        self.writes.divide(parts)
        self._latest.divide(parts)
        more = {parts * c + i: dict(v) for c, v in self._earlier.items() for i in range(parts)}
        self._earlier = more

    def _begin_writes(self) -> Writes:
        self.writes = Writes(self.count)
        self._latest = Writes(self.count)
        listed, self._listed = self._listed, []
        for access, actors in listed:
            self._note_read(access, actors, np.zeros(len(actors), bool))
        return self.writes

    def read(self, access: Access, clocks: Clocks) -> Race | None:
        """Note a read; return what it races with."""
        actors = access.actors(clocks)
        if self.writes is None:
            self._listed.append((access, actors))
            return None
        race = self.writes.conflict(access, clocks)
        if race is not None:
            return race
        latest = self._latest
        before, epoch = latest.actor[access.cells], latest.epoch[access.cells]
        known = np.ones(len(actors), bool)
        if epoch.any():
            known = clocks.of(RAN, access.thread, before) >= epoch
        self._note_read(access, actors, known)
        return None

    def _note_read(self, access: Access, actors: Array, known: Array) -> None:
        latest, cells = self._latest, access.cells
        lost = ~known & (latest.actor[cells] != actors)
        for cell in cells[lost & (latest.epoch[cells] > 0)].tolist():
            how = (int(latest.site[cell]), int(latest.how[cell]))
            self._keep(cell, Past(int(latest.actor[cell]), *how, False), int(latest.epoch[cell]))
        latest.put(access, actors)
        # lanes that read the same cell together
        for row in np.flatnonzero(latest.actor[cells] != actors).tolist():
            past = Past(int(actors[row]), access.site, access.how, False)
            self._keep(int(cells[row]), past, access.epoch)

    def _keep(self, cell: int, past: Past, epoch: int) -> None:
        kept = self._earlier.setdefault(cell, {})
        kept[past] = max(kept.get(past, 0), epoch)

    def write(self, access: Access, clocks: Clocks) -> Race | int | None:
        """Note a write; return what it races with, or the first row that another wrote over."""
        writes = self.writes or self._begin_writes()
        late = writes.unseen(access, clocks)
        latest, cells = self._latest, access.cells
        if late is not None:
            # who has read a cell with a strong load writes after what it read
            own = access.actors(clocks)[late]
            some = cells[late]
            followed = (
                (writes.how[some] == STRONG)
                & (latest.how[some] == STRONG)
                & (latest.actor[some] == own)
                & (latest.epoch[some] > 0)
            )
            late = late[~followed]
            if late.size:
                return writes.race(access, int(late[0]))
        race = writes.conflict_beside(access, clocks) or self._unordered(access, clocks)
        if race is not None:
            return race
        writes.keep_beside(access, clocks)
        latest.epoch[cells] = 0
        if self._earlier:
            for cell in cells.tolist():
                self._earlier.pop(cell, None)
        return writes.put(access, access.actors(clocks))

    def _unordered(self, access: Access, clocks: Clocks) -> Race | None:
        latest, cells = self._latest, access.cells
        epoch = latest.epoch[cells]
        if epoch.any():
            late = clocks.of(RAN, access.thread, latest.actor[cells]) < epoch
            if access.how == STRONG:
                late &= latest.how[cells] != STRONG
            if late.any():
                row = int(np.flatnonzero(late)[0])
                cell = int(cells[row])
                past = Past(int(latest.actor[cell]), int(latest.site[cell]), WEAK, False)
                return Race(row, past)
        for row, cell in enumerate(cells.tolist() if self._earlier else ()):
            for past, last in self._earlier.get(cell, {}).items():
                if access.how == STRONG and past.how == STRONG:
                    continue
                known = clocks.of(RAN, access.thread[row : row + 1], np.array([past.actor]))
                if int(known[0]) < last:
                    return Race(row, past)
        return None
