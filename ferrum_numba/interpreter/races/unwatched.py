"""What a block tells of its accesses and its synchronisation, to nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ferrum_numba.interpreter.barriers import Barrier, Mbarrier
from ferrum_numba.interpreter.memory import Array

# strength and meaning of an access to global memory that several threads make at once
RELAXED, RELEASE, ACQ_REL = "relaxed", "release", "acq_rel"


class Unwatched:
    """The events of a block that matter to a detector of races; here each of them is ignored.

    thread: the lanes that take part, [n] int64
    """

    def enter(self, group: Any) -> None:
        """Lanes begin an instruction together."""

    def leave(self, group: Any, results: Sequence[Any]) -> Sequence[Any]:
        """They have executed it; return what the lanes get."""
        return results

    # accesses

    def read_shared(self, thread: Array, address: Array, size_bytes: int) -> None:
        """Lanes read the block's shared memory."""

    def write_shared(
        self, thread: Array, address: Array, data: Array, *, strong: bool = False
    ) -> None:
        """Lanes write, or with strong semantics change, the block's shared memory."""

    def read_products(self, thread: Array, address: Array, size_bytes: int) -> None:
        """Products of a warpgroup read the block's shared memory."""

    def read_cluster(self, thread: int, block: Any, address: int, size_bytes: int) -> None:
        """A lane reads shared memory of a block of the cluster."""

    def write_cluster(self, thread: int, block: Any, address: int, data: Array) -> None:
        """A lane writes shared memory of a block of the cluster."""

    def read_global(
        self, thread: Array, address: Array, size_bytes: int, *, strong: bool = False
    ) -> None:
        """Lanes read global memory."""

    def write_global(
        self, thread: Array, address: Array, data: Array, *, strong: bool = False
    ) -> None:
        """Lanes write global memory."""

    def update(self, thread: Array, address: Array, order: str) -> None:
        """Lanes change four bytes of global memory atomically."""

    def acquire(self, thread: Array, address: Array) -> None:
        """Lanes have read four bytes that somebody releases."""

    def release(self, thread: Array, address: Array) -> None:
        """Lanes have stored four bytes that somebody acquires."""

    def visit(self, thread: int, block: Any) -> None:
        """A lane uses shared memory of a block of the cluster, or an mbarrier there."""

    def element(self, array: Any, index: Any, *, writes: bool) -> None:
        """The lane that runs reads or writes an element of a static shared array.

        array: whose `marks` are the detector's; the caller's caller is the kernel
        """

    def ended(self) -> None:
        """All lanes of the block have returned."""

    # copies

    def copy_began(self, thread: Array, address: Array, size_bytes: int) -> int:
        """Lanes begin a `cp.async`; return the number of its place in the source."""
        return 0

    def copy_waited(self, thread: Array, address: Array, size_bytes: int, site: int) -> None:
        """Lanes have waited for their `cp.async`."""

    def bulk_began(
        self, thread: int, block: Any, address: Array, size_bytes: int, bar: Mbarrier
    ) -> int:
        """A lane begins a bulk copy to a block of the cluster; return the number of its place."""
        return 0

    def bulk_reads(self, thread: int, address: Array, size_bytes: int, bar: Mbarrier) -> None:
        """A bulk copy reads global memory."""

    def landed(
        self, address: Array, size_bytes: int, site: int, bar: Mbarrier, *, bulk: bool = True
    ) -> None:
        """A copy that an mbarrier counts has arrived in this block's shared memory."""

    # synchronisation

    def arrive(self, barrier: Barrier | Mbarrier, thread: Array, *, orders: bool = True) -> None:
        """Lanes arrive at a barrier; orders: whether what they wrote becomes visible."""

    def leave_barrier(self, barrier: Barrier, thread: Array) -> None:
        """Lanes go on from a barrier."""

    def pass_phase(self, bar: Mbarrier, thread: Array) -> None:
        """Lanes have seen a phase of an mbarrier end."""

    def made(self, bar: Mbarrier, thread: Array) -> None:
        """A lane has initialised an mbarrier."""

    def uses(self, bar: Mbarrier, thread: Array, *, copies: bool = False) -> None:
        """Lanes, or copies that they begin, use an mbarrier."""

    def fence_init(self, thread: Array) -> None:
        """Lanes execute `fence.mbarrier_init`."""

    def fence(self, thread: Array) -> None:
        """Lanes execute a fence of the GPU's scope."""

    def fence_proxy(self, thread: Array) -> None:
        """Lanes execute `fence.proxy.async`."""

    def sync_warp(self, thread: Array) -> None:
        """The lanes of a warp execute `bar.warp.sync`."""

    def wait_for_launch(self, thread: Array) -> None:
        """Lanes execute `griddepcontrol.wait`."""

    def publish_map(self, thread: Array, address: int) -> None:
        """A warp has published a tensor map."""

    def acquire_map(self, thread: Array, address: Array) -> None:
        """Lanes acquire tensor maps."""

    def uses_map(self, thread: Array, address: Array) -> None:
        """Lanes begin copies by tensor maps."""

    # products

    def fence_products(self, thread: Array) -> None:
        """A warpgroup executes `wgmma.fence`."""

    def commit_products(self, thread: Array) -> None:
        """A warpgroup commits its products."""

    def wait_products(self, thread: Array, pending: int) -> None:
        """A warpgroup waits until at most `pending` groups of its products run."""


UNWATCHED = Unwatched()
