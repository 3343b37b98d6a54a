"""Races within a block: between warps, between lanes of a warp, in static shared arrays."""

import numpy as np
import pytest
from numba import cuda
from numba.cuda import uint32
from planted import assert_found, at, execute, word

from ferrum_numba.errors import RaceError
from ferrum_numba.ptx.memory import (
    ld_shared_u32,
    red_shared_add,
    st_global_u32,
    st_shared_u16,
    st_shared_u32,
)
from ferrum_numba.ptx.mma import ldmatrix_x1
from ferrum_numba.ptx.shuffle import shfl_xor
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import bar_arrive, bar_sync, bar_warp_sync

RAW, WAR, WAW = "read-after-write", "write-after-read", "write-after-write"


def test_a_missing_barrier():
    def make(sound):
        def kernel(out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            st_shared_u32(word(smem, tid), uint32(0))
            cuda.syncthreads()
            if tid < uint32(32):
                st_shared_u32(word(smem, tid), tid)  # first # second
            if sound:
                cuda.syncthreads()
            if tid >= uint32(32):
                st_global_u32(
                    at(out, tid), ld_shared_u32(word(smem, tid - n // 2))
                )  # second # first

        return kernel

    # whichever warp runs first
    with pytest.raises(RaceError, match=r"read-after-write|write-after-read"):
        execute(make(False))
    assert_found(make, "-after-", "a barrier between the two")


def test_sums_overwritten_before_all_have_read_them():
    def make(sound):
        def kernel(out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            for i in range(2):
                if i > 0 and sound:
                    cuda.syncthreads()
                st_shared_u32(word(smem, tid), uint32(tid + i))  # second
                cuda.syncthreads()
                st_global_u32(at(out, tid), ld_shared_u32(word(smem, n - 1 - tid)))  # first

        return kernel

    # which of the two comes first is the schedule's
    assert_found(make, "-after-", "a barrier between the two")


def test_named_barriers_order_those_who_meet_at_them():
    def make(sound):
        def kernel(out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            if tid < uint32(32):
                st_shared_u32(word(smem, tid), tid)  # first
                bar_arrive(uint32(1), uint32(64))
            elif tid < uint32(64):
                bar_sync(uint32(1), uint32(64))
                ld_shared_u32(word(smem, tid - 32))
                if sound:
                    bar_arrive(uint32(2), uint32(64))
            else:
                if sound:
                    bar_sync(uint32(2), uint32(64))
                else:
                    # it must come late without being ordered: as many instructions later
                    for _ in range(20):
                        ld_shared_u32(word(smem, tid))
                ld_shared_u32(word(smem, tid - 64))  # second

        return kernel

    def filled(sound):
        inner = cuda.jit(device=True)(make(sound))

        def kernel(out, n):
            tid = uint32(cuda.threadIdx.x)
            st_shared_u32(word(smem_base(), tid), tid)
            cuda.syncthreads()
            inner(out, n)

        return kernel

    execute(filled(True), num_threads=96)
    with pytest.raises(RaceError, match=r"read-after-write|write-after-read"):
        execute(filled(False), num_threads=96)


def test_an_exchange_in_a_warp():
    def make(sound):
        def kernel(out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            st_shared_u32(word(smem, tid), tid)  # first
            if sound:
                cuda.syncwarp()
            st_global_u32(at(out, tid), ld_shared_u32(word(smem, tid ^ 1)))  # second

        return kernel

    assert_found(make, RAW, r"bar_warp_sync\(\) or cuda.syncwarp\(\)", num_threads=32)


def test_a_shuffle_orders_what_was_read_and_not_what_was_written():
    def make(sound):
        def kernel(out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            st_shared_u32(word(smem, tid), tid)  # first
            value = shfl_xor(tid, uint32(1))
            if sound:
                bar_warp_sync()
            total = uint32(ld_shared_u32(word(smem, tid ^ 1)) + value)  # second
            total = shfl_xor(total, uint32(1))
            # every lane has used what it read
            st_shared_u32(word(smem, tid), total)

        return kernel

    assert_found(make, RAW, "bar_warp_sync", num_threads=32)


def test_a_read_that_no_collective_follows_is_not_ordered():
    def make(sound):
        def kernel(out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            st_shared_u32(word(smem, tid), tid)
            bar_warp_sync()
            st_global_u32(at(out, tid), ld_shared_u32(word(smem, tid ^ 1)))  # first
            if sound:
                bar_warp_sync()
            st_shared_u32(word(smem, tid), uint32(0))  # second

        return kernel

    assert_found(make, WAR, "bar_warp_sync", num_threads=32)


def test_a_matrix_read_before_the_warp_has_met():
    def make(sound):
        def kernel(out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            st_shared_u32(word(smem, tid), tid)  # first
            if sound:
                bar_warp_sync()
            value = ldmatrix_x1(uint32(smem + (tid & 7) * 16))  # second
            st_global_u32(at(out, tid), value)

        return kernel

    assert_found(make, RAW, "bar_warp_sync", num_threads=32)


def test_two_lanes_store_different_values_at_once():
    def make(sound):
        def kernel(out, n):
            tid = uint32(cuda.threadIdx.x)
            value = uint32(7) if sound else tid
            st_shared_u32(word(smem_base(), tid >> 1), value)  # second

        return kernel

    message = assert_found(make, WAW, "one lane that stores, or an atomic", num_threads=32)
    assert "stores another value in the same instruction" in message


def test_neighbouring_halves_of_a_word_are_no_race():
    def kernel(out, n):
        smem, tid = smem_base(), uint32(cuda.threadIdx.x)
        st_shared_u32(word(smem, tid), uint32(0))
        cuda.syncthreads()
        st_shared_u16(uint32(smem + tid * 2), tid)
        cuda.syncthreads()
        st_global_u32(at(out, tid), ld_shared_u32(word(smem, tid >> 1)))

    got = execute(kernel)[:64]
    tid = np.arange(64) // 2 * 2
    np.testing.assert_array_equal(got, tid | (tid + 1) << 16)


def test_warps_that_add_to_a_word_need_an_atomic():
    def make(sound):
        def kernel(out, n):
            smem, tid = smem_base(), uint32(cuda.threadIdx.x)
            if tid == 0:
                st_shared_u32(smem, uint32(0))
            cuda.syncthreads()
            if tid & 31 == 0:
                if sound:
                    red_shared_add(smem, uint32(1))
                else:
                    st_shared_u32(smem, uint32(ld_shared_u32(smem) + 1))  # first # second

        return kernel

    assert_found(make, "-after-", "a barrier between the two", num_threads=128)


def test_static_shared_arrays_too():
    def make(sound):
        def kernel(out, n):
            sums = cuda.shared.array(4, uint32)
            tid = uint32(cuda.threadIdx.x)
            if tid & 31 == 0:
                sums[0 if not sound else tid >> 5] = tid  # first # second
            cuda.syncthreads()
            if tid == 0:
                st_global_u32(out, sums[0])

        return kernel

    assert_found(make, WAW, "a barrier between the two", num_threads=128)
