"""Copies that run beside the threads, and the mbarriers that count them in.

`cp.async` (sm_80): each lane copies up to 16 bytes to shared memory, closes groups of its own
copies and waits for them. `cp.async.bulk` (sm_90): one lane copies a run of bytes, and an mbarrier
in shared memory counts arrivals and bytes; a phase ends when none of either is outstanding.
"""

from __future__ import annotations

import numpy as np

from ferrum_numba.errors import InterpreterError
from ferrum_numba.ptx.instruction import (
    BLOCKED,
    IMMEDIATE,
    U32,
    U64,
    Array,
    F32x4,
    Lanes,
    instruction,
)
from ferrum_numba.ptx.tensor_map import copy_box


def _copy(lanes: Lanes, smem: Array, gmem: Array, size_bytes: int) -> None:
    lanes.block.copy_async(lanes.thread, smem, lanes.load_global(gmem, size_bytes))


@instruction("cp.async.ca.shared.global [<smem>], [<gmem>], 4;", effect="memory")
def cp_async_4(lanes: Lanes, smem: U32, gmem: U64) -> None:
    """Begin to copy 4 bytes from global to shared memory.

    Source: PTX ISA, "Data Movement Instructions: cp.async".
    """
    _copy(lanes, smem, gmem, 4)


@instruction("cp.async.ca.shared.global [<smem>], [<gmem>], 8;", effect="memory")
def cp_async_8(lanes: Lanes, smem: U32, gmem: U64) -> None:
    """Begin to copy 8 bytes from global to shared memory; see `cp_async_4`."""
    _copy(lanes, smem, gmem, 8)


@instruction("cp.async.cg.shared.global [<smem>], [<gmem>], 16;", effect="memory")
def cp_async_16(lanes: Lanes, smem: U32, gmem: U64) -> None:
    """Begin to copy 16 bytes from global to shared memory, past L1; see `cp_async_4`."""
    _copy(lanes, smem, gmem, 16)


@instruction("cp.async.ca.shared.global [<smem>], [<gmem>], 16;", effect="memory")
def cp_async_16_ca(lanes: Lanes, smem: U32, gmem: U64) -> None:
    """Begin to copy 16 bytes from global to shared memory, through L1; see `cp_async_4`."""
    _copy(lanes, smem, gmem, 16)


# the minimum changes no shared address. Without it ptxas (13.0 and 13.5) splits the address into a
# lane's and a uniform register, and then puts the latter over half of the policy: an illegal
# instruction at run time, see docs/hardware.md#cache-hint
@instruction(
    """{
    .reg .b32 a;
    min.u32 a, <smem>, 0x7fffffff;
    cp.async.cg.shared.global.L2::cache_hint [a], [<gmem>], 16, <policy>;
    }""",
    effect="memory",
)
def cp_async_16_hint(lanes: Lanes, smem: U32, gmem: U64, policy: U64) -> None:
    """Begin to copy 16 bytes, with a policy for L2 from `createpolicy_evict_first`."""
    _copy(lanes, smem, gmem, 16)


@instruction(
    """{
    .reg .pred p;
    setp.ne.u32 p, <pred>, 0;
    @p cp.async.cg.shared.global [<smem>], [<gmem>], 16;
    }""",
    effect="memory",
)
def cp_async_16_if(lanes: Lanes, smem: U32, gmem: U64, pred: U32) -> None:
    """Begin to copy 16 bytes where pred is not 0; shared memory stays as it is elsewhere."""
    on = np.flatnonzero(pred)
    if on.size:
        data = lanes.only(on).load_global(gmem[on], 16)
        lanes.block.copy_async(lanes.thread[on], smem[on], data)


def _copy_zfill(lanes: Lanes, smem: Array, gmem: Array, src_bytes: Array) -> None:
    if int(src_bytes.max()) > 16:
        raise InterpreterError(f"copies {int(src_bytes.max())} bytes; 16 at most")
    past = int((gmem % np.uint64(16)).max())
    if past:
        # also where nothing is read
        raise InterpreterError(f"copies from an address {past} past a multiple of 16")
    data = np.zeros((len(smem), 16), np.uint8)
    for size_bytes in set(src_bytes.tolist()) - {0}:
        rows = np.flatnonzero(src_bytes == size_bytes)
        data[rows, :size_bytes] = lanes.only(rows).load_global(gmem[rows], size_bytes)
    lanes.block.copy_async(lanes.thread, smem, data)


