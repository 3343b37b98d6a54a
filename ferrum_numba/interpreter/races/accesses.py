"""The accesses of a block to memory, each held against what nothing orders before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ferrum_numba.interpreter.barriers import Mbarrier
from ferrum_numba.interpreter.memory import GAP_BITS, Array
from ferrum_numba.interpreter.races import report
from ferrum_numba.interpreter.races.clocks import ACTORS, SEEN, WARP_SIZE, Clocks
from ferrum_numba.interpreter.races.launch import Record
from ferrum_numba.interpreter.races.products import Products
from ferrum_numba.interpreter.races.shadow import ASYNC, STRONG, WEAK, Access, Race, Writes
from ferrum_numba.interpreter.races.spaces import GlobalSpace, SharedSpace
from ferrum_numba.interpreter.races.unwatched import Unwatched

if TYPE_CHECKING:
    from ferrum_numba.interpreter.block import Block


class Accesses(Unwatched):
    """The accesses of one watched block to shared and global memory."""

    def __init__(self, launch: Record, block: Block, number: int) -> None:
        self.launch = launch
        self.block = block
        early = launch.launched_early
        self.clocks = Clocks(number, block.num_threads, launched_early=early)
        self.shared = SharedSpace(
            self.clocks, block.shared.base, max(block.smem_bytes, 16), launch.cell_bytes
        )
        # of other blocks of the cluster, that used this one's shared memory: actor -> epoch, site
        self.visitors: dict[int, tuple[int, int]] = {}
        self.products = [Products() for _ in range(self.clocks.num_warpgroups)]

    # shared memory

    def _access(
        self, thread: Array, address: Array, size_bytes: int, space: Any, how: int
    ) -> Access:
        warp = int(thread[0]) // WARP_SIZE
        epoch = self.clocks.begin(warp)
        cells, parts = space.find(address, size_bytes)
        if space is self.shared:
            # the next block need not divide its cells
            self.launch.cell_bytes = space.cell_bytes
        rows = np.repeat(thread, parts) if parts > 1 else thread
        return Access(rows, cells, self.launch.site(), how, epoch)

    def read_shared(self, thread: Array, address: Array, size_bytes: int) -> None:
        for _, lanes, places in _by_warp(thread, address):
            access = self._access(lanes, places, size_bytes, self.shared, WEAK)
            race = self.shared.read(access, self.clocks)
            if race is not None:
                raise self._shared_race(race, access, "reads", self.shared)

    def write_shared(
        self, thread: Array, address: Array, data: Array, *, strong: bool = False
    ) -> None:
        for first, lanes, places in _by_warp(thread, address):
            how = STRONG if strong else WEAK
            access = self._access(lanes, places, data.shape[1], self.shared, how)
            race = self.shared.may_write(access, self.clocks)
            if race is not None:
                raise self._shared_race(race, access, "writes", self.shared)
            again = self.shared.wrote(access, self.clocks)
            if again is not None and not strong:
                self._same_cell(access, data[first : first + len(lanes)], self.shared)

    def _same_cell(self, access: Access, data: Array, space: Any) -> None:
        """Refuse different values that lanes store to a cell at once."""
        cell_bytes = space.cell_bytes
        values = np.ascontiguousarray(data).reshape(-1, cell_bytes)
        held: dict[int, int] = {}
        for i, cell in enumerate(access.cells.tolist()):
            other = held.setdefault(cell, i)
            if values[other].tobytes() != values[i].tobytes():
                place = self._place(space, cell)
                lane = self._row_of(access, i)
                raise report.same_cell(self, place, int(access.thread[other]), lane)

    def _place(self, space: Any, cell: int) -> str:
        if isinstance(space, SharedSpace):
            return f"shared memory + {cell * space.cell_bytes}"
        region = self.launch.memory.regions[self.launch.spaces.index(space)]
        return f"{region.name} + {cell * space.cell_bytes}"

    def _row_of(self, access: Access, row: int) -> int:
        """Return which lane of those that execute a row of an access belongs to."""
        return self._row(int(access.thread[row]))

    def _row(self, thread: int) -> int:
        group = self.launch.group
        threads = [lane.thread for lane in group.lanes] if group is not None else []
        return threads.index(thread) if thread in threads else 0

    def _shared_race(
        self, race: Race, access: Access, verb: str, space: SharedSpace
    ) -> report.RaceFault:
        cell = int(access.cells[race.row])
        return self._race(race, access, verb, self._place(space, cell), space.writes)

    def _race(
        self, race: Race, access: Access, verb: str, place: str, writes: Writes | None
    ) -> report.RaceFault:
        row, past, unfenced = self._row_of(access, race.row), race.past, False
        if access.how == ASYNC and past.wrote and writes is not None:
            cell = int(access.cells[race.row])
            thread = access.thread[race.row : race.row + 1]
            known = self.clocks.of(SEEN, thread, np.array([past.actor]))
            unfenced = bool(known[0] >= writes.epoch[cell])
        by = int(access.thread[race.row])
        return report.conflict(self, past, place, verb, by, row, unfenced=unfenced)

    def cluster_of(self, number: int) -> bool:
        """Return whether a block is of this one's cluster."""
        index = self.launch.blocks[number]
        return any(block.index == index for block in self.block.cluster)

    def read_products(self, thread: Array, address: Array, size_bytes: int) -> None:
        clocks, first = self.clocks, int(thread[0])
        for warp in range(first // WARP_SIZE, first // WARP_SIZE + 4):
            clocks.begin(warp)
        products = self._products(first)
        cells, _ = self.shared.find(address, size_bytes)
        actor = clocks.number * ACTORS + clocks.warpgroups + first // (4 * WARP_SIZE)
        access = Access(thread, cells, self.launch.site(), ASYNC, products.group, actor)
        products.open = True
        race = self.shared.read_by_products(access, clocks, first // (4 * WARP_SIZE))
        if race is not None:
            row, past = race
            cell = next(c for c in cells.tolist() if self.shared.writes.site[c] == past.site)
            one = Access(thread[row : row + 1], np.array([cell]), access.site, ASYNC, 0)
            raise self._shared_race(Race(0, past), one, "reads", self.shared)

    def _products(self, thread: int) -> Products:
        return self.products[thread // (4 * WARP_SIZE)]

    # global memory

    def read_global(
        self, thread: Array, address: Array, size_bytes: int, *, strong: bool = False
    ) -> None:
        self._read_global(thread, address, size_bytes, STRONG if strong else WEAK, None)

    def _read_global(
        self, thread: Array, address: Array, size_bytes: int, how: int, bar: Mbarrier | None
    ) -> None:
        for space, rows in self._by_buffer(thread, address, "reads"):
            access = self._access(thread[rows], address[rows], size_bytes, space, how)
            if bar is not None:
                access = Access(
                    access.thread, access.cells, access.site, how, bar.phases + 1, bar.actor
                )
            race = space.read(access, self.clocks)
            if race is not None:
                place = self._place(space, int(access.cells[race.row]))
                raise self._race(race, access, "reads", place, space.writes)

    def write_global(
        self, thread: Array, address: Array, data: Array, *, strong: bool = False
    ) -> None:
        how = STRONG if strong else WEAK
        for space, rows in self._by_buffer(thread, address, "writes"):
            access = self._access(thread[rows], address[rows], data.shape[1], space, how)
            race = space.write(access, self.clocks)
            if isinstance(race, Race):
                place = self._place(space, int(access.cells[race.row]))
                raise self._race(race, access, "writes", place, None)
            if race is not None and not strong:
                self._same_cell(access, data[rows], space)
        if self.launch.released and not strong:
            for one in address.tolist():
                self.launch.released.pop(one, None)

    def _by_buffer(
        self, thread: Array, address: Array, verb: str
    ) -> list[tuple[GlobalSpace, Array | slice]]:
        launch = self.launch
        owners = (address >> GAP_BITS).astype(np.int64) - 1
        first = int(owners[0])
        parts: list[tuple[int, Array | slice]] = [(first, slice(None))]
        if (owners != first).any():
            parts = [(int(o), np.flatnonzero(owners == o)) for o in np.unique(owners)]
        if launch.launched_early:
            for owner, rows in parts:
                ended = self.clocks.known[SEEN, thread[rows], self.clocks.before]
                if launch.changing[owner] and not ended.all():
                    row = self._row(int(thread[rows][ended == 0][0]))
                    raise report.launched_before(launch.memory.regions[owner].name, verb, row)
        return [(launch.spaces[owner], rows) for owner, rows in parts]


def _by_warp(thread: Array, address: Array) -> list[tuple[int, Array, Array]]:
    """Return the lanes of each warp, the first of their rows and their addresses."""
    if len(thread) > len(address):
        thread = thread[: len(address)]
    first, last = int(thread[0]) // WARP_SIZE, int(thread[-1]) // WARP_SIZE
    if first == last:
        return [(0, thread, address)]
    warps = thread // WARP_SIZE
    parts = []
    for warp in range(first, last + 1):
        rows = np.flatnonzero(warps == warp)
        if rows.size:
            parts.append((int(rows[0]), thread[rows], address[rows]))
    return parts
