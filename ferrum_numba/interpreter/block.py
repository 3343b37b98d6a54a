"""What the threads of a block share: shared memory, barriers, asynchronous copies, its cluster."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    # counts the turns of the scheduler; a polling lane reads once a turn
    turn: int = 0


@dataclass
class _AsyncCopy:
    """One `cp.async` of a group of lanes: data that lands when its lane waits for its group."""

    thread: Array
    index: Array
    data: Array
    group: Array


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
        self.barriers: dict[int, Barrier] = {}
        self.mbarriers: dict[int, Mbarrier] = {}
        self._copies: dict[int, list[_AsyncCopy]] = defaultdict(list)
        self._commits = np.zeros(self.num_threads, np.int64)
        self._paused: dict[int, int] = {}
        self.live = self.num_threads
        # of those that ended, who did so by a `return` and is not waited for
        self.left = 0
        self.blockIdx = Dim3(*map(np.int32, self.index))

    def pause(self, thread: Array) -> bool:
        """Return whether these lanes, which poll, must first let the others have their turn."""
        first = int(thread[0])
        if self._paused.setdefault(first, self.machine.turn) == self.machine.turn:
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
        return barrier.wait(first)

    def arrive(self, thread: Array, number: int, num_threads: int | None) -> None:
        """Arrive at a barrier and go on."""
        self._barrier(number, num_threads).arrive(len(thread))
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

    def cluster_arrive(self, thread: Array) -> None:
        """Arrive at the barrier of the cluster and go on."""
        key = self._in_cluster(thread)
        if key in self.cluster_barrier.waiting:
            raise Fault("arrives at the cluster barrier twice without waiting at it")
        self.cluster_barrier.waiting[key] = self.cluster_barrier.generation
        self.cluster_barrier.arrive(len(thread))
        self.machine.events += 1

    def cluster_wait(self, thread: Array) -> bool:
        """Return whether all threads of the cluster have arrived."""
        key = self._in_cluster(thread)
        if key not in self.cluster_barrier.waiting:
            raise Fault("waits at the cluster barrier without having arrived")
        return self.cluster_barrier.wait(key)

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

    def load_cluster(self, address: Array, size_bytes: int) -> Array:
        """Return [n, size_bytes] uint8 from shared memory anywhere in the cluster."""
        rows = []
        for one in address:
            owner, place = self.resolve(int(one))
            rows.append(owner.shared.load(np.array([place], np.uint32), size_bytes))
        return np.concatenate(rows)

    def store_cluster(self, address: Array, data: Array) -> None:
        """Write [n, size_bytes] uint8 to shared memory anywhere in the cluster."""
        for one, row in zip(address, data, strict=True):
            owner, place = self.resolve(int(one))
            owner.shared.store(np.array([place], np.uint32), row[None])
        self.machine.events += 1

    # cp.async

    def copy_async(self, thread: Array, address: Array, data: Array) -> None:
        """Begin to write [n, size_bytes] uint8 to shared memory; it lands in `wait_copies`."""
        index = self.shared.claim(address, data.shape[1], IN_FLIGHT, "copies to")
        copy = _AsyncCopy(thread, index, data, self._commits[thread])
        self._copies[int(thread[0]) // 32].append(copy)

    def commit_copies(self, thread: Array) -> None:
        """Close the group of copies that each thread has begun."""
        self._commits[thread] += 1

    def wait_copies(self, thread: Array, in_flight: int) -> None:
        """Land all but the latest `in_flight` groups of these threads, which are of one warp."""
        warp = int(thread[0]) // 32
        bound = np.full(32, -1)
        bound[thread % 32] = self._commits[thread] - in_flight
        remaining = []
        for copy in self._copies[warp]:
            lands = copy.group < bound[copy.thread % 32]
            if lands.any():
                self.shared.land(copy.index[lands], copy.data[lands])
            if not lands.all():
                stays = ~lands
                remaining.append(_AsyncCopy(*(part[stays] for part in vars(copy).values())))
        self._copies[warp] = remaining

    # mbarrier and cp.async.bulk

    def mbarrier_init(self, address: int, count: int) -> None:
        """Make 8 bytes of shared memory an mbarrier of `count` arrivals a phase."""
        if count == 0:
            raise Fault("an mbarrier needs at least 1 arrival a phase; got 0")
        if address not in self.mbarriers:
            where = np.array([address], np.uint32)
            self.shared.claim(where, 8, MBARRIER, "places an mbarrier of")
        self.mbarriers[address] = Mbarrier(count, count)

    def mbarrier(self, address: int) -> Mbarrier:
        """Return the mbarrier at an address of the cluster."""
        owner, place = self.resolve(address)
        found = owner.mbarriers.get(place)
        if found is None:
            raise Fault(f"no mbarrier was initialised at shared memory + {place - SMEM_BASE}")
        return found

    def mbarrier_arrive(self, address: int) -> None:
        """Count one arrival in."""
        self.mbarrier(address).arrive()
        self.machine.events += 1

    def mbarrier_expect(self, address: int, size_bytes: int) -> None:
        """Add to the bytes that copies must bring before the phase can end."""
        self.mbarrier(address).expect(size_bytes)

    def phase_ended(self, address: int, parity: int) -> bool:
        """Return whether the phase of this parity has ended; copies land when it is asked."""
        found = self.mbarrier(address)
        if found.phase == parity & 1:
            for owner, copy in found.take_copies():
                owner.shared.land(copy.index, copy.data)
                found.complete(copy.data.size)
                self.machine.events += 1
        return found.phase != parity & 1

    def copy_bulk(self, address: int, source: int, size_bytes: int, bar: int) -> None:
        """Begin to copy from global memory to shared memory, counted by an mbarrier."""
        if size_bytes % 16 or source % 16 or size_bytes == 0:
            raise Fault(
                f"copies {size_bytes} bytes from an address {source % 16} past a multiple of 16; "
                "both must be multiples of 16"
            )
        data = self.machine.memory.load(np.array([source], np.uint64), size_bytes)
        self.deliver(address, data.reshape(-1, 16), bar)

    def deliver(self, address: int, data: Array, bar: int) -> None:
        """Begin to write [n, 16] uint8 in a row to shared memory, counted by an mbarrier."""
        owner, place = self.resolve(address)
        places = np.arange(place, place + data.size, 16, dtype=np.uint32)
        index = owner.shared.claim(places, 16, IN_FLIGHT, "copies to")
        self.mbarrier(bar).copies.append((owner, Copy(index, data)))

    def bulk_bytes_in_flight(self) -> int:
        """Return the bytes of bulk copies that have not landed."""
        return sum(c.data.size for bar in self.mbarriers.values() for _, c in bar.copies)
