"""What is said of a race: both lines, the kind, and what would order them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ferrum_numba.errors import RaceError
from ferrum_numba.interpreter.memory import Fault
from ferrum_numba.interpreter.races.clocks import ACTORS, WARP_SIZE
from ferrum_numba.interpreter.races.shadow import Past

if TYPE_CHECKING:
    from ferrum_numba.interpreter.races.accesses import Accesses


class RaceFault(Fault):
    """A race, before it is known where: `row` is the lane that made the second access."""

    error = RaceError


_BARRIER = (
    "a barrier between the two: cuda.syncthreads(), bar_sync, or an arrival at an mbarrier by the "
    "one and a wait for it by the other"
)

_FENCE = (
    "fence_proxy_async() or fence_proxy_async_shared() between the two: wgmma and bulk copies do "
    "not see what ordinary stores and cp.async wrote without it"
)


def conflict(
    watch: Accesses,
    past: Past,
    place: str,
    verb: str,
    thread: int,
    row: int = 0,
    *,
    unfenced: bool = False,
) -> RaceFault:
    """Return the error of an access that an earlier one races with.

    place:    what it touches, in words
    verb:     "reads", "writes" or "copies to"
    thread:   who makes the access, the row-th of the lanes that execute it
    unfenced: whether the lane sees what was written, and only the async proxy does not
    """
    kind = {(True, True): "write-after-write", (True, False): "read-after-write"}.get(
        (past.wrote, verb != "reads"), "write-after-read"
    )
    site = watch.launch.sites[past.site]
    before = "wrote" if past.wrote else "read"
    return RaceFault(
        f"{verb} {place}, which {_who(watch, past)} {before} at {site}, with nothing that orders "
        f"the two ({kind}); missing: {_FENCE if unfenced else _missing(watch, past, thread)}",
        row,
    )


def launched_before(name: str, verb: str, row: int) -> RaceFault:
    """Return the error of an access that the launch before may still conflict with."""
    doing = "writing" if verb == "reads" else "reading or writing"
    return RaceFault(
        f"{verb} buffer {name}, which the launch before may still be {doing}; missing: "
        "griddepcontrol_wait() before it, in this thread or in one that a barrier orders before it",
        row,
    )


def same_cell(watch: Accesses, place: str, other: int, row: int) -> RaceFault:
    """Return the error of two lanes that store different values to one address at once."""
    return RaceFault(
        f"writes {place}, to which thread {other} of the same warp stores another value in the "
        "same instruction (write-after-write); missing: one lane that stores, or an atomic",
        row,
    )


def unseen_mbarrier(maker: int, row: int, *, fenced: bool) -> RaceFault:
    """Return the error of an mbarrier that a lane need not see initialised."""
    missing = "a barrier" if fenced else "fence_mbarrier_init() by that thread and a barrier"
    return RaceFault(
        f"uses an mbarrier that thread {maker} initialised, with nothing that orders the two; "
        f"missing: {missing} between the two",
        row,
    )


def unfenced_mbarrier(maker: int, row: int) -> RaceFault:
    """Return the error of an mbarrier that a copy need not see initialised."""
    return RaceFault(
        f"begins a copy that counts at an mbarrier which thread {maker} initialised; missing: "
        "fence_mbarrier_init() by that thread after mbarrier_init(), before a barrier",
        row,
    )


def map_not_acquired(row: int) -> RaceFault:
    """Return the error of a copy by a tensor map that was published since it was acquired."""
    return RaceFault(
        "copies by a tensor map that was published and not acquired since; missing: "
        "acquire_tensor_map() by this thread, or by one that a barrier orders before it",
        row,
    )


def left_early(index: tuple[int, int, int], site: str) -> RaceError:
    """Return the error of a block that ends while another may still use its shared memory."""
    return RaceError(
        "block ({}, {}, {}) ends with nothing that orders that after a use of its shared memory by "
        "another block of the cluster, at {}; missing: cluster_arrive() and cluster_wait() by both "
        "after it".format(*index, site)
    )


def has_left(index: tuple[int, int, int]) -> RaceFault:
    """Return the error of a use of shared memory of a block that has ended."""
    return RaceFault(
        "uses shared memory of block ({}, {}, {}), which has ended; missing: cluster_arrive() and "
        "cluster_wait() by both before it ends".format(*index)
    )


def _who(watch: Accesses, past: Past) -> str:
    number, column = divmod(past.actor, ACTORS)
    block = watch.launch.blocks[number]
    of = "" if number == watch.clocks.number else " of block ({}, {}, {})".format(*block)
    clocks = watch.clocks
    if column < clocks.before:
        return f"thread {column}{of}"
    if column < clocks.warpgroups + clocks.num_warpgroups:
        return f"wgmma of warpgroup {column - clocks.warpgroups}{of}"
    return f"a copy{of} that an mbarrier counts, begun"


def _missing(watch: Accesses, past: Past, thread: int) -> str:
    number, column = divmod(past.actor, ACTORS)
    clocks = watch.clocks
    if clocks.before < column < clocks.warpgroups + clocks.num_warpgroups:
        return "wgmma_commit() and wgmma_wait() by all that read, and what tells this thread of it"
    if column >= clocks.warpgroups + clocks.num_warpgroups:
        return "a wait for that phase of the mbarrier, by this thread or one before it"
    if number != clocks.number:
        if watch.cluster_of(number):
            return "cluster_arrive() after the one and cluster_wait() before the other"
        return (
            "a release by the one (red_add_release_gpu, st_release_gpu, after a barrier of its "
            "block) and an acquire by the other (ld_acquire_gpu, before a barrier of its own)"
        )
    if column // WARP_SIZE == thread // WARP_SIZE:
        if column == thread:
            return "cp_async_wait() before it, for the copy that this thread began"
        return "bar_warp_sync() or cuda.syncwarp() between the two"
    return _BARRIER
