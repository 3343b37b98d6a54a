"""What is counted, line by line: one small kernel a rule."""

import inspect

import numpy as np
from numba import cuda, float32
from numba.cuda import uint32, uint64

from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.interpreter import Tracer, run
from ferrum_numba.interpreter.operands import plan
from ferrum_numba.interpreter.trace import opcodes
from ferrum_numba.kernels.decode.steps import load_tiles
from ferrum_numba.kernels.shared.handoff import take_slots
from ferrum_numba.ptx.asynchronous import (
    cp_async_16,
    cp_async_bulk,
    cp_async_commit,
    cp_async_wait,
    fence_mbarrier_init,
    mbarrier_arrive_expect_tx,
    mbarrier_init,
    mbarrier_wait,
)
from ferrum_numba.ptx.memory import (
    ld_global_u32,
    ld_shared_u32,
    red_add_relaxed_gpu,
    st_global_u32,
    st_shared_u32,
)
from ferrum_numba.ptx.special import smem_base


def traced(kernel, *, num_threads=64, grid=1, smem_bytes=8192, **arrays):
    """Run a kernel whose parameters are the arrays, then `n`; return the tracer."""
    arrays.setdefault("out", np.zeros(grid * num_threads * 4, np.uint32))
    program = Program(kernel, (*pointers(*arrays), *sizes("n")), num_threads, 1, smem_bytes)
    tracer = Tracer()
    launch = Launch((grid, 1, 1), {"n": num_threads})
    run(program, launch, arrays, unwritten=(), trace=tracer)
    return tracer


def line_at(tracer, kernel, mark):
    """Return what was counted at the only line of a kernel's source with a mark."""
    lines, first = inspect.getsourcelines(kernel)
    (number,) = [first + i for i, line in enumerate(lines) if f"# {mark}" in line]
    (found,) = [line for line in tracer.lines if line.number == number]
    return found


def test_warps_are_counted_where_they_are():
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        if tid < 48:
            st_global_u32(out + (uint64(tid) << 2), tid)  # some

    tracer = traced(kernel, grid=3)
    some = line_at(tracer, kernel, "some")
    assert (tracer.num_blocks, tracer.num_warps) == (3, 6)
    # the second warp of each block has half of its lanes here
    assert (some.executed, some.here, some.on) == (6, 3 * 48, 3 * 48)
    assert (some.of("st.global").count, some.of("st.global").units) == (6, 3 * 6)


def test_lanes_on_two_ways_are_two_instructions():
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        if tid % 2 == 0:
            st_global_u32(out + (uint64(tid) << 2), tid)  # even
        else:
            st_global_u32(out + (uint64(tid) << 2), tid)  # odd

    tracer = traced(kernel, num_threads=32)
    for mark in ("even", "odd"):
        line = line_at(tracer, kernel, mark)
        assert (line.executed, line.lanes) == (1, 16)
        # every other word of 128 bytes
        assert vars(line.of("st.global"))["units"] == 4
        assert line.of("st.global").least == 2


def test_a_barrier_counts_once_a_warp_however_long_it_takes():
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        i = uint32(0)
        while i < tid >> 5:
            st_global_u32(out + (uint64(tid) << 2), i)
            i = uint32(i + 1)
        cuda.syncthreads()  # barrier

    barrier = line_at(traced(kernel, num_threads=128), kernel, "barrier")
    assert (barrier.executed, barrier.waits, barrier.lanes) == (4, 4, 32)


def test_copies_in_flight_are_those_that_nobody_waited_for():
    def kernel(x, out, n):
        tid = uint32(cuda.threadIdx.x)
        to = uint32(smem_base() + tid * 16)
        at = x + (uint64(tid) << 4)
        cp_async_16(to, at)  # first
        cp_async_commit()
        cp_async_16(uint32(to + 2048), at)  # second
        cp_async_commit()
        cp_async_wait(1)  # older
        cp_async_wait(0)  # all
        st_global_u32(out + (uint64(tid) << 2), ld_shared_u32(to))

    tracer = traced(kernel, num_threads=128, x=np.arange(512, dtype=np.uint32))
    in_flight = [
        line_at(tracer, kernel, mark).in_flight for mark in ("first", "second", "older", "all")
    ]
    # bytes of one warp
    assert in_flight == [512, 1024, 512, 0]
    # and of the four of a block
    assert tracer.in_flight == 4 * 1024
    first = line_at(tracer, kernel, "first")
    assert first.of("cp.async").units == first.of("cp.async").least == 4 * 16
    assert first.of("cp.async to shared").units == 4 * 4
    assert "ld.global" not in first.requests


