"""Barriers, fences, clusters, and what steers registers and dependent launches.

A cluster address names a place in the shared memory of any block of the cluster; an address of the
block's own shared memory is one too.
"""

from __future__ import annotations

import numpy as np

from ferrum_numba.ptx.instruction import BLOCKED, F32, IMMEDIATE, U32, F32x4, Lanes, instruction


@instruction("bar.sync <id>, <num_threads>;", effect="memory", scope="warp")
def bar_sync(lanes: Lanes, id: U32, num_threads: U32) -> None:
    """Arrive at barrier `id` (0 to 15) and wait for num_threads threads, whole warps.

    Barrier 0 with all threads is `cuda.syncthreads()`.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: bar".
    """
    if not lanes.block.sync(lanes.thread, int(id[0]), int(num_threads[0])):
        return BLOCKED  # type: ignore[return-value]


@instruction("bar.arrive <id>, <num_threads>;", effect="memory", scope="warp")
def bar_arrive(lanes: Lanes, id: U32, num_threads: U32) -> None:
    """Arrive at barrier `id` without waiting; see `bar_sync`."""
    lanes.block.arrive(lanes.thread, int(id[0]), int(num_threads[0]))


@instruction("bar.warp.sync 0xffffffff;", effect="memory", scope="warp")
def bar_warp_sync(lanes: Lanes) -> None:
    """Wait for all lanes of the warp; what they wrote is then visible among them.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: bar.warp.sync".
    """
    lanes.block.watch.sync_warp(lanes.thread)


@instruction("fence.acq_rel.gpu;", effect="memory")
def fence_acq_rel_gpu(lanes: Lanes) -> None:
    """Order this thread's loads and stores before it and after it, for all threads of the GPU.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: membar / fence".
    """
    lanes.block.watch.fence(lanes.thread)


@instruction("membar.gl;", effect="memory")
def membar(lanes: Lanes) -> None:
    """Order all memory accesses, sequentially consistent; see `fence_acq_rel_gpu`."""
    lanes.block.watch.fence(lanes.thread)


@instruction("fence.proxy.async;", effect="memory", arch="sm_90")
def fence_proxy_async(lanes: Lanes) -> None:
    """Make ordinary stores to shared memory visible to wgmma and bulk copies, and in their order.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: membar / fence".
    """
    lanes.block.watch.fence_proxy(lanes.thread)


@instruction("fence.proxy.async.shared::cta;", effect="memory", arch="sm_90")
def fence_proxy_async_shared(lanes: Lanes) -> None:
    """Do what `fence_proxy_async` does for the block's shared memory alone.

    The other one waits for all of the thread's accesses to reach the GPU's memory as well.
    """
    lanes.block.watch.fence_proxy(lanes.thread)


@instruction(
    "setmaxnreg.inc.sync.aligned.u32 <n>;", effect="memory", scope="warpgroup", arch="sm_90a"
)
def setmaxnreg_inc(n: IMMEDIATE) -> None:
    """Wait for registers until each thread of the warpgroup has n, a multiple of 8.

    Only a program that is linked from LTO-IR keeps it (`Program.lto`): docs/hardware.md#setmaxnreg.
    Source: PTX ISA, "Miscellaneous Instructions: setmaxnreg".
    """


@instruction(
    "setmaxnreg.dec.sync.aligned.u32 <n>;", effect="memory", scope="warpgroup", arch="sm_90a"
)
def setmaxnreg_dec(n: IMMEDIATE) -> None:
    """Give registers back until each thread of the warpgroup has n, a multiple of 8."""


@instruction("griddepcontrol.wait;", effect="memory", arch="sm_90")
def griddepcontrol_wait(lanes: Lanes) -> None:
    """Wait until the kernels that this launch depends on have ended, and see what they wrote.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: griddepcontrol".
    """
    lanes.block.watch.wait_for_launch(lanes.thread)


@instruction("griddepcontrol.launch_dependents;", effect="memory", arch="sm_90")
def griddepcontrol_launch_dependents() -> None:
    """Let the launches that depend on this one begin; see `griddepcontrol_wait`."""


@instruction("barrier.cluster.arrive.release.aligned;", effect="memory", scope="warp", arch="sm_90")
def cluster_arrive(lanes: Lanes) -> None:
    """Arrive at the barrier of the cluster's threads without waiting.

    Source: PTX ISA, "Parallel Synchronization and Communication Instructions: barrier.cluster".
    """
    lanes.block.cluster_arrive(lanes.thread)


@instruction("barrier.cluster.arrive.relaxed.aligned;", effect="memory", scope="warp", arch="sm_90")
def cluster_arrive_relaxed(lanes: Lanes) -> None:
    """Arrive at the barrier of the cluster's threads; orders no loads and stores."""
    lanes.block.cluster_arrive(lanes.thread, orders=False)


@instruction("barrier.cluster.wait.acquire.aligned;", effect="memory", scope="warp", arch="sm_90")
def cluster_wait(lanes: Lanes) -> None:
    """Wait until all threads of the cluster have arrived; see `cluster_arrive`."""
    if not lanes.block.cluster_wait(lanes.thread):
        return BLOCKED  # type: ignore[return-value]


@instruction("mapa.shared::cluster.u32 <d>, <address>, <rank>;", arch="sm_90")
def mapa(lanes: Lanes, address: U32, rank: U32) -> U32:
    """Return the cluster address of the same place in the block of this rank.

    Source: PTX ISA, "Data Movement Instructions: mapa".
    """
    return lanes.block.map_address(address, rank)


@instruction("ld.shared::cluster.u32 <d>, [<address>];", effect="memory", arch="sm_90")
def ld_shared_cluster_u32(lanes: Lanes, address: U32) -> U32:
    """Load 4 bytes of shared memory of a block of the cluster.

    Source: PTX ISA, "Data Movement Instructions: ld".
    """
    return lanes.block.load_cluster(lanes.thread, address, 4).view(np.uint32)[:, 0]


@instruction("ld.shared::cluster.f32 <d>, [<address>];", effect="memory", arch="sm_90")
def ld_shared_cluster_f32(lanes: Lanes, address: U32) -> F32:
    """Load an fp32 of shared memory of a block of the cluster."""
    return lanes.block.load_cluster(lanes.thread, address, 4).view(np.float32)[:, 0]


@instruction("ld.shared::cluster.v4.f32 <d>, [<address>];", effect="memory", arch="sm_90")
def ld_shared_cluster_v4(lanes: Lanes, address: U32) -> F32x4:
    """Load four fp32 of shared memory of a block of the cluster."""
    return lanes.block.load_cluster(lanes.thread, address, 16).view(np.float32)


@instruction("st.shared::cluster.u32 [<address>], <value>;", effect="memory", arch="sm_90")
def st_shared_cluster_u32(lanes: Lanes, address: U32, value: U32) -> None:
    """Store 4 bytes to shared memory of a block of the cluster."""
    data = np.ascontiguousarray(value).view(np.uint8).reshape(-1, 4)
    lanes.block.store_cluster(lanes.thread, address, data)
