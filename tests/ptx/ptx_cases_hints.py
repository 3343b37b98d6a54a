"""Cases of cache hints, which change no value, and of predicates on shared memory."""

from numba import cuda
from numba.cuda.types import uint32, uint64
from ptx_cases import Case
from ptx_cases_memory import UNTOUCHED, copy, random_bytes, where_on

from ferrum_numba import ptx

# an address no block has: a lane that is off must not touch it
NOWHERE = 0xFFFFFFF0
POLICIES = {
    "evict_first": ptx.createpolicy_evict_first,
    "evict_last": ptx.createpolicy_evict_last,
}


def load_hint(load, store, policy, size_bytes):
    def load_hint_case(a, out):
        i = uint64(uint32(cuda.threadIdx.x)) * uint64(size_bytes)
        store(out + i, load(a + i, policy()))

    return load_hint_case


def store_hint(load, store, policy, size_bytes):
    def store_hint_case(a, out):
        i = uint64(uint32(cuda.threadIdx.x)) * uint64(size_bytes)
        store(out + i, load(a + i), policy())

    return store_hint_case


STREAMS = [
    Case(
        one.name, (one,), copy(load, store, size), random_bytes(128, size), lambda i: i["a"],
        num_threads=64, num_blocks=2,
    )
    for one, load, store, size in (
        (ptx.ld_global_nc_u32_stream, ptx.ld_global_nc_u32_stream, ptx.st_global_u32, 4),
        (ptx.ld_global_nc_v2_stream, ptx.ld_global_nc_v2_stream, ptx.st_global_v2, 8),
        (ptx.ld_global_nc_v4_stream, ptx.ld_global_nc_v4_stream, ptx.st_global_v4, 16),
        (ptx.st_global_u32_stream, ptx.ld_global_u32, ptx.st_global_u32_stream, 4),
        (ptx.st_global_v2_stream, ptx.ld_global_v2, ptx.st_global_v2_stream, 8),
        (ptx.st_global_v4_stream, ptx.ld_global_v4, ptx.st_global_v4_stream, 16),
    )
]  # fmt: skip
HINTS = [
    Case(
        f"{one.name}-{name}", (one, policy), kernel(load, store, policy, size),
        random_bytes(32, size), lambda i: i["a"],
    )
    for one, kernel, load, store, size in (
        (ptx.ld_global_nc_u32_hint, load_hint, ptx.ld_global_nc_u32_hint, ptx.st_global_u32, 4),
        (ptx.ld_global_nc_v2_hint, load_hint, ptx.ld_global_nc_v2_hint, ptx.st_global_v2, 8),
        (ptx.ld_global_nc_v4_hint, load_hint, ptx.ld_global_nc_v4_hint, ptx.st_global_v4, 16),
        (ptx.st_global_u32_hint, store_hint, ptx.ld_global_u32, ptx.st_global_u32_hint, 4),
        (ptx.st_global_v2_hint, store_hint, ptx.ld_global_v2, ptx.st_global_v2_hint, 8),
        (ptx.st_global_v4_hint, store_hint, ptx.ld_global_v4, ptx.st_global_v4_hint, 16),
    )
    for name, policy in POLICIES.items()
]  # fmt: skip


def load_shared_if(load_global, store_shared, load_shared, store_global, size_bytes):
    def load_shared_case(a, out):
        lane = uint32(cuda.threadIdx.x)
        i = uint64(lane) * uint64(size_bytes)
        slot = uint32(ptx.smem_base() + uint32(lane * uint32(size_bytes)))
        store_shared(slot, load_global(a + i))
        pred = uint32(lane & uint32(5))
        source = slot if pred != uint32(0) else uint32(NOWHERE)
        store_global(out + i, load_shared(source, pred))

    return load_shared_case


def store_shared_if(load_global, store_shared, load_shared, store_global, size_bytes):
    words = size_bytes // 4

    def store_shared_case(a, out):
        lane = uint32(cuda.threadIdx.x)
        i = uint64(lane) * uint64(size_bytes)
        slot = uint32(ptx.smem_base() + uint32(lane * uint32(size_bytes)))
        for word in range(words):
            ptx.st_shared_u32(uint32(slot + uint32(4 * word)), uint32(0xA5A5A5A5))
        pred = uint32(lane & uint32(5))
        target = slot if pred != uint32(0) else uint32(NOWHERE)
        store_shared(target, load_global(a + i), pred)
        store_global(out + i, load_shared(slot))

    return store_shared_case


SHARED_IF = [
    Case(
        load.name, (load,), load_shared_if(load_global, store, load, store_global, size),
        random_bytes(32, size), where_on(0), smem_bytes=32 * size,
    )
    for load_global, store, load, store_global, size in (
        (ptx.ld_global_u32, ptx.st_shared_u32, ptx.ld_shared_u32_if, ptx.st_global_u32, 4),
        (ptx.ld_global_v2, ptx.st_shared_v2, ptx.ld_shared_v2_if, ptx.st_global_v2, 8),
        (ptx.ld_global_v4, ptx.st_shared_v4, ptx.ld_shared_v4_if, ptx.st_global_v4, 16),
    )
] + [
    Case(
        store.name, (store,), store_shared_if(load_global, store, load, store_global, size),
        random_bytes(32, size), where_on(UNTOUCHED), smem_bytes=32 * size,
    )
    for load_global, store, load, store_global, size in (
        (ptx.ld_global_u32, ptx.st_shared_u32_if, ptx.ld_shared_u32, ptx.st_global_u32, 4),
        (ptx.ld_global_v2, ptx.st_shared_v2_if, ptx.ld_shared_v2, ptx.st_global_v2, 8),
        (ptx.ld_global_v4, ptx.st_shared_v4_if, ptx.ld_shared_v4, ptx.st_global_v4, 16),
    )
]  # fmt: skip

CASES = (*STREAMS, *HINTS, *SHARED_IF)
