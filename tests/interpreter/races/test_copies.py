"""Races with what runs beside the threads: copies, mbarriers, products, and the async proxy."""

import numpy as np
import pytest
from numba import cuda
from numba.cuda import float32, uint32, uint64
from planted import assert_found, at, execute, lines_of, word

from ferrum_numba import ptx
from ferrum_numba.errors import InterpreterError
from ferrum_numba.ptx.asynchronous import (
    cp_async_4,
    cp_async_16,
    cp_async_bulk,
    cp_async_commit,
    cp_async_mbarrier_arrive,
    cp_async_wait,
    fence_mbarrier_init,
    mbarrier_arrive,
    mbarrier_arrive_expect_tx,
    mbarrier_init,
    mbarrier_wait,
)
from ferrum_numba.ptx.memory import ld_shared_u32, st_global_u32, st_shared_u32, st_shared_v4
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import bar_warp_sync, fence_proxy_async_shared
from ferrum_numba.ptx.tensor_map import (
    MAP_BYTES,
    acquire_tensor_map,
    describe_matrix,
    publish_tensor_map,
)

X = np.arange(4096, dtype=np.uint32)
ROUNDS = 6


def test_a_warp_that_does_not_meet_after_its_copies():
    def make(sound):
        def kernel(x, out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            cp_async_4(word(smem, tid), at(x, tid))  # first
            cp_async_commit()
            cp_async_wait(0)
            if sound:
                bar_warp_sync()
            st_global_u32(at(out, tid), ld_shared_u32(word(smem, tid ^ 1)))  # second

        return kernel

    assert_found(make, "read-after-write", "bar_warp_sync", num_threads=32, x=X)


def test_a_ring_slot_that_is_filled_while_another_warp_reads_it():
    def make(sound):
        def kernel(x, out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            for _ in range(3):
                if sound:
                    cuda.syncthreads()
                cp_async_4(word(smem, tid), at(x, tid))  # second
                cp_async_commit()
                cp_async_wait(0)
                cuda.syncthreads()
                st_global_u32(at(out, tid), ld_shared_u32(word(smem, n - 1 - tid)))  # first

        return kernel

    # found while the copy runs, or after it
    assert_found(make, "-after-", "a barrier between the two", x=X)


def ring(parity_flips=True, late_arrival=True, fenced=True):
    """Return a ring of one slot: a warp that copies and one that reads."""

    def kernel(x, out, n):
        smem, tid = smem_base(), uint32(cuda.threadIdx.x)
        full, free, slot = smem, uint32(smem + 8), uint32(smem + 128)
        if tid == 0:
            mbarrier_init(full, uint32(1))
            mbarrier_init(free, uint32(1))
            if fenced:
                fence_mbarrier_init()
        cuda.syncthreads()
        phase = uint32(0)
        if tid >= 32:
            if tid == 32:
                for i in range(ROUNDS):
                    mbarrier_wait(free, uint32(phase ^ 1) if parity_flips else uint32(1))
                    mbarrier_arrive_expect_tx(full, uint32(128))  # counts
                    cp_async_bulk(slot, at(x, i * 32), uint32(128), full)  # first # second
                    phase = uint32(phase ^ 1)
                mbarrier_wait(free, uint32(phase ^ 1))
        else:
            total = uint32(0)
            for _ in range(ROUNDS):
                mbarrier_wait(full, phase)
                if not late_arrival and tid == 0:
                    mbarrier_arrive(free)
                total = uint32(total + ld_shared_u32(word(slot, tid)))  # second # first
                bar_warp_sync()
                if late_arrival and tid == 0:
                    mbarrier_arrive(free)
                phase = uint32(phase ^ 1)
            st_global_u32(at(out, tid), total)

    return kernel


def test_a_parity_that_never_flips():
    # the copying thread does not wait for the slot, and counts twice into one phase
    with pytest.raises(InterpreterError, match="arrives at an mbarrier whose 1 arrivals") as caught:
        execute(ring(parity_flips=False), x=X)
    (line,) = lines_of(ring(), "# counts")
    assert line in str(caught.value)


def test_a_slot_given_back_before_it_was_read():
    assert_found(
        lambda sound: ring(late_arrival=sound), "-after-",
        "a barrier between the two|a wait for that phase", x=X,
    )  # fmt: skip


def test_mbarriers_that_no_fence_shows_to_copies():
    message = assert_found(
        lambda sound: ring(fenced=sound), "counts at an mbarrier", "fence_mbarrier_init", x=X
    )
    assert "cp_async_bulk" in message


def test_an_mbarrier_used_before_a_barrier():
    def make(sound):
        def kernel(out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            if tid == 0:
                mbarrier_init(smem, uint32(64))
                fence_mbarrier_init()
            if sound:
                cuda.syncthreads()
            else:
                # executed late, and ordered by nothing
                for i in range(4):
                    st_global_u32(at(out, tid), uint32(i))
            mbarrier_arrive(smem)  # second

        return kernel

    assert_found(make, "uses an mbarrier that thread 0 initialised", "a barrier", num_threads=64)


def test_copies_that_arrive_at_an_mbarrier_are_seen_by_who_waits_for_it():
    def make(sound):
        def kernel(x, out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            slot = uint32(smem + 128)
            if tid == 0:
                mbarrier_init(smem, uint32(32))
                fence_mbarrier_init()
            bar_warp_sync()
            cp_async_4(word(slot, tid), at(x, tid))  # first
            cp_async_mbarrier_arrive(smem)
            if sound:
                mbarrier_wait(smem, uint32(0))
            st_global_u32(at(out, tid), ld_shared_u32(word(slot, tid)))  # second

        return kernel

    assert_found(make, "read-after-write", "a wait for that phase", num_threads=32, x=X)


def test_a_tensor_map_that_is_not_acquired():
    def make(sound):
        def kernel(x, maps, out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            bar, described = smem, uint32(smem + 128)
            st_shared_u32(word(described, tid), uint32(0))
            bar_warp_sync()
            if tid == 0:
                mbarrier_init(bar, uint32(1))
                fence_mbarrier_init()
                describe_matrix(described, x, uint32(64), uint32(8), uint64(128), uint32(8))
            bar_warp_sync()
            publish_tensor_map(maps, described)
            if sound:
                acquire_tensor_map(maps)
            if tid == 0:
                mbarrier_arrive_expect_tx(bar, uint32(1024))
                to = uint32(smem + 1024)
                ptx.cp_async_bulk_tensor_2d(to, maps, uint32(0), uint32(0), bar)  # second
            mbarrier_wait(bar, uint32(0))
            st_global_u32(at(out, tid), ld_shared_u32(word(smem + 1024, tid)))

        return kernel

    maps = np.zeros(MAP_BYTES, np.uint8)
    assert_found(
        make, "published and not acquired", "acquire_tensor_map", num_threads=32, x=X, maps=maps
    )


def products(proxy=True, fence=True, again=True, wait=True, commit=True, before_write=True):
    """Return a kernel of two products, whose B is written by ordinary stores or by cp.async."""
    n = 8
    zeros, mma = ptx.splat_f32(n // 2), ptx.wgmma_rs(n)
    describe = ptx.smem_descriptor(0, 256, 128)

    def kernel(x, out, n):
        smem, tid = smem_base(), uint32(cuda.threadIdx.x)
        if tid < 16:
            st_shared_v4(uint32(smem + tid * 16), (tid, tid, tid, tid))  # first
        if tid >= 16 and tid < 32:
            cp_async_16(uint32(smem + tid * 16), at(x, tid * 4))
        cp_async_commit()
        cp_async_wait(0)
        if proxy:
            fence_proxy_async_shared()
        cuda.syncthreads()
        acc = zeros(float32(0))
        a = ptx.ld_global_v4(at(x, tid * 4))
        if fence:
            ptx.wgmma_fence()
        acc = mma(acc, a, describe(smem), uint32(1))  # second
        ptx.wgmma_commit()
        a = ptx.ld_global_v4(at(x, tid * 4 + 512))
        if again:
            ptx.wgmma_fence()
        acc = mma(acc, a, describe(smem), uint32(1))  # second
        if commit:
            ptx.wgmma_commit()
        if wait:
            ptx.wgmma_wait(0)
        if before_write:
            ptx.st_global_f32(at(out, tid), acc[0])  # second
        cuda.syncthreads()
        if tid < 16:
            st_shared_v4(uint32(smem + tid * 16), (tid, tid, tid, tid))  # second

    return kernel


def found_in_products(kind, missing, marks=("# second",), **fault):
    """Assert that a fault of `products` is found."""
    return assert_found(
        lambda sound: products() if sound else products(**fault), kind, missing,
        marks=marks, num_threads=128, x=X,
    )  # fmt: skip


def test_products_read_through_another_proxy():
    found_in_products("read-after-write", "fence_proxy_async", ("# first", "# second"), proxy=False)


def test_copies_counted_by_an_mbarrier_need_a_proxy_fence_for_products():
    def make(sound):
        zeros, mma = ptx.splat_f32(4), ptx.wgmma_rs(8)
        describe, wait_acc = ptx.smem_descriptor(0, 256, 128), ptx.wgmma_wait_acc(8)

        def kernel(x, out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            bar = uint32(smem + 2048)
            if tid == 0:
                mbarrier_init(bar, uint32(128))
                fence_mbarrier_init()
            cuda.syncthreads()
            if tid < 16:
                cp_async_16(uint32(smem + tid * 16), at(x, tid * 4))  # first
            cp_async_mbarrier_arrive(bar)
            acc = zeros(float32(0))
            a = ptx.ld_global_v4(at(x, tid * 4))
            mbarrier_wait(bar, uint32(0))
            if sound:
                fence_proxy_async_shared()
            ptx.wgmma_fence()
            acc = mma(acc, a, describe(smem), uint32(1))  # second
            ptx.wgmma_commit()
            acc = wait_acc(acc, 0)
            ptx.st_global_f32(at(out, tid), acc[0])

        return kernel

    assert_found(make, "read-after-write", "fence_proxy_async", num_threads=128, x=X)


def test_the_first_product_needs_a_fence():
    found_in_products("no fence orders", "before the first product", fence=False)


def test_registers_written_since_the_last_fence():
    found_in_products("registers of a that were written", "wgmma_fence", again=False)


def test_sums_used_before_the_wait():
    found_in_products("may still be computed", "wgmma_wait", wait=False)


def test_products_that_were_not_committed_are_not_waited_for():
    found_in_products("may still be computed", "wgmma_commit", commit=False)


def test_memory_that_products_still_read():
    found_in_products("write-after-read", "wgmma_wait", wait=False, before_write=False)


def test_a_stage_given_back_before_its_products_ended():
    def make(sound):
        zeros, mma = ptx.splat_f32(4), ptx.wgmma_rs(8)
        describe, wait_acc = ptx.smem_descriptor(0, 256, 128), ptx.wgmma_wait_acc(8)

        def kernel(x, out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            bars = uint32(smem + 2048)
            if tid == 0:
                mbarrier_init(bars, uint32(1))
                mbarrier_init(bars + 8, uint32(4))
                fence_mbarrier_init()
            cuda.syncthreads()
            if tid >= 128:
                if tid == 128:
                    for i in range(3):
                        mbarrier_wait(bars + 8, uint32(uint32(i & 1) ^ 1))
                        mbarrier_arrive_expect_tx(bars, uint32(256))
                        cp_async_bulk(smem, at(x, i * 64), uint32(256), bars)  # second
            else:
                acc = zeros(float32(0))
                a = ptx.ld_global_v4(at(x, tid * 4))
                ptx.wgmma_fence()
                for i in range(3):
                    mbarrier_wait(bars, uint32(i & 1))
                    acc = mma(acc, a, describe(smem), uint32(1))  # first
                    ptx.wgmma_commit()
                    if sound:
                        ptx.wgmma_wait(0)
                    if tid & 31 == 0:
                        mbarrier_arrive(bars + 8)
                acc = wait_acc(acc, 0)
                ptx.st_global_f32(at(out, tid), acc[0])

        return kernel

    assert_found(make, "write-after-read", "wgmma_wait", num_threads=160, x=X)