@instruction("cp.async.cg.shared.global [<smem>], [<gmem>], 16, <src_bytes>;", effect="memory")
def cp_async_16_zfill(lanes: Lanes, smem: U32, gmem: U64, src_bytes: U32) -> None:
    """Begin to write 16 bytes: the first src_bytes (0 to 16) copied, the others zero."""
    _copy_zfill(lanes, smem, gmem, src_bytes)


@instruction("cp.async.ca.shared.global [<smem>], [<gmem>], 16, <src_bytes>;", effect="memory")
def cp_async_16_ca_zfill(lanes: Lanes, smem: U32, gmem: U64, src_bytes: U32) -> None:
    """Begin to write 16 bytes as `cp_async_16_zfill` does, through L1."""
    _copy_zfill(lanes, smem, gmem, src_bytes)


@instruction("cp.async.commit_group;", effect="memory")
def cp_async_commit(lanes: Lanes) -> None:
    """Close this lane's group of the copies it has begun; an empty group counts.

    Source: PTX ISA, "Data Movement Instructions: cp.async.commit_group".
    """
    lanes.block.commit_copies(lanes.thread)


@instruction("cp.async.wait_group <n>;", effect="memory")
def cp_async_wait(lanes: Lanes, n: IMMEDIATE) -> None:
    """Wait until at most the n latest of this lane's groups are in flight.

    The lane then sees its own copies; other lanes see them after a barrier.

    Source: PTX ISA, "Data Movement Instructions: cp.async.wait_group".
    """
    lanes.block.wait_copies(lanes.thread, n)


@instruction(
    "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [<bar>];", effect="memory", arch="sm_90"
)
def cp_async_mbarrier_arrive(lanes: Lanes, bar: U32) -> None:
    """Count one arrival in when all copies that this lane has begun have arrived.

    The arrival is one of those that `mbarrier_init` was told of; the lane does not wait. Before
    wgmma reads what was copied, a thread that waited for the phase executes
    `fence_proxy_async_shared`. The twin's copies arrive at once.

    Source: PTX ISA, "mbarrier: cp.async.mbarrier.arrive".
    """
    lanes.block.arrive_by_copies(lanes.thread, bar)


@instruction("mbarrier.init.shared::cta.b64 [<bar>], <count>;", effect="memory")
def mbarrier_init(lanes: Lanes, bar: U32, count: U32) -> None:
    """Make 8 bytes of shared memory an mbarrier whose phases end after `count` arrivals.

    Other threads may use it after `fence_mbarrier_init` and a barrier.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".
    """
    for i, (address, arrivals) in enumerate(zip(bar.tolist(), count.tolist(), strict=True)):
        lanes.block.mbarrier_init(lanes.thread[i : i + 1], address, arrivals)


@instruction("fence.mbarrier_init.release.cluster;", effect="memory", arch="sm_90")
def fence_mbarrier_init(lanes: Lanes) -> None:
    """Make the mbarriers that this thread has initialised visible to the cluster and to copies."""
    lanes.block.watch.fence_init(lanes.thread)


def _arrive(lanes: Lanes, bar: Array) -> None:
    for i, address in enumerate(bar.tolist()):
        lanes.block.mbarrier_arrive(lanes.thread[i : i + 1], address)


@instruction("mbarrier.arrive.shared::cta.b64 _, [<bar>];", effect="memory", arch="sm_90")
def mbarrier_arrive(lanes: Lanes, bar: U32) -> None:
    """Count one arrival in; see `mbarrier_init`."""
    _arrive(lanes, bar)


