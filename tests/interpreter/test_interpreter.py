"""The interpreter: lock step, and every rule of the machine that it refuses to let a kernel break.

A kernel here is a few lines; an error must name the line that is marked in it.
"""

import inspect
import re

import numpy as np
import pytest
from numba import cuda, types
from numba.cuda.types import float32, int32, uint32, uint64

from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.errors import InterpreterError
from ferrum_numba.interpreter import run
from ferrum_numba.ptx.asynchronous import (
    cp_async_4,
    cp_async_16,
    cp_async_16_if,
    cp_async_16_zfill,
    cp_async_bulk,
    cp_async_commit,
    cp_async_wait,
    fence_mbarrier_init,
    mbarrier_arrive,
    mbarrier_arrive_expect_tx,
    mbarrier_init,
    mbarrier_try_wait,
    mbarrier_wait,
)
from ferrum_numba.ptx.instruction import IMMEDIATE, U32, U64, instruction
from ferrum_numba.ptx.memory import (
    atom_add_acq_rel_gpu,
    ld_acquire_gpu,
    ld_global_u32,
    ld_global_v4,
    ld_shared_u32,
    ld_shared_v4,
    red_add_release_gpu,
    st_global_u32,
    st_global_v4,
    st_release_gpu,
    st_shared_u32,
    st_shared_v4,
)
from ferrum_numba.ptx.shuffle import shfl_idx, shfl_xor
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import (
    bar_arrive,
    bar_sync,
    bar_warp_sync,
    cluster_arrive,
    cluster_wait,
    ld_shared_cluster_u32,
    mapa,
    st_shared_cluster_u32,
)
from ferrum_numba.ptx.tensor_map import MAP_BYTES, describe_matrix


def execute(
    kernel, *, num_threads=32, grid=1, smem_bytes=0, cluster=1, co_resident=False,
    unwritten=("out",), races=True, **arrays,
):  # fmt: skip
    """Run a kernel whose parameters are the arrays, then `n`; return the array `out`."""
    arrays.setdefault("out", np.zeros(grid * num_threads, np.uint32))
    program = Program(
        kernel, (*pointers(*arrays), *sizes("n")), num_threads, 1, smem_bytes, (cluster, 1, 1)
    )
    launch = Launch((grid, 1, 1), {"n": grid * num_threads}, co_resident=co_resident)
    run(program, launch, arrays, unwritten=unwritten, races=races)
    return arrays["out"]


def line_of(function, mark):
    """Return file:line of the only line of a function's source with a mark."""
    lines, first = inspect.getsourcelines(function)
    (number,) = [first + i for i, line in enumerate(lines) if mark in line]
    return f"{inspect.getsourcefile(function)}:{number}"


def refused(kernel, message, mark="# here", **how):
    """Run a kernel that must fail at its marked line, with a message that matches."""
    with pytest.raises(InterpreterError, match=message) as caught:
        execute(kernel, **how)
    if mark:
        assert re.search(re.escape(line_of(kernel, mark)) + r"\b", str(caught.value))
    return str(caught.value)


@cuda.jit(device=True)
def at(base, index):
    """Return the address of word `index`."""
    return base + uint64(index) * uint64(4)


def test_threads_know_who_they_are():
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        i = uint32(uint32(cuda.blockIdx.x) * uint32(cuda.blockDim.x) + tid)
        st_global_u32(at(out, i), uint32(i * n + uint32(cuda.laneid)))

    got = execute(kernel, num_threads=64, grid=3)
    i = np.arange(192)
    np.testing.assert_array_equal(got, i * 192 + i % 32)


