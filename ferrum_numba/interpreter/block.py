"""What the threads of a block share: shared memory, barriers, asynchronous copies, its cluster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ferrum_numba.interpreter.barriers import Barrier, Copy, Mbarrier
from ferrum_numba.interpreter.memory import (
    IN_FLIGHT,
    MBARRIER,
    UNWRITTEN,
    Array,
    Fault,
    GlobalMemory,
    Region,
)
from ferrum_numba.interpreter.races.unwatched import UNWATCHED, Unwatched

if TYPE_CHECKING:
    from ferrum_numba.interpreter.warp import Warp

# the driver keeps the first 1024 bytes of a block's shared memory, so 0 is no address of it
SMEM_BASE = 1024
# an address of block r of a cluster, as `mapa` makes it, is (r + 1) << 24 above the block's own
_RANK_BITS = 24
Index = tuple[int, int, int]


class Dim3(NamedTuple):
    """Numba's threadIdx, blockIdx, blockDim and gridDim."""

    x: Any
    y: Any
    z: Any


@dataclass
class Machine:
    """What all blocks of a launch share."""

    memory: GlobalMemory
    # counts what could let a waiting lane go on: stores, arrivals, landed copies, ended lanes
    events: int = 0
    # the detector of races, or what counts, or None
    watch: Any = None
    # counts the turns of the scheduler; a polling lane reads once a turn
    turn: int = 0
    # counts the polling lanes that were told to let the others go first
    pauses: int = 0


@dataclass
class _AsyncCopy:
    """One `cp.async` of a group of lanes: data that lands when its lane waits for its group."""

    thread: Array
    index: Array
    data: Array
    group: Array
    site: Array