@instruction(
    """{
    .reg .pred p;
    setp.ne.u32 p, <pred>, 0;
    @p mbarrier.arrive.shared::cluster.b64 _, [<bar>];
    }""",
    effect="memory",
    arch="sm_90",
)
def mbarrier_arrive_cluster_if(lanes: Lanes, bar: U32, pred: U32) -> None:
    """Count an arrival in at an mbarrier of any block of the cluster, where pred is not 0.

    Its address comes from `mapa`. It orders what this block sees, as an arrival at an mbarrier of
    its own does; one that orders the whole cluster's accesses costs a fence of the whole GPU. There
    is no branch around it, which ptxas takes for an end of a row of wgmma.
    """
    on = np.flatnonzero(pred)
    if on.size:
        _arrive(lanes.only(on), bar[on])


@instruction(
    "mbarrier.arrive.expect_tx.shared::cta.b64 _, [<bar>], <size_bytes>;",
    effect="memory",
    arch="sm_90",
)
def mbarrier_arrive_expect_tx(lanes: Lanes, bar: U32, size_bytes: U32) -> None:
    """Count one arrival in, and say how many bytes copies will bring in this phase."""
    for i, (address, size) in enumerate(zip(bar.tolist(), size_bytes.tolist(), strict=True)):
        lanes.block.mbarrier_expect(lanes.thread[i : i + 1], address, size)
        lanes.block.mbarrier_arrive(lanes.thread[i : i + 1], address)


@instruction(
    "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [<bar>], <size_bytes>;",
    effect="memory",
    arch="sm_90",
)
def mbarrier_expect_tx(lanes: Lanes, bar: U32, size_bytes: U32) -> None:
    """Say how many bytes copies will bring in this phase, without arriving."""
    for i, (address, size) in enumerate(zip(bar.tolist(), size_bytes.tolist(), strict=True)):
        lanes.block.mbarrier_expect(lanes.thread[i : i + 1], address, size)


def _ended(lanes: Lanes, bar: Array, parity: Array) -> Array:
    pairs = zip(bar.tolist(), parity.tolist(), strict=True)
    return np.array([lanes.block.phase_ended(*pair) for pair in pairs], np.uint32)


@instruction(
    """{
    .reg .pred p;
    mbarrier.try_wait.parity.shared::cta.b64 p, [<bar>], <parity>;
    selp.b32 <d>, 1, 0, p;
    }""",
    effect="memory",
    arch="sm_90",
)
def mbarrier_try_wait(lanes: Lanes, bar: U32, parity: U32) -> U32:
    """Return 1 if the phase of this parity has ended, 0 if it had not within a while.

    The first phase has parity 0; the one "before" it, parity 1, has ended at the start.

    Source: PTX ISA, "mbarrier.test_wait, mbarrier.try_wait".
    """
    if lanes.block.pause(lanes.thread):
        return BLOCKED
    ended = _ended(lanes, bar, parity)
    lanes.block.pass_phases(lanes.thread[ended > 0], bar[ended > 0])
    return ended


@instruction(
    """{
    .reg .pred p;
    again:
    mbarrier.try_wait.parity.shared::cta.b64 p, [<bar>], <parity>;
    @!p bra again;
    }""",
    effect="memory",
    arch="sm_90",
    alike=("bar", "parity"),
)
def mbarrier_wait(lanes: Lanes, bar: U32, parity: U32) -> None:
    """Wait until the phase of this parity has ended; see `mbarrier_try_wait`."""
    if not _ended(lanes, bar, parity).all():
        return BLOCKED  # type: ignore[return-value]
    lanes.block.pass_phases(lanes.thread, bar)


_BULK = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
_TENSOR = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"


def _copy_bulk(lanes: Lanes, smem: Array, gmem: Array, size_bytes: Array, bar: Array) -> None:
    columns = (column.tolist() for column in (lanes.thread, smem, gmem, size_bytes, bar))
    for copy in zip(*columns, strict=True):
        lanes.block.copy_bulk(*copy)


@instruction(f"{_BULK} [<smem>], [<gmem>], <size_bytes>, [<bar>];", effect="memory", arch="sm_90")
def cp_async_bulk(lanes: Lanes, smem: U32, gmem: U64, size_bytes: U32, bar: U32) -> None:
    """Begin to copy a run of bytes from global to shared memory, counted by an mbarrier.

    Both addresses and the size are multiples of 16. Every lane that executes it copies.

    Source: PTX ISA, "Data Movement Instructions: cp.async.bulk".
    """
    _copy_bulk(lanes, smem, gmem, size_bytes, bar)


