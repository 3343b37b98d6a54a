"""The device program of patterns.py, which says what it does."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.ptx.asynchronous import cp_async_16, cp_async_commit, cp_async_wait
from ferrum_numba.ptx.memory import (
    ld_global_u32,
    ld_global_v2,
    ld_global_v4,
    ld_shared_u32,
    ld_shared_v2,
    ld_shared_v4,
    st_global_u32,
    st_global_v2,
    st_global_v4,
    st_shared_u32,
    st_shared_v2,
    st_shared_v4,
)
from ferrum_numba.ptx.mma import ldmatrix_x4
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import bar_warp_sync

LOADS = {
    ("ld.global", 4): ld_global_u32, ("ld.global", 8): ld_global_v2,
    ("ld.global", 16): ld_global_v4, ("ld.shared", 4): ld_shared_u32,
    ("ld.shared", 8): ld_shared_v2, ("ld.shared", 16): ld_shared_v4,
    ("ldmatrix", 16): ldmatrix_x4,
}  # fmt: skip
STORES = {
    ("st.global", 4): st_global_u32, ("st.global", 8): st_global_v2,
    ("st.global", 16): st_global_v4, ("st.shared", 4): st_shared_u32,
    ("st.shared", 8): st_shared_v2, ("st.shared", 16): st_shared_v4,
}  # fmt: skip


def make_load(kind, size_bytes):
    """Return what loads a lane's words and adds them up."""
    load, words = LOADS[kind, size_bytes], size_bytes // 4

    @cuda.jit(device=True, forceinline=True)
    def one(at):
        return load(at)

    @cuda.jit(device=True, forceinline=True)
    def several(at):
        held = load(at)
        total = uint32(0)
        for i in range(words):
            total = uint32(total + held[i])
        return total

    return one if words == 1 else several


def make_store(kind, size_bytes):
    """Return what stores a word as often as a lane has room for it."""
    store, words = STORES[kind, size_bytes], size_bytes // 4

    @cuda.jit(device=True, forceinline=True)
    def one(at, value):
        store(at, value)

    @cuda.jit(device=True, forceinline=True)
    def two(at, value):
        store(at, (value, value))

    @cuda.jit(device=True, forceinline=True)
    def four(at, value):
        store(at, (value, value, value, value))

    return {1: one, 2: two, 4: four}[words]


def build(pattern):
    """Return the kernel of a pattern."""
    from ferrum_numba.kernels.ceilings.patterns import WORDS

    kind, size_bytes, lanes = pattern.kind, pattern.size_bytes, pattern.lanes
    share, stride_bytes, words = pattern.share, pattern.stride_bytes, WORDS
    stores, copies = kind.startswith("st"), kind == "cp.async"
    is_shared = kind in ("ld.shared", "st.shared", "ldmatrix")
    fills = is_shared and not stores
    access = None
    if not copies:
        access = (make_store if stores else make_load)(kind, size_bytes)
    load_copied = make_load("ld.shared", 16)

    @cuda.jit(device=True, forceinline=True)
    def fill(smem, x, lane):
        """Copy x to shared memory."""
        i = lane
        while i < words:
            st_shared_u32(uint32(smem + i * 4), ld_global_u32(x + (uint64(i) << 2)))
            i = uint32(i + 32)
        bar_warp_sync()

    @cuda.jit(device=True, forceinline=True)
    def seen(x, scratch, smem, lane):
        """Make the request; return what the lane writes."""
        offset = uint32(uint32(lane // uint32(share)) * stride_bytes)
        if stores:
            value = ld_global_u32(x + (uint64(lane) << 2))
            if is_shared:
                access(uint32(smem + offset), value)
            else:
                access(scratch + uint64(offset), value)
            return value
        if copies:
            cp_async_16(uint32(smem + lane * 16), x + uint64(offset))
            cp_async_commit()
            cp_async_wait(0)
            return load_copied(uint32(smem + lane * 16))
        if is_shared:
            return access(uint32(smem + offset))
        return access(x + uint64(offset))

    def request(x, out, scratch):
        smem = smem_base()
        lane = uint32(cuda.threadIdx.x)
        if fills:
            fill(smem, x, lane)
        value = uint32(0)
        if lane < lanes:
            value = seen(x, scratch, smem, lane)
        st_global_u32(out + (uint64(lane) << 2), value)

    return request
