"""What warps do, counted by the line of the source that they stand at."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from greenlet import getcurrent

from ferrum_numba.interpreter.barriers import Mbarrier
from ferrum_numba.interpreter.lane import MARK, Lane
from ferrum_numba.interpreter.memory import Array
from ferrum_numba.interpreter.races.unwatched import Unwatched
from ferrum_numba.interpreter.trace import opcodes
from ferrum_numba.interpreter.trace.elements import Elements
from ferrum_numba.interpreter.trace.flight import Flight
from ferrum_numba.interpreter.trace.lines import SHARED, Kind, Line
from ferrum_numba.interpreter.trace.requests import (
    WARP_SIZE,
    Cost,
    bulk_sectors,
    sectors,
    wavefronts,
)

if TYPE_CHECKING:
    from ferrum_numba.interpreter.block import Block
    from ferrum_numba.interpreter.rebind import SharedArray
    from ferrum_numba.interpreter.warp import Group

# what an operand that switches a lane off is named
_PREDICATE = "pred"
_MATRICES: dict[Kind, tuple[str, Kind]] = {
    "ld.shared": ("ld", "ldmatrix"),
    "st.shared": ("st", "stmatrix"),
}


class _Access(NamedTuple):
    """Accesses of lanes at once, one an address."""

    kind: Kind
    thread: Array
    address: Array
    size_bytes: int


class Tracer:
    """What the launches that it watches did; hand it to `interpreter.run` as `trace`."""

    def __init__(self) -> None:
        self.num_blocks = 0
        self.num_warps = 0
        # bytes of copies that a block had in flight at most: its warps' own, and its bulk copies
        self.in_flight = 0
        self._lines: dict[tuple[str, int], Line] = {}
        self._places: dict[tuple[Any, int], Line] = {}

    @property
    def lines(self) -> list[Line]:
        """The lines at which something was executed, file by file."""
        return [line for _, line in sorted(self._lines.items())]

    def block(self, block: Block) -> BlockTrace:
        """Return what counts for a block that begins."""
        self.num_blocks += 1
        self.num_warps += -(-block.num_threads // WARP_SIZE)
        return BlockTrace(self)

    def line_of(self, frame: FrameType | None) -> Line:
        """Return the line of the kernel, or of a function it calls, that a frame stands at."""
        while frame is not None and MARK not in frame.f_globals:
            frame = frame.f_back
        assert frame is not None
        key = (frame.f_code, frame.f_lasti)
        line = self._places.get(key)
        if line is None:
            place = (frame.f_code.co_filename, frame.f_lineno)
            line = self._places[key] = self._lines.setdefault(place, Line(*place))
        return line


class BlockTrace(Unwatched):
    """What one block does; an instruction that must wait counts once, when it has come through."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.flight = Flight()
        self._accesses: list[_Access] = []
        self._group: Group | None = None
        self._copies = False
        self._elements: dict[int, Elements] = defaultdict(Elements)

    # instructions

    def enter(self, group: Group) -> None:
        self._group, self._copies = group, False
        self._accesses.clear()
        self._end_elements(group.lanes[0].thread // WARP_SIZE)

    def leave(self, group: Group, results: Sequence[Any]) -> Sequence[Any]:
        on = _lanes_on(group)
        for line, threads in self._by_line(group.lanes):
            self._count(line, group, threads, on)
        return results

    def _by_line(self, lanes: list[Lane]) -> Iterator[tuple[Line, Array]]:
        """Yield the threads at each line: at two lines a GPU executes two instructions."""
        found: dict[int, tuple[Line, list[int]]] = {}
        for lane in lanes:
            line = self.tracer.line_of(lane.gr_frame)
            found.setdefault(id(line), (line, []))[1].append(lane.thread)
        for line, threads in found.values():
            yield line, np.array(threads)

    def _count(self, line: Line, group: Group, threads: Array, on: set[int]) -> None:
        plan = group.plan
        warps = len(np.unique(threads // WARP_SIZE))
        line.executed += warps
        line.instructions += warps * opcodes.count(plan)
        line.here += len(threads)
        line.on += len(on.intersection(threads.tolist()))
        line.for_one &= opcodes.of_one_lane(plan)
        waits = opcodes.waits(plan)
        line.waits += warps * waits
        if waits or self._copies:
            line.in_flight = max(line.in_flight, self.flight.of(int(threads[0]) // WARP_SIZE))
        if not opcodes.is_uncounted(plan):
            for access in self._unique():
                self._count_access(line, group, access, threads)

    def _unique(self) -> Iterator[_Access]:
        """Yield the accesses; the twin of a longer instruction may load the same again."""
        seen = set()
        for access in self._accesses:
            key = (access.kind, access.address.tobytes(), access.size_bytes)
            if not access.kind.startswith("ld") or key not in seen:
                yield access
            seen.add(key)

    def _count_access(self, line: Line, group: Group, access: _Access, threads: Array) -> None:
        kind = access.kind
        if self._copies and kind == "ld.global":
            kind = "cp.async"
        verb, matrix = _MATRICES.get(kind, ("", kind))
        if verb and opcodes.is_matrix(group.plan, verb):
            kind = matrix
        here = np.isin(access.thread, threads)
        for warp in np.unique(access.thread[here] // WARP_SIZE):
            rows = here & (access.thread // WARP_SIZE == warp)
            lane, address = access.thread[rows] % WARP_SIZE, access.address[rows]
            line.of(kind).add(_cost(kind, lane, address, access.size_bytes), len(address))

    # accesses

    def read_shared(self, thread: Array, address: Array, size_bytes: int) -> None:
        self._accesses.append(_Access("ld.shared", thread, address, size_bytes))

    def write_shared(
        self, thread: Array, address: Array, data: Array, *, strong: bool = False
    ) -> None:
        kind: Kind = "red.shared" if strong else "st.shared"
        self._accesses.append(_Access(kind, thread, address, data.shape[1]))

    def read_global(
        self, thread: Array, address: Array, size_bytes: int, *, strong: bool = False
    ) -> None:
        self._accesses.append(_Access("ld.global", thread, address, size_bytes))

    def write_global(
        self, thread: Array, address: Array, data: Array, *, strong: bool = False
    ) -> None:
        self._accesses.append(_Access("st.global", thread, address, data.shape[1]))

    def update(self, thread: Array, address: Array, order: str) -> None:
        self._accesses.append(_Access("red.global", thread, address, 4))

    def element(self, array: SharedArray, index: Any, *, writes: bool) -> None:
        thread: int = getcurrent().thread
        line = self.tracer.line_of(sys._getframe(2))
        self._elements[thread // WARP_SIZE].add(line, array, thread, index, writes=writes)

    def _end_elements(self, warp: int) -> None:
        for one in self._elements[warp].take():
            line, lanes = one.line, len(one.thread)
            line.executed, line.instructions = line.executed + 1, line.instructions + 1
            line.here, line.on, line.for_one = line.here + lanes, line.on + lanes, False
            cost = _cost(one.kind, one.threads % WARP_SIZE, one.address, one.size_bytes)
            line.of(one.kind).add(cost, lanes)

    def ended(self) -> None:
        for warp in list(self._elements):
            self._end_elements(warp)
        self.tracer.in_flight = max(self.tracer.in_flight, self.flight.most)

    # copies

    def copy_began(self, thread: Array, address: Array, size_bytes: int) -> int:
        self._copies = True
        self._accesses.append(_Access("cp.async to shared", thread, address, size_bytes))
        warp = int(thread[0]) // WARP_SIZE
        self.flight.begin(warp, len(address) * size_bytes)
        # comes back as the copy's site
        return warp

    def copy_waited(self, thread: Array, address: Array, size_bytes: int, site: int) -> None:
        self.flight.end(site, len(address) * size_bytes)

    def bulk_reads(self, thread: int, address: Array, size_bytes: int, bar: Mbarrier) -> None:
        assert self._group is not None
        lane = next(one for one in self._group.lanes if one.thread == thread)
        line = self.tracer.line_of(lane.gr_frame)
        line.of("cp.async.bulk").add(bulk_sectors(address, size_bytes), 1)

    def bulk_began(
        self, thread: int, block: Block, address: Array, size_bytes: int, bar: Mbarrier
    ) -> int:
        self._copies = True
        watch: Any = block.watch
        watch.flight.begin_bulk(len(address) * size_bytes)
        return 0

    def landed(
        self, address: Array, size_bytes: int, site: int, bar: Mbarrier, *, bulk: bool = True
    ) -> None:
        size = len(address) * size_bytes
        if bulk:
            self.flight.end_bulk(size)
        else:
            self.flight.end(site, size)


def _lanes_on(group: Group) -> set[int]:
    """Return the threads that no predicate switches off."""
    threads = [lane.thread for lane in group.lanes]
    names = group.plan.names
    if _PREDICATE not in names or group.operands is None:
        return set(threads)
    values = group.operands[names.index(_PREDICATE)]
    return {thread for thread, value in zip(threads, values, strict=True) if value}


def _cost(kind: Kind, lane: Array, address: Array, size_bytes: int) -> Cost:
    if kind in SHARED:
        return wavefronts(lane, address, size_bytes, pairs=kind == "ld.shared")
    return sectors(address, size_bytes)