@instruction(
    f"{_BULK}.L2::cache_hint [<smem>], [<gmem>], <size_bytes>, [<bar>], <policy>;",
    effect="memory",
    arch="sm_90",
)
def cp_async_bulk_hint(
    lanes: Lanes, smem: U32, gmem: U64, size_bytes: U32, bar: U32, policy: U64
) -> None:
    """Begin to copy a run of bytes, with a policy for L2; see `cp_async_bulk`."""
    _copy_bulk(lanes, smem, gmem, size_bytes, bar)


@instruction(
    "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
    "[<address>], <values>, [<bar>];",
    effect="memory",
    arch="sm_90",
)
def st_async_v4(lanes: Lanes, address: U32, values: F32x4, bar: U32) -> None:
    """Begin to store four fp32 in a block of the cluster, counted by an mbarrier of that block.

    The block may end before they have arrived; the one that gets them waits for the mbarrier.

    Source: PTX ISA, "Data Movement Instructions: st.async".
    """
    data = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 1, 16)
    columns = (lanes.thread.tolist(), address.tolist(), data, bar.tolist())
    for thread, place, row, count in zip(*columns, strict=True):
        lanes.block.deliver(thread, place, row, count)


@instruction(
    f"{_TENSOR} [<smem>], [<map>, {{<c0>, <c1>}}], [<bar>];", effect="memory", arch="sm_90"
)
def cp_async_bulk_tensor_2d(lanes: Lanes, smem: U32, map: U64, c0: U32, c1: U32, bar: U32) -> None:
    """Begin to copy the box at (c0, c1) of a tensor map, innermost coordinate first.

    map: address of a tensor map in global memory, of the driver or `publish_tensor_map`. The twin
         knows only the latter.

    Source: PTX ISA, "Data Movement Instructions: cp.async.bulk.tensor".
    """
    copy_box(lanes, smem, map, c0, c1, bar)


@instruction(
    f"{_TENSOR}.L2::cache_hint [<smem>], [<map>, {{<c0>, <c1>}}], [<bar>], <policy>;",
    effect="memory",
    arch="sm_90",
)
def cp_async_bulk_tensor_2d_hint(
    lanes: Lanes, smem: U32, map: U64, c0: U32, c1: U32, bar: U32, policy: U64
) -> None:
    """Begin to copy a box, with a policy for L2; see `cp_async_bulk_tensor_2d`."""
    copy_box(lanes, smem, map, c0, c1, bar)


@instruction(
    f"""{{
    .reg .b16 blocks;
    cvt.u16.u32 blocks, <mask>;
    {_TENSOR}.multicast::cluster [<smem>], [<map>, {{<c0>, <c1>}}], [<bar>], blocks;
    }}""",
    effect="memory",
    arch="sm_90",
)
def cp_async_bulk_tensor_2d_multicast(
    lanes: Lanes, smem: U32, map: U64, c0: U32, c1: U32, bar: U32, mask: U32
) -> None:
    """Begin to copy a box to the same place in several blocks of the cluster.

    mask: bit r stands for the block of rank r, whose own mbarrier at `bar` counts the bytes

    See `cp_async_bulk_tensor_2d`.
    """
    for rank in range(len(lanes.block.cluster)):
        there = np.flatnonzero(mask >> np.uint32(rank) & np.uint32(1))
        if there.size:
            ranks = np.full(there.size, rank, np.uint32)
            to, counts = (lanes.block.map_address(a[there], ranks) for a in (smem, bar))
            copy_box(lanes.only(there), to, map[there], c0[there], c1[there], counts)


@instruction("prefetch.global.L2 [<gmem>];", effect="volatile")
def prefetch_l2(lanes: Lanes, gmem: U64) -> None:
    """Begin to bring the line of an address into L2.

    Source: PTX ISA, "Data Movement Instructions: prefetch".
    """
    lanes.block.machine.memory.load(gmem & ~np.uint64(15), 16)