def test_a_shuffle_sees_all_lanes_at_once():
    def kernel(out, n):
        lane = uint32(cuda.laneid)
        value = uint32(0)
        # lanes take different times to get here
        for i in range(int(lane)):
            value = uint32(value + uint32(i))
        st_global_u32(at(out, lane), shfl_xor(value, uint32(1)))

    lane = np.arange(32) ^ 1
    np.testing.assert_array_equal(execute(kernel), lane * (lane - 1) // 2)


def test_lanes_meet_again_after_a_branch():
    calls = []

    @instruction("mov.u32 <d>, <a>;")
    def count_lanes(a: U32) -> U32:
        calls.append(len(a))
        return a

    def kernel(out, n):
        lane = uint32(cuda.laneid)
        if lane < uint32(5):
            for _ in range(3):
                st_global_u32(at(out, lane), uint32(0))
        st_global_u32(at(out, lane), count_lanes(lane))

    np.testing.assert_array_equal(execute(kernel), np.arange(32))
    assert calls == [32]


def test_results_are_numpy_scalars_and_tuples_of_them():
    kinds = set()

    def kernel(x, out, n):
        value = ld_global_v4(x + uint64(cuda.laneid) * uint64(16))
        kinds.add((type(value), len(value), type(value[0])))
        st_global_v4(out + uint64(cuda.laneid) * uint64(16), (value[3], value[2], value[1], 7))

    x = np.arange(128, dtype=np.uint32)
    got = execute(kernel, x=x, out=np.zeros(128, np.uint32)).reshape(32, 4)
    np.testing.assert_array_equal(got[:, :3], x.reshape(32, 4)[:, :0:-1])
    assert (got[:, 3] == 7).all()
    assert kinds == {(tuple, 4, np.uint32)}


def test_operands_wrap_like_a_register_and_floats_are_no_integers():
    def wraps(out, n):
        st_global_u32(at(out, cuda.laneid), -1)

    assert (execute(wraps) == 0xFFFFFFFF).all()

    def fails(out, n):
        st_global_u32(at(out, cuda.laneid), float32(1))  # here

    refused(fails, r"st_global_u32 needs an integer for u32; got np.float32\(1.0\)")


def test_a_vector_operand_needs_as_many_values():
    def kernel(out, n):
        st_global_v4(out, (1, 2, 3))  # here

    refused(kernel, r"st_global_v4 needs a tuple of 4 values; got \(.*1.*, .*2.*, .*3.*\)$")

    def scalar(out, n):
        st_global_v4(out, n)  # here

    refused(scalar, "needs a tuple of 4 values; got np.uint32")


@pytest.mark.parametrize(
    ("cast", "value", "want"),
    [
        (uint32, -1, 0xFFFFFFFF),
        (types.uint32, 1 << 32, 0),
        (int32, 0xFFFFFFFF, -1),
        (uint64, -1, (1 << 64) - 1),
        (float32, 1 / 3, np.float32(1 / 3)),
        (types.uint16, -1, 0xFFFF),
    ],
    ids=str,
)
def test_numba_types_are_wrapping_casts(cast, value, want):
    seen = set()

    def kernel(out, n):
        seen.add((cast(value), type(cast(value)).__name__))

    execute(kernel)
    assert seen == {(want, str(cast))}


def test_a_cast_around_an_expression_wraps_it():
    big = 0xFFFFFFFF

    def kernel(out, n):
        lane = uint32(cuda.laneid)
        a = uint32(uint32(big) + lane)
        b = types.uint32(lane - uint32(3) + uint32(big) * uint32(big))
        st_global_u32(at(out, lane), uint32(a ^ b))

    lane = np.arange(32)
    a, b = (lane - 1) % 2**32, (lane - 3 + 1) % 2**32
    np.testing.assert_array_equal(execute(kernel), a ^ b)


def test_what_is_below_zero_wraps_in_64_bits_as_on_the_gpu():
    def kernel(out, n):
        lane = uint32(cuda.laneid)
        index = lane - uint32(3)
        st_global_u32(at(out, index), lane)  # here

    message = refused(kernel, r"writes 4 bytes at out - 12, outside")
    assert "thread 0 of block (0, 0, 0)" in message


def test_division_by_zero_is_an_error():
    def kernel(out, n):
        st_global_u32(at(out, n // uint32(cuda.laneid)), uint32(0))  # here

    refused(kernel, "divide by zero")


def test_device_functions_are_rebound_with_their_closures():
    factor = 3

    @cuda.jit(device=True)
    def scaled(value):
        return uint32(value * uint32(factor))

    @cuda.jit(device=True, inline="always")
    def verb(value):
        return uint32(scaled(value) + uint32(cuda.threadIdx.x))

    def kernel(out, n):
        lane = uint32(cuda.laneid)
        st_global_u32(at(out, lane), verb(lane))

    np.testing.assert_array_equal(execute(kernel), 4 * np.arange(32))


def test_an_error_in_a_device_function_names_its_line_and_the_callers():
    @cuda.jit(device=True, inline="always")
    def verb(out):
        return ld_global_u32(out)  # there

    def kernel(out, n):
        verb(out)  # here

    message = refused(kernel, "which nobody has written", mark=None)
    assert line_of(verb.py_func, "# there") in message
    here = line_of(kernel, "# here").rpartition(":")[2]
    assert f"(in verb, called from line {here})" in message


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (128, r"ld_global_u32 reads 4 bytes at x \+ 128, outside its 128 bytes"),
        (-4, r"reads 4 bytes at x - 4, outside its 128 bytes"),
        (2, r"reads 4 bytes at x \+ 2, which is no multiple of 4"),
        (126, r"reads 4 bytes at x \+ 126, outside"),
    ],
)
def test_addresses_are_checked(offset, message):
    def kernel(x, out, n):
        lane = uint32(cuda.laneid)
        address = x
        if lane == uint32(7):
            address = uint64(int(x) + offset)
        ld_global_u32(address)  # here

    text = refused(kernel, message, x=np.zeros(32, np.uint32))
    assert "thread 7 of block (0, 0, 0)" in text


def test_an_address_of_no_buffer_is_refused():
    def kernel(out, n):
        ld_global_u32(uint64(64))  # here

    refused(kernel, "ld_global_u32 uses address 0x40, which lies in no buffer")


def test_lanes_may_read_different_buffers():
    def kernel(x, y, out, n):
        lane = uint32(cuda.laneid)
        base = x if uint32(lane & uint32(1)) == uint32(0) else y
        st_global_u32(at(out, lane), ld_global_u32(at(base, lane)))

    x, y = np.arange(32, dtype=np.uint32), np.arange(32, 64, dtype=np.uint32)
    lane = np.arange(32)
    np.testing.assert_array_equal(execute(kernel, x=x, y=y), np.where(lane % 2, y, x))


def test_unwritten_buffers_may_not_be_read():
    def kernel(out, n):
        st_global_u32(at(out, cuda.laneid), uint32(1))
        cuda.syncwarp()
        ld_global_u32(at(out, uint32(cuda.laneid) + uint32(1)))  # here

    message = refused(kernel, r"reads 4 bytes at out \+ 128, which nobody has written",
                      out=np.zeros(64, np.uint32))  # fmt: skip
    assert "thread 31" in message
    execute(kernel, out=np.zeros(64, np.uint32), unwritten=())


def test_shared_memory_is_unwritten_at_first_and_ends():
    def unwritten(out, n):
        ld_shared_u32(smem_base())  # here

    def outside(out, n):
        st_shared_v4(uint32(smem_base() + uint32(120)), (0, 0, 0, 0))  # here

    refused(unwritten, r"shared memory \+ 0, which nobody has written", smem_bytes=128)
    refused(outside, r"writes 16 bytes at shared memory \+ 120, outside its 128", smem_bytes=128)


def test_local_arrays_are_checked():
    def kernel(out, n):
        a = cuda.local.array((2, 3), types.float32)
        a[1, 2] = 1.5
        a[1, 2] += float32(1)
        assert type(a[1, 2]) is np.float32
        assert a[1, 2] == 2.5
        a[0, 1]  # here

    def outside(out, n):
        a = cuda.local.array(4, uint32)
        a[uint32(4)] = 1  # here

    refused(kernel, r"reads local array\[0, 1\], which nobody has written")
    refused(outside, r"writes local array\[4\], which has shape 4")


def test_static_shared_arrays_belong_to_the_block():
    def kernel(out, n):
        a = cuda.shared.array(64, uint32)
        tid = uint32(cuda.threadIdx.x)
        a[tid] = uint32(tid + uint32(64) * uint32(cuda.blockIdx.x))
        cuda.syncthreads()
        i = uint32(uint32(cuda.blockIdx.x) * uint32(64) + tid)
        st_global_u32(at(out, i), a[uint32(63) - tid])

    got = execute(kernel, num_threads=64, grid=2)
    np.testing.assert_array_equal(got, np.arange(128).reshape(2, 64)[:, ::-1].ravel())


def test_syncthreads_waits_for_all_warps():
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        smem = smem_base()
        for i in range(3):
            st_shared_u32(uint32(smem + tid * uint32(4)), uint32(tid + uint32(i)))
            cuda.syncthreads()
            value = ld_shared_u32(uint32(smem + uint32(uint32(127) - tid) * uint32(4)))
            cuda.syncthreads()
        st_global_u32(at(out, tid), value)

    got = execute(kernel, num_threads=128, smem_bytes=512)
    np.testing.assert_array_equal(got, np.arange(128)[::-1] + 2)


def test_a_missing_syncthreads_reads_unwritten_bytes():
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        smem = smem_base()
        st_shared_u32(uint32(smem + tid * uint32(4)), tid)
        ld_shared_u32(uint32(smem + uint32(uint32(63) - tid) * uint32(4)))  # here

    refused(kernel, "which nobody has written", num_threads=64, smem_bytes=256)


def test_a_missing_syncthreads_is_found_in_either_direction():
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        smem = smem_base()
        if tid < uint32(32):
            st_shared_u32(uint32(smem + tid * uint32(4)), tid)
        else:
            ld_shared_u32(uint32(smem + uint32(tid - uint32(32)) * uint32(4)))  # here

    # the warps of a block run in turn, and those of the next block in the other order
    message = refused(kernel, "which nobody has written", grid=2, num_threads=64, smem_bytes=128,
                      races=False)  # fmt: skip
    assert "block (1, 0, 0)" in message


def test_threads_that_ended_are_not_waited_for():
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        if tid >= uint32(40):
            return
        cuda.syncthreads()
        st_global_u32(at(out, tid), tid)

    got = execute(kernel, num_threads=64)
    np.testing.assert_array_equal(got[:40], np.arange(40))


def test_lanes_that_disagree_are_named_with_both_lines():
    def kernel(out, n):
        lane = uint32(cuda.laneid)
        if lane < uint32(16):
            shfl_xor(lane, uint32(1))  # here
        else:
            cuda.syncthreads()  # there

    message = refused(kernel, "shfl_xor: lanes disagree: thread 16 of the same warp")
    assert f"syncthreads, {line_of(kernel, '# there')}" in message


def test_the_same_instruction_on_two_lines_is_a_disagreement():
    def kernel(out, n):
        lane = uint32(cuda.laneid)
        if lane < uint32(16):
            shfl_idx(lane, uint32(1))  # here
        else:
            shfl_idx(lane, uint32(1))  # there

    message = refused(kernel, "lanes disagree: thread 16")
    assert line_of(kernel, "# there") in message


def test_a_warp_instruction_needs_all_lanes():
    def kernel(out, n):
        lane = uint32(cuda.laneid)
        if lane == uint32(3):
            return
        shfl_xor(lane, uint32(1))  # here

    refused(kernel, "shfl_xor needs all 32 lanes of the warp; 31 are left")


def test_immediates_belong_to_the_request():
    @instruction("add.u32 <d>, <a>, <k>;", scope="warp")
    def add_immediate(a: U32, k: IMMEDIATE) -> U32:
        return a + np.uint32(k)

    def kernel(out, n):
        lane = uint32(cuda.laneid)
        add_immediate(lane, 1 if lane < uint32(4) else 2)

    refused(kernel, "lanes disagree", mark=None)


def test_a_warpgroup_instruction_runs_once_for_128_lanes():
    calls = []

    @instruction("mov.u32 <d>, <a>;", scope="warpgroup")
    def rotate(a: U32) -> U32:
        calls.append(len(a))
        return np.roll(a, -1)

    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        st_global_u32(at(out, tid), rotate(tid))

    got = execute(kernel, num_threads=256)
    np.testing.assert_array_equal(got, np.roll(np.arange(256).reshape(2, 128), -1, 1).ravel())
    assert calls == [128, 128]
    refused(kernel, "rotate needs four warps in a row", mark=None, num_threads=64)


def test_cp_async_lands_when_its_lane_waits():
    def kernel(x, out, n):
        tid = uint32(cuda.threadIdx.x)
        slot = uint32(smem_base() + tid * uint32(16))
        cp_async_16(slot, x + uint64(tid) * uint64(16))
        cp_async_commit()
        cp_async_wait(0)
        st_global_v4(out + uint64(tid) * uint64(16), ld_shared_v4(slot))

    x = np.arange(128, dtype=np.uint32)
    got = execute(kernel, x=x, out=np.zeros_like(x), smem_bytes=512)
    np.testing.assert_array_equal(got, x)


def test_cp_async_groups_land_in_order():
    def kernel(x, out, n):
        lane = uint32(cuda.laneid)
        slot = uint32(smem_base() + lane * uint32(4))
        for i in range(3):
            cp_async_4(uint32(slot + uint32(i * 128)), at(x, lane))
            cp_async_commit()
        cp_async_wait(1)
        ld_shared_u32(slot)
        ld_shared_u32(uint32(slot + uint32(128)))
        ld_shared_u32(uint32(slot + uint32(256)))  # here

    refused(kernel, r"shared memory \+ 256, which an asynchronous copy is still writing",
            x=np.zeros(32, np.uint32), smem_bytes=384)  # fmt: skip


def test_a_forgotten_wait_is_found():
    def kernel(x, out, n):
        slot = uint32(smem_base() + uint32(cuda.laneid) * uint32(16))
        st_shared_v4(slot, (0, 0, 0, 0))
        cp_async_16(slot, x + uint64(cuda.laneid) * uint64(16))
        cp_async_commit()
        ld_shared_v4(slot)  # here

    refused(kernel, "nobody waited for it", x=np.zeros(128, np.uint32), smem_bytes=512)


def test_writing_where_a_copy_will_land_is_refused():
    def kernel(x, out, n):
        slot = uint32(smem_base() + uint32(cuda.laneid) * uint32(16))
        cp_async_16(slot, x + uint64(cuda.laneid) * uint64(16))
        st_shared_u32(slot, uint32(0))  # here

    refused(kernel, "writes 4 bytes at shared memory \\+ 0, which an asynchronous copy",
            x=np.zeros(128, np.uint32), smem_bytes=512)  # fmt: skip


def test_cp_async_copies_in_part_and_not_at_all():
    def kernel(x, out, n):
        lane = uint32(cuda.laneid)
        slot = uint32(smem_base() + lane * uint32(16))
        st_shared_v4(slot, (9, 9, 9, 9))
        here = x + uint64(lane) * uint64(16)
        # past the end of x, where the predicate is off
        cp_async_16_if(slot, here, uint32(1) if lane < uint32(16) else uint32(0))
        cp_async_commit()
        cp_async_wait(0)
        zeros = uint32(slot + uint32(512))
        cp_async_16_zfill(zeros, x, uint32(lane & uint32(15)))
        cp_async_commit()
        cp_async_wait(0)
        st_global_v4(out + uint64(lane) * uint64(32), ld_shared_v4(slot))
        st_global_v4(out + uint64(lane) * uint64(32) + uint64(16), ld_shared_v4(zeros))

    x = np.arange(256, dtype=np.uint8)
    got = execute(kernel, x=x, out=np.zeros(1024, np.uint8), smem_bytes=1024).reshape(32, 32)
    np.testing.assert_array_equal(got[:16, :16].ravel(), x)
    np.testing.assert_array_equal(got[16:, :16].view(np.uint32), 9)
    want = np.where(np.arange(16) < np.arange(32)[:, None] % 16, x[:16], 0)
    np.testing.assert_array_equal(got[:, 16:], want)


def test_a_spin_lets_the_next_block_start():
    def kernel(flags, out, n):
        bid = uint32(cuda.blockIdx.x)
        if bid + uint32(1) < uint32(cuda.gridDim.x):
            while ld_acquire_gpu(at(flags, bid)) == uint32(0):
                pass
        if uint32(cuda.threadIdx.x) == uint32(0):
            previous = ld_global_u32(at(flags, bid))
            st_global_u32(at(out, bid), uint32(previous + uint32(1)))
            if bid > uint32(0):
                st_release_gpu(at(flags, uint32(bid - uint32(1))), uint32(previous + uint32(1)))

    flags = np.zeros(4, np.uint32)
    got = execute(kernel, grid=4, co_resident=True, flags=flags, out=np.zeros(4, np.uint32))
    np.testing.assert_array_equal(got, [4, 3, 2, 1])


def test_a_block_may_begin_by_polling():
    """All of its warps let the others go first, and nobody else is left to move in that turn."""

    def kernel(count, out, n):
        if cuda.blockIdx.x == 0:
            red_add_release_gpu(count, uint32(1))
        else:
            while ld_acquire_gpu(count) == uint32(0):
                pass

    execute(kernel, grid=2, co_resident=True, count=np.zeros(1, np.uint32))


def test_blocks_that_wait_for_each_other_must_be_co_resident():
    def kernel(count, out, n):
        if cuda.threadIdx.x == 0:
            red_add_release_gpu(count, uint32(1))
            while ld_acquire_gpu(count) < uint32(cuda.gridDim.x):  # here
                pass
        cuda.syncthreads()

    execute(kernel, grid=3, co_resident=True, count=np.zeros(1, np.uint32))
    message = refused(kernel, "deadlock.*not co_resident", grid=3, count=np.zeros(1, np.uint32))
    assert "syncthreads" in message


def test_the_last_block_to_arrive_needs_no_co_residence():
    def kernel(parts, count, out, n):
        tid, bid = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        flag = cuda.shared.array(1, uint32)
        st_global_u32(at(parts, uint32(bid * uint32(32) + tid)), uint32(bid * tid))
        cuda.syncthreads()
        if tid == uint32(0):
            flag[0] = atom_add_acq_rel_gpu(count, uint32(1))
        cuda.syncthreads()
        if flag[0] == uint32(2):
            total = uint32(0)
            for b in range(3):
                total = uint32(total + ld_global_u32(at(parts, uint32(uint32(b * 32) + tid))))
            st_global_u32(at(out, tid), total)

    got = execute(
        kernel, grid=3, parts=np.zeros(96, np.uint32), count=np.zeros(1, np.uint32),
        out=np.zeros(32, np.uint32), unwritten=("out", "parts"),
    )  # fmt: skip
    np.testing.assert_array_equal(got, 3 * np.arange(32))


def test_a_deadlock_names_who_waits_where():
    def kernel(out, n):
        if uint32(cuda.threadIdx.x) < uint32(32):
            bar_sync(uint32(1), uint32(64))  # here
        else:
            bar_sync(uint32(2), uint32(64))  # there

    message = refused(kernel, "deadlock: nobody can go on", num_threads=64)
    assert line_of(kernel, "# there") in message
    assert "thread 32 and 31 more of its warp in block (0, 0, 0)" in message


def test_named_barriers_join_some_warps():
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        smem = smem_base()
        slot = uint32(smem + uint32(tid & uint32(31)) * uint32(4))
        if tid < uint32(32):
            for i in range(4):
                bar_sync(uint32(2), uint32(64))
                st_shared_u32(slot, uint32(tid + uint32(i)))
                bar_arrive(uint32(1), uint32(64))
        elif tid < uint32(64):
            total = uint32(0)
            for _ in range(4):
                bar_arrive(uint32(2), uint32(64))
                bar_sync(uint32(1), uint32(64))
                total = uint32(total + ld_shared_u32(slot))
            st_global_u32(at(out, uint32(tid - uint32(32))), total)

    got = execute(kernel, num_threads=96, smem_bytes=128)
    np.testing.assert_array_equal(got[:32], 4 * np.arange(32) + 6)


@pytest.mark.parametrize(
    ("number", "count", "message"),
    [
        (1, 33, "barrier 1 is given 33 threads; it needs a multiple of 32 up to 64"),
        (16, 64, "barrier 16 does not exist"),
        (1, 96, "barrier 1 is given 96 threads"),
    ],
)
def test_named_barriers_are_checked(number, count, message):
    def kernel(out, n):
        bar_sync(uint32(number), uint32(count))  # here

    refused(kernel, message, num_threads=64)


def test_a_barrier_that_too_many_join_is_refused():
    def kernel(out, n):
        bar_arrive(uint32(1), uint32(64 if cuda.threadIdx.x < 32 else 32))  # here

    refused(kernel, "barrier 1 is given 32 threads; others wait at it for 64", num_threads=64)


RING = 3


def ring(x, out, n):
    """Warp 1 copies 12 pieces of 128 bytes through a ring; warp 0 adds them up."""
    smem = smem_base()
    tid = uint32(cuda.threadIdx.x)
    lane = uint32(tid & uint32(31))
    if tid == uint32(0):
        for i in range(RING):
            mbarrier_init(uint32(smem + uint32(16 * i)), uint32(1))
            mbarrier_init(uint32(smem + uint32(16 * i + 8)), uint32(32))
        fence_mbarrier_init()
    cuda.syncthreads()
    stage = uint32(0)
    if tid >= uint32(32):
        parity = uint32(1)
        for i in range(12):
            full = uint32(smem + stage * uint32(16))
            mbarrier_wait(uint32(full + uint32(8)), parity)
            if lane == uint32(0):
                mbarrier_arrive_expect_tx(full, uint32(128))
                slot = uint32(smem + uint32(128) + stage * uint32(128))
                cp_async_bulk(slot, x + uint64(i * 128), uint32(128), full)
            bar_warp_sync()
            stage = uint32(stage + uint32(1))
            if stage == uint32(RING):
                stage = uint32(0)
                parity = uint32(parity ^ uint32(1))
    else:
        parity = uint32(0)
        total = uint32(0)
        for _ in range(12):
            full = uint32(smem + stage * uint32(16))
            while mbarrier_try_wait(full, parity) == uint32(0):
                pass
            slot = uint32(smem + uint32(128) + stage * uint32(128))
            total = uint32(total + ld_shared_u32(uint32(slot + lane * uint32(4))))
            mbarrier_arrive(uint32(full + uint32(8)))
            stage = uint32(stage + uint32(1))
            if stage == uint32(RING):
                stage = uint32(0)
                parity = uint32(parity ^ uint32(1))
        st_global_u32(at(out, lane), total)


def test_an_mbarrier_ring_with_a_producer_warp():
    x = np.random.default_rng(0).integers(0, 1000, (12, 32), dtype=np.uint32)
    got = execute(ring, num_threads=64, smem_bytes=128 + RING * 128, x=x)
    np.testing.assert_array_equal(got[:32], x.sum(0))


@cuda.jit(device=True)
def bulk(x, smem, size_bytes, expected):
    """Copy with one lane and wait: the core of the tests of mbarriers."""
    if uint32(cuda.laneid) == uint32(0):
        mbarrier_init(smem, uint32(1))
        fence_mbarrier_init()
        mbarrier_arrive_expect_tx(smem, uint32(expected))
        cp_async_bulk(uint32(smem + uint32(128)), x, uint32(size_bytes), smem)
    cuda.syncwarp()


def test_wrong_transaction_bytes_are_a_deadlock_that_says_so():
    def kernel(x, out, n):
        smem = smem_base()
        bulk(x, smem, 128, 144)
        mbarrier_wait(smem, uint32(0))  # here

    x = np.zeros(32, np.uint32)
    refused(kernel, "mbarrier_wait.*0 arrivals and 16 bytes are outstanding", x=x, smem_bytes=256)


def test_a_bulk_copy_nobody_waited_for_is_found():
    def kernel(x, out, n):
        smem = smem_base()
        bulk(x, smem, 128, 128)
        ld_shared_u32(uint32(smem + uint32(128)))  # here

    refused(kernel, "asynchronous copy is still writing", x=np.zeros(32, np.uint32), smem_bytes=256)

    def ends(x, out, n):
        bulk(x, smem_base(), 128, 128)

    refused(ends, r"block \(0, 0, 0\) ends while 128 bytes of its bulk copies", mark=None,
            x=np.zeros(32, np.uint32), smem_bytes=256)  # fmt: skip


@pytest.mark.parametrize(("size_bytes", "skip"), [(24, 0), (32, 8)])
def test_bulk_copies_are_of_whole_16_bytes(size_bytes, skip):
    def kernel(x, out, n):
        if uint32(cuda.laneid) == uint32(0):
            smem = smem_base()
            mbarrier_init(smem, uint32(1))
            slot = uint32(smem + uint32(16))
            cp_async_bulk(slot, x + uint64(skip), uint32(size_bytes), smem)  # here

    refused(kernel, "both must be multiples of 16", x=np.zeros(32, np.uint32), smem_bytes=256)


def test_mbarriers_count_exactly():
    def too_many(out, n):
        if uint32(cuda.laneid) == uint32(0):
            mbarrier_init(smem_base(), uint32(2))
            mbarrier_arrive_expect_tx(smem_base(), uint32(16))
            mbarrier_arrive(smem_base())
            mbarrier_arrive(smem_base())  # here

    def none(out, n):
        mbarrier_arrive(uint32(smem_base() + uint32(8)))  # here

    def stored(out, n):
        if uint32(cuda.laneid) == uint32(0):
            mbarrier_init(smem_base(), uint32(1))
            st_shared_u32(smem_base(), uint32(0))  # here

    refused(too_many, "whose 2 arrivals of this phase are all in", smem_bytes=128)
    refused(none, r"no mbarrier was initialised at shared memory \+ 8", smem_bytes=128)
    refused(stored, "which hold an mbarrier", smem_bytes=128)


def test_a_cluster_shares_its_memory():
    def kernel(out, n):
        tid, bid = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        slot = uint32(smem_base() + tid * uint32(4))
        st_shared_u32(slot, uint32(bid * uint32(100) + tid))
        cluster_arrive()
        cluster_wait()
        peer = uint32(uint32(bid & uint32(1)) ^ uint32(1))
        value = ld_shared_cluster_u32(mapa(slot, peer))
        st_shared_cluster_u32(mapa(uint32(slot + uint32(128)), peer), uint32(bid))
        cluster_arrive()
        cluster_wait()
        told = ld_shared_u32(uint32(slot + uint32(128)))
        st_global_u32(at(out, uint32(bid * uint32(32) + tid)), uint32(value + told * uint32(1000)))

    got = execute(kernel, grid=4, cluster=2, smem_bytes=256).reshape(4, 32)
    peer = np.arange(4)[:, None] ^ 1
    np.testing.assert_array_equal(got, peer * 100 + np.arange(32) + peer * 1000)


def test_reading_another_block_before_the_cluster_barrier_is_found():
    def kernel(out, n):
        slot = uint32(smem_base() + uint32(cuda.threadIdx.x) * uint32(4))
        st_shared_u32(slot, uint32(1))
        rank = uint32(uint32(1) - uint32(cuda.blockIdx.x))
        ld_shared_cluster_u32(mapa(slot, rank))  # here

    refused(kernel, "which nobody has written", grid=2, cluster=2, smem_bytes=256)


def test_a_rank_outside_the_cluster_is_refused():
    def kernel(out, n):
        mapa(smem_base(), uint32(2))  # here

    refused(kernel, "rank 2 of a cluster of 2 blocks", grid=2, cluster=2, smem_bytes=256)


def test_a_launch_needs_its_buffers():
    def kernel(out, n):
        pass

    program = Program(kernel, (*pointers("out", "x"), *sizes("n")), 32)
    with pytest.raises(InterpreterError, match="no buffer is given for the parameter x"):
        run(program, Launch((1, 1, 1), {"n": 1}), {"out": np.zeros(1)})
    with pytest.raises(InterpreterError, match="no scalar is given for the parameter n"):
        run(program, Launch((1, 1, 1), {}), {"out": np.zeros(1), "x": np.zeros(1)})


def test_buffers_must_be_contiguous():
    def kernel(out, n):
        pass

    with pytest.raises(InterpreterError, match="buffer out must be C-contiguous"):
        execute(kernel, out=np.zeros((4, 4))[:, ::2])


def test_what_the_interpreter_lacks_is_named():
    def kernel(out, n):
        cuda.nanosleep(100)  # here

    refused(kernel, "uses cuda.nanosleep, which the interpreter does not have")


def test_a_twin_may_wait_for_others():
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        if tid == uint32(0):
            mbarrier_init(smem_base(), uint32(2))
        cuda.syncthreads()
        if tid == uint32(0) or tid == uint32(33):
            mbarrier_arrive(smem_base())
        mbarrier_wait(smem_base(), uint32(0))
        st_global_u32(at(out, tid), tid)

    got = execute(kernel, num_threads=64, smem_bytes=64)
    np.testing.assert_array_equal(got, np.arange(64))


def test_a_twin_sees_the_declared_types():
    seen = []

    @instruction("mov.u64 <d>, <a>;")
    def probe(lanes, a: U64) -> U64:
        seen.append((a.dtype, a.shape, lanes.thread.tolist()))
        return a

    def kernel(out, n):
        probe(5)

    execute(kernel, num_threads=16)
    assert seen == [(np.dtype(np.uint64), (16,), list(range(16)))]


@pytest.mark.parametrize("box_rows", [0, 257])
def test_a_box_has_rows_that_the_hardware_can_count(box_rows):
    def kernel(x, out, n):
        lane = uint32(cuda.laneid)
        st_shared_u32(uint32(smem_base() + lane * 4), uint32(0))
        bar_warp_sync()
        if lane == uint32(0):
            rows, row_bytes = uint32(box_rows), uint64(128)
            describe_matrix(smem_base(), x, uint32(64), uint32(1), row_bytes, rows)  # here

    words = rf"boxes of \[{box_rows}\] rows; 1 to 256 are possible"
    refused(kernel, words, x=np.zeros(64, np.uint16), smem_bytes=MAP_BYTES)


@pytest.mark.parametrize("of", ["warp", "lane"])
def test_a_barrier_in_a_branch_is_a_deadlock_that_says_who_misses_it(of):
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        number = uint32(tid // uint32(32)) if of == "warp" else uint32(tid % uint32(32))
        if number < uint32(2):
            cuda.syncthreads()  # here
        st_global_u32(at(out, tid), tid)

    ended = 64 if of == "warp" else 120
    refused(kernel, rf"deadlock.*\n.*; {ended} threads of the block ended without", num_threads=128)


@pytest.mark.parametrize(
    ("whose", "words"), [("own", "read-after-write"), ("other", "which nobody has written")]
)
def test_a_barrier_in_a_branch_before_a_read_is_told_by_the_read(whose, words):
    def kernel(out, n):
        tid, lane = uint32(cuda.threadIdx.x), uint32(cuda.laneid)
        own = uint32(smem_base() + uint32(tid // uint32(32)) * uint32(4))
        if lane == uint32(0):
            st_shared_u32(own, tid)
            cuda.syncthreads()
        # the other lanes do not wait, and come first
        place = own if whose == "own" else uint32(uint32(2) * smem_base() + uint32(4) - own)
        st_global_u32(at(out, tid), ld_shared_u32(place))  # here

    refused(kernel, words, num_threads=64, smem_bytes=8)


def test_arithmetic_of_float16_is_refused_as_it_does_not_link():
    def kernel(out, n):
        half = types.float16(float32(1))
        st_global_u32(at(out, cuda.laneid), uint32(half * half))  # here

    refused(kernel, "computes with float16, .*; use float32")


def test_threads_that_return_before_a_barrier_are_not_waited_for():
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        if tid >= uint32(40):
            return
        st_shared_u32(uint32(smem_base() + tid * uint32(4)), tid)
        cuda.syncthreads()
        st_global_u32(at(out, tid), ld_shared_u32(uint32(smem_base() + tid * uint32(4))))

    got = execute(kernel, num_threads=64, smem_bytes=160)
    np.testing.assert_array_equal(got[:40], np.arange(40))


def test_lanes_that_wait_for_different_mbarriers_go_on_apart():
    def kernel(out, n):
        smem, lane = smem_base(), uint32(cuda.laneid)
        if lane == uint32(0):
            mbarrier_init(smem, uint32(1))
            mbarrier_init(uint32(smem + uint32(8)), uint32(1))
            fence_mbarrier_init()
            mbarrier_arrive(smem)
        cuda.syncwarp()
        # lane 0 waits for what has ended, the others for lane 0
        bar = smem if lane == uint32(0) else uint32(smem + uint32(8))
        mbarrier_wait(bar, uint32(0))
        if lane == uint32(0):
            mbarrier_arrive(uint32(smem + uint32(8)))
        st_global_u32(at(out, lane), lane)

    np.testing.assert_array_equal(execute(kernel, smem_bytes=16), np.arange(32))
