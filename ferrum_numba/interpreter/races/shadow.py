"""Who touched each byte last: of shared memory of a block, and of a buffer in global memory.

Bytes that were always touched together are one cell; a narrower access divides the cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ferrum_numba.interpreter.memory import Array
from ferrum_numba.interpreter.races.clocks import (
    ACTORS,
    PROXIED,
    RAN,
    SEEN,
    WARP_SIZE,
    Clocks,
)

# how a cell was written: not at all, by an ordinary store, by a strong one (an atomic's, or one
# with `.relaxed` or stronger semantics), through the async proxy
NOBODY, WEAK, STRONG, ASYNC = range(4)
_LANES = np.arange(WARP_SIZE, dtype=np.uint32)


class Past(NamedTuple):
    """An access that was made before: by whom, at which place, and how."""

    actor: int
    site: int
    how: int
    wrote: bool


class Race(NamedTuple):
    """A conflict that nothing orders: the row of the access being made, and the one before it."""

    row: int
    past: Past


@dataclass(frozen=True)
class Access:
    """What is about to happen to some cells.

    thread: who does it, a row a cell, or asks for it where an actor does it
    cells:  which ones
    site:   number of the place in the source
    how:    WEAK, STRONG or ASYNC
    epoch:  of the actors
    actor:  whose column it is; None: each lane's own
    """

    thread: Array
    cells: Array
    site: int
    how: int
    epoch: int
    actor: int | None = None

    def actors(self, clocks: Clocks) -> Array:
        """Return the actor of each row: [n] int64."""
        if self.actor is not None:
            return np.full(len(self.cells), self.actor, np.int64)
        return self.thread + clocks.number * ACTORS


class Writes:
    """The last write of each cell, and the first race with it."""

    def __init__(self, cells: int) -> None:
        self.any = False
        self.actor = np.zeros(cells, np.int64)
        self.epoch = np.zeros(cells, np.int32)
        self.site = np.zeros(cells, np.int32)
        self.how = np.zeros(cells, np.uint8)
        # strong writes of a cell that the last one, strong too, is not ordered after: their epochs
        self._beside: dict[int, dict[Past, int]] = {}

    def divide(self, parts: int) -> None:
        """Make several cells of each."""
        for name in ("actor", "epoch", "site", "how"):
            setattr(self, name, np.repeat(getattr(self, name), parts))
        beside = self._beside
        self._beside = {parts * c + i: dict(v) for c, v in beside.items() for i in range(parts)}

    def past(self, cell: int) -> Past:
        """Return the last write of a cell."""
        return Past(int(self.actor[cell]), int(self.site[cell]), int(self.how[cell]), True)

    def conflict(self, access: Access, clocks: Clocks, *, writes: bool = False) -> Race | None:
        """Return a write that an access is not ordered after, or None."""
        late = self.unseen(access, clocks, writes=writes)
        if late is not None:
            return self.race(access, int(late[0]))
        return self.conflict_beside(access, clocks) if self._beside else None

    def conflict_beside(self, access: Access, clocks: Clocks) -> Race | None:
        """Return a strong write, not the last, that an access is not ordered after, or None."""
        if access.how == STRONG or not self._beside:
            return None
        for row, cell in enumerate(access.cells.tolist()):
            for past, epoch in self._beside.get(cell, {}).items():
                thread = access.thread[row : row + 1]
                if int(clocks.of(SEEN, thread, np.array([past.actor]))[0]) < epoch:
                    return Race(row, past)
        return None

    def keep_beside(self, access: Access, clocks: Clocks) -> None:
        """Before a write is noted: keep strong ones that it takes the place of, unordered."""
        if access.how != STRONG:
            if self._beside:
                for cell in access.cells.tolist():
                    self._beside.pop(cell, None)
            return
        cells = access.cells
        strong = (self.how[cells] == STRONG) & (self.epoch[cells] > 0)
        if strong.any():
            late = clocks.of(SEEN, access.thread, self.actor[cells]) < self.epoch[cells]
            for cell in cells[strong & late].tolist():
                kept = self._beside.setdefault(cell, {})
                past = self.past(cell)
                kept[past] = max(kept.get(past, 0), int(self.epoch[cell]))

    def unseen(self, access: Access, clocks: Clocks, *, writes: bool = False) -> Array | None:
        """Return the rows whose cell was written by what the lane does not see, or None.

        writes: whether the access is a write, which a copy that has arrived need only come before
        """
        if not self.any:
            return None
        cells = access.cells
        epoch = self.epoch[cells]
        if not epoch.any():
            return None
        actor = self.actor[cells]
        known = clocks.of(SEEN, access.thread, actor)
        late = known < epoch
        if writes and late.any():
            arrived = self.how[cells] == ASYNC
            late &= ~arrived | (clocks.of(RAN, access.thread, actor) < epoch)
        if access.how == ASYNC:
            ordinary = (self.how[cells] != ASYNC) & (epoch > 0)
            if ordinary.any():
                late |= ordinary & (clocks.of(PROXIED, access.thread, actor) < epoch)
        elif access.how == STRONG:
            late &= self.how[cells] != STRONG
        return np.flatnonzero(late) if late.any() else None

    def race(self, access: Access, row: int) -> Race:
        """Return the race of a row with the last write."""
        return Race(row, self.past(int(access.cells[row])))

    def unseen_by_all(self, access: Access, clocks: Clocks) -> Race | None:
        """Return a write that some lane does not see, of cells that all lanes read together."""
        if not self.any:
            return None
        cells = access.cells
        epoch, actor = self.epoch[cells], self.actor[cells]
        kind = np.where(self.how[cells] == ASYNC, SEEN, PROXIED)
        base = clocks.number * ACTORS
        if not ((actor >= base) & (actor < base + ACTORS))[epoch > 0].all():
            lane = replace(access, thread=np.full(len(cells), access.thread[0]))
            late = self.unseen(lane, clocks)
            return None if late is None else self.race(access, int(late[0]))
        known = clocks.known[SEEN:, access.thread].min(axis=1)
        late = np.flatnonzero(known[kind - SEEN, np.where(epoch > 0, actor - base, 0)] < epoch)
        if not late.size:
            return None
        row = int(late[0])
        column = int(actor[row]) - base
        lanes = clocks.known[kind[row], access.thread, column] < epoch[row]
        return self.race(access, row)._replace(row=int(np.flatnonzero(lanes)[0]))

    def put(self, access: Access, actors: Array) -> int | None:
        """Note an access; return the first row whose cell a later row of it has, or None."""
        self.any = True
        cells = access.cells
        self.actor[cells] = actors
        self.epoch[cells] = access.epoch
        self.site[cells] = access.site
        self.how[cells] = access.how
        if access.actor is None:
            other = self.actor[cells] != actors
            if other.any():
                return int(np.flatnonzero(other)[0])
        return None


class SharedReads:
    """Which lanes of a block read each cell, and in which epoch: a row a warp or a warpgroup."""

    def __init__(self, home: Clocks, cells: int) -> None:
        self.home = home
        rows = home.num_warps + home.num_warpgroups
        self.epoch = np.zeros((rows, cells), np.int32)
        self.lanes = np.zeros((rows, cells), np.uint32)
        self.site = np.zeros((rows, cells), np.int32)
        # reads of the warp's other lanes that a later read of some took the place of
        self.older: dict[int, list[tuple[int, int, int, int]]] = {}
        # of other blocks of the cluster, and of copies: actor, epoch, site
        self.others: dict[int, list[tuple[int, int, int]]] = {}

    def divide(self, parts: int) -> None:
        """Make several cells of each."""
        for name in ("epoch", "lanes", "site"):
            setattr(self, name, np.repeat(getattr(self, name), parts, axis=1))
        for name in ("older", "others"):
            held = getattr(self, name)
            more = {parts * c + i: list(v) for c, v in held.items() for i in range(parts)}
            setattr(self, name, more)

    def put(self, row: int, access: Access, bits: Array, joined_epoch: int) -> None:
        """Note that lanes of a warp, given as bits, read cells."""
        cells, epochs, lanes = access.cells, self.epoch[row], self.lanes[row]
        before = epochs[cells]
        if int(before.min()) != access.epoch:
            if int(before.max()) > joined_epoch:
                self._keep_older(row, access, before, joined_epoch)
            stale = cells[before != access.epoch]
            lanes[stale] = 0
            epochs[stale] = access.epoch
        np.bitwise_or.at(lanes, cells, bits)
        self.site[row][cells] = access.site

    def _keep_older(self, row: int, access: Access, before: Array, joined_epoch: int) -> None:
        late = (before > joined_epoch) & (before != access.epoch)
        for cell in set(access.cells[late].tolist()):
            epoch, lanes, site = (int(a[row, cell]) for a in (self.epoch, self.lanes, self.site))
            read = (row, epoch, lanes, site)
            self.older.setdefault(cell, []).append(read)

    def unordered(self, access: Access, clocks: Clocks) -> Race | None:
        """Return a read that a write by lanes of a block is not ordered after, or None."""
        found = self._by_lanes(access, clocks)
        if found is None and (self.older or self.others):
            for row, cell in enumerate(access.cells.tolist()):
                found = found or self._among_kept(row, cell, access, clocks)
        return found

    def _by_lanes(self, access: Access, clocks: Clocks) -> Race | None:
        epoch = self.epoch[:, access.cells]
        if not epoch.any():
            return None
        late = epoch > clocks.least(access.thread, self.home).T
        if not late.any():
            return None
        readers, rows = np.nonzero(late)
        products = np.flatnonzero(readers >= self.home.num_warps)
        if products.size:
            reader, row = int(readers[products[0]]), int(rows[products[0]])
            actor = self.home.warpgroups + reader - self.home.num_warps
            site = int(self.site[reader, access.cells[row]])
            return Race(row, Past(self.home.number * ACTORS + actor, site, ASYNC, False))
        # some lane of the warp is not known to be that far: whether it is one that read
        cells = access.cells[rows]
        columns = WARP_SIZE * readers[:, None] + _LANES
        known = clocks.executed(access.thread[rows], self.home, columns)
        read = self.lanes[readers, cells][:, None] >> _LANES & 1 > 0
        lanes_late = read & (known < self.epoch[readers, cells][:, None])
        if not lanes_late.any():
            return None
        k, lane = (int(i) for i in np.argwhere(lanes_late)[0])
        actor = self.home.number * ACTORS + int(columns[k, lane])
        site = int(self.site[readers[k], cells[k]])
        return Race(int(rows[k]), Past(actor, site, WEAK, False))

    def _among_kept(self, row: int, cell: int, access: Access, clocks: Clocks) -> Race | None:
        thread = access.thread[row : row + 1]
        for warp, epoch, mask, site in self.older.get(cell, ()):
            columns = WARP_SIZE * warp + _LANES[None, :]
            known = clocks.executed(thread, self.home, columns)[0]
            late = np.flatnonzero((known < epoch) & (np.uint32(mask) >> _LANES & 1 > 0))
            if late.size:
                actor = self.home.number * ACTORS + WARP_SIZE * warp + int(late[0])
                return Race(row, Past(actor, site, WEAK, False))
        for actor, epoch, site in self.others.get(cell, ()):
            if int(clocks.of(RAN, thread, np.array([actor]))[0]) < epoch:
                return Race(row, Past(actor, site, WEAK, False))
        return None
