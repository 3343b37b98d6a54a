"""Copies of a block, and its accesses to the shared memory of the cluster's other blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ferrum_numba.interpreter.barriers import Mbarrier
from ferrum_numba.interpreter.memory import Array
from ferrum_numba.interpreter.races import report
from ferrum_numba.interpreter.races.accesses import Accesses
from ferrum_numba.interpreter.races.clocks import ACTORS, RAN, WARP_SIZE
from ferrum_numba.interpreter.races.shadow import ASYNC, WEAK, Access
from ferrum_numba.interpreter.races.spaces import SharedSpace

if TYPE_CHECKING:
    from ferrum_numba.interpreter.block import Block


class Copies(Accesses):
    """Copies, and the cluster: who else writes a block's shared memory."""

    # distributed shared memory

    def _of_cluster(
        self, thread: int, block: Block, address: Array, size_bytes: int, how: int
    ) -> tuple[Access, SharedSpace]:
        watch: Any = block.watch
        space: SharedSpace = watch.shared
        thread_row = np.array([thread])
        access = self._access(np.repeat(thread_row, len(address)), address, size_bytes, space, how)
        return access, space

    def visit(self, thread: int, block: Block) -> None:
        if block is self.block:
            return
        if not block.live:
            raise report.has_left(block.index)
        epoch = self.clocks.begin(thread // WARP_SIZE)
        actor = self.clocks.number * ACTORS + thread
        watch: Any = block.watch
        watch.visitors[actor] = (epoch, self.launch.site())

    def ended(self) -> None:
        others = self.clocks.others() if self.visitors else {}
        for actor, (epoch, site) in self.visitors.items():
            row = others.get(actor // ACTORS)
            if row is None or row[RAN, actor % ACTORS] < epoch:
                raise report.left_early(self.block.index, self.launch.sites[site])

    def read_cluster(self, thread: int, block: Block, address: int, size_bytes: int) -> None:
        self.visit(thread, block)
        access, space = self._of_cluster(thread, block, np.array([address]), size_bytes, WEAK)
        race = space.read(access, self.clocks)
        if race is not None:
            raise self._shared_race(race, access, "reads", space)

    def write_cluster(self, thread: int, block: Block, address: int, data: Array) -> None:
        self.visit(thread, block)
        access, space = self._of_cluster(thread, block, np.array([address]), data.size, WEAK)
        race = space.may_write(access, self.clocks)
        if race is not None:
            raise self._shared_race(race, access, "writes", space)
        space.wrote(access, self.clocks)

    # copies

    def copy_began(self, thread: Array, address: Array, size_bytes: int) -> int:
        access = self._access(thread, address, size_bytes, self.shared, WEAK)
        race = self.shared.may_write(access, self.clocks)
        if race is not None:
            raise self._shared_race(race, access, "copies to", self.shared)
        return access.site

    def copy_waited(self, thread: Array, address: Array, size_bytes: int, site: int) -> None:
        cells, parts = self.shared.find(address, size_bytes)
        epoch = self.clocks.begin(int(thread[0]) // WARP_SIZE)
        rows = np.repeat(thread, parts) if parts > 1 else thread
        self.shared.wrote(Access(rows, cells, site, WEAK, epoch), self.clocks)

    def bulk_began(
        self, thread: int, block: Block, address: Array, size_bytes: int, bar: Mbarrier
    ) -> int:
        if not block.live:
            raise report.has_left(block.index)
        self.uses(bar, np.array([thread]), copies=True)
        access, space = self._of_cluster(thread, block, address, size_bytes, ASYNC)
        race = space.may_write(access, self.clocks)
        if race is not None:
            raise self._shared_race(race, access, "copies to", space)
        return access.site

    def bulk_reads(self, thread: int, address: Array, size_bytes: int, bar: Mbarrier) -> None:
        lanes = np.full(len(address), thread)
        self._read_global(lanes, address, size_bytes, ASYNC, bar)

    def landed(
        self, address: Array, size_bytes: int, site: int, bar: Mbarrier, *, bulk: bool = True
    ) -> None:
        cells, _ = self.shared.find(address, size_bytes)
        thread = np.zeros(len(cells), np.int64)
        how = ASYNC if bulk else WEAK
        self.shared.wrote(Access(thread, cells, site, how, bar.phases + 1, bar.actor), self.clocks)