def test_a_bulk_copy_is_one_lanes_and_its_bytes_are_the_blocks():
    def kernel(x, out, n):
        tid = uint32(cuda.threadIdx.x)
        smem = smem_base()
        bar = uint32(smem + 4096)
        if tid == 0:
            mbarrier_init(bar, uint32(1))
            fence_mbarrier_init()
            mbarrier_arrive_expect_tx(bar, uint32(2048))
            cp_async_bulk(smem, x, uint32(2048), bar)  # copy
        cuda.syncthreads()
        mbarrier_wait(bar, uint32(0))  # wait
        st_global_u32(out + (uint64(tid) << 2), ld_shared_u32(uint32(smem + tid * 4)))

    tracer = traced(kernel, x=np.arange(512, dtype=np.uint32))
    copy, wait = (line_at(tracer, kernel, mark) for mark in ("copy", "wait"))
    assert (copy.lanes, copy.for_one, copy.in_flight) == (1, True, 2048)
    assert vars(copy.of("cp.async.bulk"))["units"] == 64
    assert (wait.waits, wait.in_flight) == (2, 0)
    assert tracer.in_flight == 2048


def test_static_arrays_have_bank_conflicts_too():
    def kernel(out, n):
        tid = uint32(cuda.threadIdx.x)
        rows = cuda.shared.array((32, 32), float32)
        column = cuda.shared.array((32, 33), float32)
        rows[tid, uint32(0)] = float32(tid)  # in a column
        column[tid, uint32(0)] = float32(tid)  # padded
        cuda.syncthreads()
        total = float32(rows[uint32(3), uint32(0)] + column[tid, uint32(0)])  # both
        st_global_u32(out + (uint64(tid) << 2), uint32(total))

    tracer = traced(kernel, num_threads=32)
    conflict = line_at(tracer, kernel, "in a column").of("st.shared")
    assert (conflict.count, conflict.units, conflict.least) == (1, 32, 1)
    assert line_at(tracer, kernel, "padded").of("st.shared").units == 1
    both = line_at(tracer, kernel, "both")
    # one word for all, and a column that is padded
    assert (both.executed, both.of("ld.shared").units) == (2, 2)


def test_atomics_are_apart_from_loads_and_stores():
    def kernel(out, n):
        red_add_relaxed_gpu(out, uint32(1))  # add
        tid = uint32(cuda.threadIdx.x)
        st_shared_u32(uint32(smem_base() + tid * 4), ld_global_u32(out))

    add = line_at(traced(kernel, num_threads=32), kernel, "add")
    assert set(add.requests) == {"red.global"}
    assert (add.of("red.global").units, add.of("red.global").lanes) == (1, 32)


def test_longer_instructions_are_as_many_as_their_text_has():
    # four loads, a move and three additions
    assert opcodes.count(plan(load_tiles(4))) == 8
    assert opcodes.count(plan(ld_shared_u32)) == 1
    # a label is none, and a vector in braces no block
    take = opcodes.count(plan(take_slots(1, 16, 1, 16, 0)))
    assert take == sum(
        not line.startswith((".", "{", "}", "again:")) and bool(line.strip())
        for line in take_slots(1, 16, 1, 16, 0).template.splitlines()
    )
    assert opcodes.waits(plan(mbarrier_wait)) == 1
    assert opcodes.waits(plan(cp_async_wait)) == 1
    assert opcodes.waits(plan(take_slots(1, 16, 1, 16, 0))) == 0