@dataclass
class Block:
    """The state that the threads of one block share."""

    machine: Machine
    index: Index
    num_threads: int
    smem_bytes: int
    rank: int
    cluster: list[Block]
    cluster_barrier: Barrier

    def __post_init__(self) -> None:
        self.shared = Region("shared memory", self.smem_bytes, UNWRITTEN, SMEM_BASE)
        # static shared arrays, by the place in the source that makes them
        self.shared_arrays: dict[Any, Any] = {}
        # special registers: what each thread reads, by the plan of the instruction
        self.registers: dict[Any, Sequence[Any]] = {}
        self.barriers: dict[int, Barrier] = {}
        self.mbarriers: dict[int, Mbarrier] = {}
        self._copies: dict[int, list[_AsyncCopy]] = defaultdict(list)
        self._commits = np.zeros(self.num_threads, np.int64)
        self._paused: dict[int, int] = {}
        # all of its warps, of which one may ask what the others would do
        self.warps: list[Warp] = []
        self.live = self.num_threads
        # of those that ended, who did so by a `return` and is not waited for
        self.left = 0
        self.blockIdx = Dim3(*map(np.int32, self.index))
        self.watch: Unwatched = UNWATCHED
        if self.machine.watch is not None:
            self.watch = self.machine.watch.block(self)

    def pause(self, thread: Array) -> bool:
        """Return whether these lanes, which poll, must first let the others have their turn."""
        first = int(thread[0])
        if self._paused.setdefault(first, self.machine.turn) == self.machine.turn:
            self.machine.pauses += 1
            return True
        del self._paused[first]
        return False

    # barriers

    def sync(self, thread: Array, number: int, num_threads: int | None) -> bool:
        """Arrive at a barrier, or ask again; return whether these lanes may go on."""
        barrier = self._barrier(number, num_threads)
        first = int(thread[0])
        if first not in barrier.waiting:
            barrier.waiting[first] = barrier.generation
            self.arrive(thread, number, num_threads)
        if not barrier.wait(first):
            return False
        self.watch.leave_barrier(barrier, thread)
        return True

    def arrive(self, thread: Array, number: int, num_threads: int | None) -> None:
        """Arrive at a barrier and go on."""
        barrier = self._barrier(number, num_threads)
        self.watch.arrive(barrier, thread)
        barrier.arrive(len(thread))
        self.machine.events += 1

    def _barrier(self, number: int, num_threads: int | None) -> Barrier:
        legal = range(32, self.num_threads + 1, 32)
        if num_threads is not None and num_threads not in legal:
            raise Fault(
                f"barrier {number} is given {num_threads} threads; it needs a multiple of 32 up "
                f"to {self.num_threads}"
            )
        if not 0 <= number < 16:
            raise Fault(f"barrier {number} does not exist; a block has barriers 0 to 15")
        barrier = self.barriers.get(number)
        if barrier is None or not (barrier.arrived or barrier.waiting):
            name = f"barrier {number}"
            expected = (
                (lambda: self.num_threads - self.left)
                if num_threads is None
                else (lambda: num_threads)
            )
            barrier = self.barriers[number] = Barrier(name, expected)
        elif num_threads is not None and barrier.expected() != num_threads:
            raise Fault(
                f"barrier {number} is given {num_threads} threads; others wait at it for "
                f"{barrier.expected()}"
            )
        return barrier

    def cluster_arrive(self, thread: Array, *, orders: bool = True) -> None:
        """Arrive at the barrier of the cluster and go on; orders: what was written before too."""
        key = self._in_cluster(thread)
        if key in self.cluster_barrier.waiting:
            raise Fault("arrives at the cluster barrier twice without waiting at it")
        self.cluster_barrier.waiting[key] = self.cluster_barrier.generation
        self.watch.arrive(self.cluster_barrier, thread, orders=orders)
        self.cluster_barrier.arrive(len(thread))
        self.machine.events += 1

    def cluster_wait(self, thread: Array) -> bool:
        """Return whether all threads of the cluster have arrived."""
        key = self._in_cluster(thread)
        if key not in self.cluster_barrier.waiting:
            raise Fault("waits at the cluster barrier without having arrived")
        if not self.cluster_barrier.wait(key):
            return False
        self.watch.leave_barrier(self.cluster_barrier, thread)
        return True

    def _in_cluster(self, thread: Array) -> int:
        return self.rank * self.num_threads + int(thread[0])

    # cluster addresses

    def map_address(self, address: Array, rank: Array) -> Array:
        """Return the cluster addresses of the same place in the blocks of these ranks."""
        if int(rank.max()) >= len(self.cluster):
            size = len(self.cluster)
            raise Fault(f"maps to rank {int(rank.max())} of a cluster of {size} blocks")
        place = address & np.uint32((1 << _RANK_BITS) - 1)
        return place | ((rank + np.uint32(1)) << np.uint32(_RANK_BITS))

    def resolve(self, address: int) -> tuple[Block, int]:
        """Return the block that a cluster address lies in, and the address within it."""
        rank = address >> _RANK_BITS
        if rank > len(self.cluster):
            raise Fault(f"address {address:#x} lies in no block of the cluster")
        return self.cluster[rank - 1] if rank else self, address & ((1 << _RANK_BITS) - 1)

    def load_cluster(self, thread: Array, address: Array, size_bytes: int) -> Array:
        """Return [n, size_bytes] uint8 from shared memory anywhere in the cluster."""
        rows = []
        for lane, one in zip(thread.tolist(), address.tolist(), strict=True):
            owner, place = self.resolve(one)
            self.watch.read_cluster(lane, owner, place, size_bytes)
            rows.append(owner.shared.load(np.array([place], np.uint32), size_bytes))
        return np.concatenate(rows)

    def store_cluster(self, thread: Array, address: Array, data: Array) -> None:
        """Write [n, size_bytes] uint8 to shared memory anywhere in the cluster."""
        for lane, one, row in zip(thread.tolist(), address.tolist(), data, strict=True):
            owner, place = self.resolve(one)
            self.watch.write_cluster(lane, owner, place, row)
            owner.shared.store(np.array([place], np.uint32), row[None])
        self.machine.events += 1

    # cp.async

    def copy_async(self, thread: Array, address: Array, data: Array) -> None:
        """Begin to write [n, size_bytes] uint8 to shared memory; it lands in `wait_copies`."""
        index = self.shared.claim(address, data.shape[1], IN_FLIGHT, "copies to")
        site = np.full(len(thread), self.watch.copy_began(thread, address, data.shape[1]))
        copy = _AsyncCopy(thread, index, data, self._commits[thread], site)
        self._copies[int(thread[0]) // 32].append(copy)

    def commit_copies(self, thread: Array) -> None:
        """Close the group of copies that each thread has begun."""
        self._commits[thread] += 1

    def wait_copies(self, thread: Array, in_flight: int) -> None:
        """Land all but the latest `in_flight` groups of these threads, which are of one warp."""
        if in_flight < 0:
            raise Fault(f"waits for all but {in_flight} groups of copies; 0 is the fewest")
        for copy in self._take_copies(thread, in_flight):
            size_bytes, address = copy.data.shape[1], self._address_of(copy.index, copy.data)
            self.watch.copy_waited(copy.thread, address, size_bytes, int(copy.site[0]))

    def arrive_by_copies(self, thread: Array, bars: Array) -> None:
        """Land all copies of these threads, and count an arrival of each, at an mbarrier, in."""
        self.commit_copies(thread)
        for copy in self._take_copies(thread, 0):
            for i, row in zip(copy.thread.tolist(), range(len(copy.thread)), strict=True):
                bar = self.mbarrier(int(bars[np.flatnonzero(thread == i)[0]]))
                address = self._address_of(copy.index[row : row + 1], copy.data)
                size_bytes, site = copy.data.shape[1], int(copy.site[row])
                self.watch.landed(address, size_bytes, site, bar, bulk=False)
        for i, address in zip(thread.tolist(), bars.tolist(), strict=True):
            self.watch.uses(self.mbarrier(address), np.array([i]))
            self.mbarrier(address).arrive()
        self.machine.events += 1

    def _address_of(self, index: Array, data: Array) -> Array:
        address: Array = (index * data.shape[1] + self.shared.base).astype(np.uint32)
        return address

    def _take_copies(self, thread: Array, in_flight: int) -> list[_AsyncCopy]:
        """Land all but the latest `in_flight` groups of these threads; return what has landed."""
        warp = int(thread[0]) // 32
        bound = np.full(32, -1)
        bound[thread % 32] = self._commits[thread] - in_flight
        landed: list[_AsyncCopy] = []
        remaining: list[_AsyncCopy] = []
        for copy in self._copies[warp]:
            lands = copy.group < bound[copy.thread % 32]
            for rows, parts in ((lands, landed), (~lands, remaining)):
                if rows.any():
                    parts.append(_AsyncCopy(*(part[rows] for part in vars(copy).values())))
        for copy in landed:
            self.shared.land(copy.index, copy.data)
        self._copies[warp] = remaining
        return landed

    # mbarrier and cp.async.bulk

    def mbarrier_init(self, thread: Array, address: int, count: int) -> None:
        """Make 8 bytes of shared memory an mbarrier of `count` arrivals a phase."""
        if count == 0:
            raise Fault("an mbarrier needs at least 1 arrival a phase; got 0")
        if address not in self.mbarriers:
            where = np.array([address], np.uint32)
            self.shared.claim(where, 8, MBARRIER, "places an mbarrier of")
        self.mbarriers[address] = Mbarrier(count, count)
        self.watch.made(self.mbarriers[address], thread)

    def mbarrier(self, address: int) -> Mbarrier:
        """Return the mbarrier at an address of the cluster."""
        owner, place = self.resolve(address)
        found = owner.mbarriers.get(place)
        if found is None:
            raise Fault(f"no mbarrier was initialised at shared memory + {place - SMEM_BASE}")
        return found

    def mbarrier_arrive(self, thread: Array, address: int) -> None:
        """Count one arrival of a thread in; one in another block orders no writes."""
        found = self.mbarrier(address)
        owner, _ = self.resolve(address)
        self.watch.uses(found, thread)
        self.watch.visit(int(thread[0]), owner)
        self.watch.arrive(found, thread, orders=owner is self)
        found.arrive()
        self.machine.events += 1

    def mbarrier_expect(self, thread: Array, address: int, size_bytes: int) -> None:
        """Add to the bytes that copies must bring before the phase can end."""
        found = self.mbarrier(address)
        self.watch.uses(found, thread)
        found.expect(size_bytes)

    def phase_ended(self, address: int, parity: int) -> bool:
        """Return whether the phase of this parity has ended; copies land when it is asked."""
        found = self.mbarrier(address)
        if found.phase == parity & 1:
            for owner, copy in found.take_copies():
                owner.shared.land(copy.index, copy.data)
                places = self._address_of(copy.index, copy.data)
                owner.watch.landed(places, copy.data.shape[1], copy.site, found)
                found.complete(copy.data.size)
                self.machine.events += 1
        return found.phase != parity & 1

    def pass_phases(self, thread: Array, addresses: Array) -> None:
        """Let threads go on from mbarriers whose phases have ended."""
        for address in set(addresses.tolist()):
            found, lanes = self.mbarrier(address), thread[addresses == address]
            self.watch.uses(found, lanes)
            self.watch.pass_phase(found, lanes)

    def copy_bulk(self, thread: int, address: int, source: int, size_bytes: int, bar: int) -> None:
        """Begin to copy from global memory to shared memory, counted by an mbarrier."""
        if size_bytes % 16 or source % 16 or size_bytes == 0:
            raise Fault(
                f"copies {size_bytes} bytes from an address {source % 16} past a multiple of 16; "
                "both must be multiples of 16"
            )
        sources = np.arange(source, source + size_bytes, 16, dtype=np.uint64)
        self.deliver(thread, address, self.load_bulk(thread, sources, 16, bar), bar)

    def load_bulk(self, thread: int, sources: Array, size_bytes: int, bar: int) -> Array:
        """Return [n, size_bytes] uint8 that a bulk copy reads from global memory."""
        data = self.machine.memory.load(sources, size_bytes)
        self.watch.bulk_reads(thread, sources, size_bytes, self.mbarrier(bar))
        return data

    def deliver(self, thread: int, address: int, data: Array, bar: int) -> None:
        """Begin to write [n, 16] uint8 in a row to shared memory, counted by an mbarrier."""
        owner, place = self.resolve(address)
        places = np.arange(place, place + data.size, 16, dtype=np.uint32)
        index = owner.shared.claim(places, 16, IN_FLIGHT, "copies to")
        counts = self.mbarrier(bar)
        site = self.watch.bulk_began(thread, owner, places, 16, counts)
        counts.copies.append((owner, Copy(index, data, site)))

    def bulk_bytes_in_flight(self) -> int:
        """Return the bytes of bulk copies that have not landed."""
        return sum(c.data.size for bar in self.mbarriers.values() for _, c in bar.copies)
