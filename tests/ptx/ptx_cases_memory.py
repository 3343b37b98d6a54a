"""Cases of memory, asynchronous copies, barriers, clusters: what goes in comes out, elsewhere."""

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64
from ptx_cases import Case

from ferrum_numba import ptx

# what `out` holds where a kernel writes nothing
UNTOUCHED = 0xA5


def random_bytes(count, size_bytes, dtype=np.uint32):
    """Return inputs `a` of `count` pieces; floats are small integers, exact and never NaN."""

    def inputs(rng):
        if dtype == np.float32:
            return {"a": rng.integers(-999, 999, count * size_bytes // 4).astype(np.float32)}
        return {"a": rng.integers(0, 256, count * size_bytes, dtype=np.uint8).view(dtype)}

    return inputs


def copy(load, store, size_bytes):
    def copy_case(a, out):
        i = uint64(uint32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x))
        store(out + i * uint64(size_bytes), load(a + i * uint64(size_bytes)))

    return copy_case


COPIES = [
    (ptx.ld_global_u16, ptx.st_global_u16, 2, np.uint16),
    (ptx.ld_global_u32, ptx.st_global_u32, 4, np.uint32),
    (ptx.ld_global_f32, ptx.st_global_f32, 4, np.float32),
    (ptx.ld_global_v2, ptx.st_global_v2, 8, np.uint32),
    (ptx.ld_global_v4, ptx.st_global_v4, 16, np.uint32),
    (ptx.ld_global_v4_f32, ptx.st_global_v4_f32, 16, np.float32),
    (ptx.ld_global_nc_u16, ptx.st_global_u16, 2, np.uint16),
    (ptx.ld_global_nc_u32, ptx.st_global_u32, 4, np.uint32),
    (ptx.ld_global_nc_v2, ptx.st_global_v2, 8, np.uint32),
    (ptx.ld_global_nc_v4, ptx.st_global_v4, 16, np.uint32),
    (ptx.ld_global_cg_u32, ptx.st_global_u32, 4, np.uint32),
    (ptx.ld_global_cg_v4, ptx.st_global_v4, 16, np.uint32),
    (ptx.ld_global_cg_v4_f32, ptx.st_global_v4_f32, 16, np.float32),
]
GLOBAL = [
    Case(
        load.name, (load, store), copy(load, store, size), random_bytes(128, size, dtype),
        lambda i: i["a"], num_threads=64, num_blocks=2,
    )
    for load, store, size, dtype in COPIES
]  # fmt: skip


def load_if(load, store, size_bytes):
    def load_if_case(a, out):
        lane = uint32(cuda.threadIdx.x)
        i = uint64(lane) * uint64(size_bytes)
        pred = uint32(lane & uint32(5))
        # where it is off, the address is no address at all
        source = a + i if pred != uint32(0) else uint64(0)
        store(out + i, load(source, pred))

    return load_if_case


def store_if(load, store, size_bytes):
    def store_if_case(a, out):
        lane = uint32(cuda.threadIdx.x)
        i = uint64(lane) * uint64(size_bytes)
        pred = uint32(lane & uint32(5))
        target = out + i if pred != uint32(0) else uint64(0)
        store(target, load(a + i), pred)

    return store_if_case


def where_on(other):
    """Return the first words of a piece where the predicate is on, else bytes of `other`."""

    def want(inputs):
        pieces = inputs["a"].view(np.uint8).reshape(32, -1)
        on = (np.arange(32) & 5 != 0)[:, None]
        return np.where(on, pieces, np.uint8(other)).view(np.uint32).ravel()

    return want


PREDICATED = [
    Case(
        load.name, (load,), load_if(load, store, size), random_bytes(32, size), where_on(0)
    )
    for load, store, size in (
        (ptx.ld_global_nc_u32_if, ptx.st_global_u32, 4),
        (ptx.ld_global_nc_v2_if, ptx.st_global_v2, 8),
        (ptx.ld_global_nc_v4_if, ptx.st_global_v4, 16),
        (ptx.ld_global_v4_if, ptx.st_global_v4, 16),
    )
] + [
    Case(
        store.name, (store,), store_if(load, store, size), random_bytes(32, size),
        where_on(UNTOUCHED),
    )
    for load, store, size in (
        (ptx.ld_global_u32, ptx.st_global_u32_if, 4),
        (ptx.ld_global_v2, ptx.st_global_v2_if, 8),
        (ptx.ld_global_v4, ptx.st_global_v4_if, 16),
    )
]  # fmt: skip


def through_shared(load_global, store_shared, load_shared, store_global, size_bytes):
    def shared_case(a, out):
        tid = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        mine = uint32(tid * uint32(size_bytes))
        store_shared(uint32(base + mine), load_global(a + uint64(mine)))
        cuda.syncthreads()
        theirs = uint32(uint32(uint32(63) - tid) * uint32(size_bytes))
        store_global(out + uint64(mine), load_shared(uint32(base + theirs)))

    return shared_case


def reversed_pieces(size_bytes):
    def want(inputs):
        pieces = inputs["a"].view(np.uint8).reshape(-1, size_bytes)[::-1]
        return np.ascontiguousarray(pieces).ravel().view(inputs["a"].dtype)

    return want


SHARED = [
    Case(
        load.name, (load, store, ptx.smem_base),
        through_shared(load_global, store, load, store_global, size),
        random_bytes(64, size, dtype), reversed_pieces(size), num_threads=64, smem_bytes=64 * size,
    )
    for load_global, store, load, store_global, size, dtype in (
        (ptx.ld_global_u16, ptx.st_shared_u16, ptx.ld_shared_u16, ptx.st_global_u16, 2, np.uint16),
        (ptx.ld_global_u32, ptx.st_shared_u32, ptx.ld_shared_u32, ptx.st_global_u32, 4, np.uint32),
        (ptx.ld_global_f32, ptx.st_shared_f32, ptx.ld_shared_f32, ptx.st_global_f32, 4, np.float32),
        (ptx.ld_global_v2, ptx.st_shared_v2, ptx.ld_shared_v2, ptx.st_global_v2, 8, np.uint32),
        (ptx.ld_global_v4, ptx.st_shared_v4, ptx.ld_shared_v4, ptx.st_global_v4, 16, np.uint32),
        (
            ptx.ld_global_v4_f32, ptx.st_shared_v4_f32, ptx.ld_shared_v4_f32,
            ptx.st_global_v4_f32, 16, np.float32,
        ),
    )
]  # fmt: skip


def add_up(add):
    """Return a kernel in which 256 threads add their number to one word."""

    def add_case(a, out):
        tid = uint32(cuda.threadIdx.x)
        add(a, uint32(tid + uint32(1)))
        cuda.syncthreads()
        ptx.fence_acq_rel_gpu()
        ptx.st_global_u32(out + uint64(tid) * uint64(4), ptx.ld_global_cg_u32(a))

    return add_case


def add_up_shared(a, out):
    """Eight words, to each of which every eighth of 256 threads adds."""
    tid = uint32(cuda.threadIdx.x)
    base = ptx.smem_base()
    if tid < uint32(8):
        ptx.st_shared_u32(uint32(base + uint32(tid * uint32(4))), uint32(0))
    cuda.syncthreads()
    mine = uint32(base + uint32(uint32(tid & uint32(7)) * uint32(4)))
    ptx.red_shared_add(mine, ptx.ld_global_u32(a + uint64(tid) * uint64(4)))
    cuda.syncthreads()
    ptx.st_global_u32(out + uint64(tid) * uint64(4), ptx.ld_shared_u32(mine))


def added_by_eights(inputs):
    return np.tile(inputs["a"].reshape(-1, 8).sum(axis=0, dtype=np.uint32), 32)


def add_up_f32(a, out):
    tid = uint32(cuda.threadIdx.x)
    ptx.red_add_f32(a, float32(tid))
    cuda.syncthreads()
    ptx.membar()
    ptx.st_global_u32(out + uint64(tid) * uint64(4), ptx.ld_global_cg_u32(a))


def add_one(a, out):
    tid = uint32(cuda.threadIdx.x)
    ptx.st_global_u32(out + uint64(tid) * uint64(4), uint32(0))
    cuda.syncthreads()
    # every thread draws another number
    ticket = ptx.atom_add_acq_rel_gpu(a, uint32(1))
    ptx.st_global_u32(out + uint64(ticket) * uint64(4), uint32(ticket ^ uint32(0xABCD)))


def release_and_acquire(a, out):
    """Thread 32 writes and releases a[0]; thread 0 waits for it and reads."""
    tid = uint32(cuda.threadIdx.x)
    data = a + uint64(4)
    if tid == uint32(32):
        ptx.st_global_u32(data, uint32(77))
        ptx.st_release_gpu(a, uint32(1))
    if tid == uint32(0):
        while ptx.ld_acquire_gpu(a) == uint32(0):
            pass
        ptx.st_global_u32(out, ptx.ld_global_u32(data))


def zeros(count, dtype=np.uint32):
    return lambda rng: {"a": np.zeros(count, dtype)}


def constant(value, count, dtype=np.uint32):
    return lambda inputs: np.full(count, value, dtype)


ATOMICS = [
    *(
        Case(
            add.name, (add, ptx.fence_acq_rel_gpu), add_up(add), zeros(1),
            constant(256 * 257 // 2, 256), num_threads=256,
        )
        for add in (ptx.red_add_relaxed_gpu, ptx.red_add_release_gpu)
    ),
    Case(
        "red_add_f32", (ptx.red_add_f32, ptx.membar), add_up_f32, zeros(1, np.float32),
        constant(255 * 256 // 2, 256, np.float32), num_threads=256,
    ),
    Case(
        "red_shared_add", (ptx.red_shared_add,), add_up_shared, random_bytes(256, 4),
        added_by_eights, num_threads=256, smem_bytes=32,
    ),
    Case(
        "atom_add_acq_rel_gpu", (ptx.atom_add_acq_rel_gpu,), add_one, zeros(1),
        lambda i: np.arange(256, dtype=np.uint32) ^ np.uint32(0xABCD), num_threads=256,
    ),
    Case(
        "ld_acquire_gpu", (ptx.ld_acquire_gpu, ptx.st_release_gpu), release_and_acquire, zeros(2),
        constant(77, 1), num_threads=64,
    ),
]  # fmt: skip


def cp_async(op, size_bytes):
    """Return a kernel with two groups of copies; a warp reads what the other has copied."""

    def cp_async_case(a, out):
        tid = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        mine = uint32(tid * uint32(size_bytes))
        second = uint32(64 * size_bytes)
        op(uint32(base + mine), a + uint64(mine))
        ptx.cp_async_commit()
        op(uint32(base + uint32(second + mine)), a + uint64(uint32(second + mine)))
        ptx.cp_async_commit()
        theirs = uint32(uint32(tid ^ uint32(32)) * uint32(size_bytes))
        ptx.cp_async_wait(1)
        cuda.syncthreads()
        for i in range(size_bytes // 4):
            word = ptx.ld_shared_u32(uint32(base + uint32(theirs + uint32(4 * i))))
            ptx.st_global_u32(out + uint64(theirs) + uint64(4 * i), word)
        ptx.cp_async_wait(0)
        cuda.syncthreads()
        for i in range(size_bytes // 4):
            offset = uint32(uint32(second + theirs) + uint32(4 * i))
            ptx.st_global_u32(out + uint64(offset), ptx.ld_shared_u32(uint32(base + offset)))

    return cp_async_case


@cuda.jit(device=True, forceinline=True)
def copy_with_policy(smem, gmem):
    ptx.cp_async_16_hint(smem, gmem, ptx.createpolicy_evict_first())


def cp_async_if(a, out):
    lane = uint32(cuda.threadIdx.x)
    slot = uint32(ptx.smem_base() + uint32(lane * uint32(16)))
    i = uint64(lane) * uint64(16)
    pred = uint32(lane & uint32(5))
    fill = uint32(0xA5A5A5A5)
    ptx.st_shared_v4(slot, (fill, fill, fill, fill))
    source = a + i if pred != uint32(0) else uint64(0)
    ptx.cp_async_16_if(slot, source, pred)
    ptx.cp_async_commit()
    ptx.cp_async_wait(0)
    ptx.st_global_v4(out + i, ptx.ld_shared_v4(slot))


def cp_async_zfill(a, out):
    lane = uint32(cuda.threadIdx.x)
    slot = uint32(ptx.smem_base() + uint32(lane * uint32(16)))
    i = uint64(lane) * uint64(16)
    ptx.cp_async_16_zfill(slot, a + i, uint32(lane % uint32(17)))
    ptx.cp_async_commit()
    ptx.cp_async_wait(0)
    ptx.st_global_v4(out + i, ptx.ld_shared_v4(slot))


def first_bytes(inputs):
    pieces = inputs["a"].view(np.uint8).reshape(32, 16)
    kept = np.arange(16) < np.arange(32)[:, None] % 17
    return np.where(kept, pieces, np.uint8(0)).view(np.uint32).ravel()


ASYNC = [
    *(
        Case(
            op.name, (op, ptx.cp_async_commit, ptx.cp_async_wait), cp_async(call, size),
            random_bytes(128, size), lambda i: i["a"], num_threads=64, smem_bytes=128 * size,
        )
        for op, call, size in (
            (ptx.cp_async_4, ptx.cp_async_4, 4),
            (ptx.cp_async_8, ptx.cp_async_8, 8),
            (ptx.cp_async_16, ptx.cp_async_16, 16),
            (ptx.cp_async_16_hint, copy_with_policy, 16),
        )
    ),
    Case(
        "cp_async_16_if", (ptx.cp_async_16_if,), cp_async_if, random_bytes(32, 16),
        where_on(UNTOUCHED), smem_bytes=512,
    ),
    Case(
        "cp_async_16_zfill", (ptx.cp_async_16_zfill,), cp_async_zfill, random_bytes(32, 16),
        first_bytes, smem_bytes=512,
    ),
]  # fmt: skip


def ring(copy_piece, wait_for):
    """Return a kernel whose second warp copies 8 pieces of 128 bytes through a ring of 2 slots."""

    def ring_case(a, out):
        base = ptx.smem_base()
        tid = uint32(cuda.threadIdx.x)
        lane = uint32(tid & uint32(31))
        if tid == uint32(0):
            for i in range(2):
                ptx.mbarrier_init(uint32(base + uint32(16 * i)), uint32(1))
                ptx.mbarrier_init(uint32(base + uint32(16 * i + 8)), uint32(32))
            ptx.fence_mbarrier_init()
        cuda.syncthreads()
        stage = uint32(0)
        parity = uint32(0)
        i = uint32(0)
        while i < uint32(8):
            full = uint32(base + uint32(stage * uint32(16)))
            empty = uint32(full + uint32(8))
            slot = uint32(base + uint32(128) + uint32(stage * uint32(128)))
            piece = uint64(uint32(i * uint32(128)))
            if tid >= uint32(32):
                ptx.mbarrier_wait(empty, uint32(parity ^ uint32(1)))
                if lane == uint32(0):
                    ptx.mbarrier_arrive_expect_tx(full, uint32(64))
                    ptx.mbarrier_expect_tx(full, uint32(64))
                    copy_piece(slot, a + piece, uint32(128), full)
                ptx.bar_warp_sync()
            else:
                wait_for(full, parity)
                word = ptx.ld_shared_u32(uint32(slot + uint32(lane * uint32(4))))
                ptx.st_global_u32(out + piece + uint64(lane) * uint64(4), word)
                ptx.mbarrier_arrive(empty)
            i = uint32(i + uint32(1))
            stage = uint32(stage ^ uint32(1))
            if stage == uint32(0):
                parity = uint32(parity ^ uint32(1))

    return ring_case


@cuda.jit(device=True, forceinline=True)
def bulk_with_policy(smem, gmem, size_bytes, bar):
    ptx.cp_async_bulk_hint(smem, gmem, size_bytes, bar, ptx.createpolicy_evict_first())


@cuda.jit(device=True, forceinline=True)
def poll(bar, parity):
    while ptx.mbarrier_try_wait(bar, parity) == uint32(0):
        pass


def tensor(a, out):
    """Compile the copies of a tensor map; only the driver makes one, so they do not run."""
    lane = uint32(cuda.threadIdx.x)
    base = ptx.smem_base()
    never = ptx.ld_global_u32(a)
    if never != uint32(0):
        bar = uint32(base + uint32(1024))
        policy = ptx.createpolicy_evict_first()
        ptx.cp_async_bulk_tensor_2d(base, a, lane, lane, bar)
        ptx.cp_async_bulk_tensor_2d_hint(base, a, lane, lane, bar, policy)
    ptx.st_global_u32(out + uint64(lane) * uint64(4), never)


RING_PARTS = (
    ptx.mbarrier_init, ptx.mbarrier_arrive, ptx.mbarrier_arrive_expect_tx, ptx.mbarrier_expect_tx,
    ptx.mbarrier_wait, ptx.fence_mbarrier_init, ptx.bar_warp_sync,
)  # fmt: skip
BULK = [
    Case(
        "cp_async_bulk", (ptx.cp_async_bulk, *RING_PARTS),
        ring(ptx.cp_async_bulk, ptx.mbarrier_wait), random_bytes(8, 128), lambda i: i["a"],
        num_threads=64, smem_bytes=384,
    ),
    Case(
        "cp_async_bulk_hint-try_wait", (ptx.cp_async_bulk_hint, ptx.mbarrier_try_wait),
        ring(bulk_with_policy, poll), random_bytes(8, 128), lambda i: i["a"],
        num_threads=64, smem_bytes=384,
    ),
    Case(
        "cp_async_bulk_tensor_2d-not_run",
        (ptx.cp_async_bulk_tensor_2d, ptx.cp_async_bulk_tensor_2d_hint), tensor, zeros(1),
        constant(0, 32), smem_bytes=2048,
    ),
]  # fmt: skip


def named_barriers(a, out):
    """Warp 0 hands words to warp 1 through a slot of which each tells the other."""
    tid = uint32(cuda.threadIdx.x)
    slot = uint32(ptx.smem_base() + uint32(uint32(tid & uint32(31)) * uint32(4)))
    piece = uint64(uint32(tid & uint32(31))) * uint64(4)
    for i in range(4):
        if tid < uint32(32):
            ptx.bar_sync(uint32(2), uint32(64))
            ptx.st_shared_u32(slot, ptx.ld_global_u32(a + piece + uint64(128 * i)))
            ptx.bar_arrive(uint32(1), uint32(64))
        elif tid < uint32(64):
            ptx.bar_arrive(uint32(2), uint32(64))
            ptx.bar_sync(uint32(1), uint32(64))
            ptx.st_global_u32(out + piece + uint64(128 * i), ptx.ld_shared_u32(slot))


def registers(a, out):
    tid = uint32(cuda.threadIdx.x)
    ptx.griddepcontrol_wait()
    i = uint64(tid) * uint64(4)
    if tid < uint32(128):
        ptx.setmaxnreg_dec(40)
        ptx.st_global_u32(out + i, ptx.ld_global_u32(a + i))
    else:
        ptx.setmaxnreg_inc(232)
        ptx.st_global_u32(out + i, ptx.ld_global_u32(a + i))
    ptx.griddepcontrol_launch_dependents()


def fences(a, out):
    i = uint64(uint32(cuda.threadIdx.x)) * uint64(4)
    slot = uint32(ptx.smem_base() + uint32(uint32(cuda.threadIdx.x) * uint32(4)))
    ptx.st_shared_u32(slot, ptx.ld_global_u32(a + i))
    ptx.fence_proxy_async()
    ptx.st_global_u32(out + i, ptx.ld_shared_u32(slot))


def cluster(a, out):
    """Both blocks read each other's words, then write a word into each other's memory."""
    tid = uint32(cuda.threadIdx.x)
    rank = ptx.cluster_ctarank()
    peer = uint32(rank ^ uint32(1))
    slot = uint32(ptx.smem_base() + uint32(tid * uint32(16)))
    i = uint64(uint32(uint32(rank * uint32(32)) + tid))
    ptx.st_shared_v4(slot, ptx.ld_global_v4(a + i * uint64(16)))
    ptx.cluster_arrive()
    ptx.cluster_wait()
    theirs = ptx.mapa(slot, peer)
    first = ptx.ld_shared_cluster_u32(theirs)
    second = ptx.ld_shared_cluster_f32(uint32(theirs + uint32(4)))
    all_four = ptx.ld_shared_cluster_v4(theirs)
    ptx.st_shared_cluster_u32(ptx.mapa(uint32(slot + uint32(512)), peer), rank)
    ptx.cluster_arrive()
    ptx.cluster_wait()
    told = ptx.ld_shared_u32(uint32(slot + uint32(512)))
    row = out + i * uint64(32)
    ptx.st_global_v4_f32(row, all_four)
    ptx.st_global_f32(row + uint64(16), second)
    ptx.st_global_v2(row + uint64(20 + 4), (first, told))
    ptx.st_global_u32(row + uint64(20), rank)


def across_the_cluster(inputs):
    blocks = inputs["a"].reshape(2, 32, 4)
    theirs = blocks[::-1]
    rank = np.broadcast_to(np.arange(2, dtype=np.uint32)[:, None], (2, 32))
    columns = [*np.moveaxis(theirs.view(np.uint32), 2, 0), theirs.view(np.uint32)[..., 1], rank]
    columns += [theirs.view(np.uint32)[..., 0], rank ^ 1]
    return np.stack(columns, axis=-1).reshape(-1)


def clocks(a, out):
    """Clocks do not run backwards."""
    i = uint64(uint32(cuda.threadIdx.x)) * uint64(4)
    cycle = ptx.clock64()
    time_ns = ptx.globaltimer()
    word = ptx.ld_global_u32(a + i)
    if ptx.clock64() < cycle or ptx.globaltimer() < time_ns:
        word = uint32(0)
    ptx.st_global_u32(out + i, word)


SYNC = [
    Case(
        "bar_sync", (ptx.bar_sync, ptx.bar_arrive), named_barriers, random_bytes(128, 4),
        lambda i: i["a"], num_threads=96, smem_bytes=128,
    ),
    Case(
        "setmaxnreg",
        (
            ptx.setmaxnreg_dec, ptx.setmaxnreg_inc, ptx.griddepcontrol_wait,
            ptx.griddepcontrol_launch_dependents,
        ),
        registers, random_bytes(384, 4), lambda i: i["a"], num_threads=384,
    ),
    Case(
        "fence_proxy_async", (ptx.fence_proxy_async,), fences, random_bytes(32, 4),
        lambda i: i["a"], smem_bytes=128,
    ),
    Case(
        "cluster",
        (
            ptx.cluster_ctarank, ptx.cluster_arrive, ptx.cluster_wait, ptx.mapa,
            ptx.ld_shared_cluster_u32, ptx.ld_shared_cluster_f32, ptx.ld_shared_cluster_v4,
            ptx.st_shared_cluster_u32,
        ),
        cluster, random_bytes(64, 16, np.float32), across_the_cluster, num_blocks=2,
        smem_bytes=1024, cluster=(2, 1, 1),
    ),
    Case("clocks", (ptx.clock64, ptx.globaltimer), clocks, random_bytes(32, 4), lambda i: i["a"]),
]  # fmt: skip

CASES = (*GLOBAL, *PREDICATED, *SHARED, *ATOMICS, *ASYNC, *BULK, *SYNC)
