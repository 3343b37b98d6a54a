"""What is read too early, and calls of instructions with other operands: what is said of them."""

import inspect

import numpy as np
import pytest
from numba import cuda
from numba.cuda.types import float32, uint32

from ferrum_numba.contract import Launch, Program, pointers
from ferrum_numba.errors import InterpreterError
from ferrum_numba.interpreter import run
from ferrum_numba.ptx import lop3
from ferrum_numba.ptx.asynchronous import cp_async_4, cp_async_commit, cp_async_wait
from ferrum_numba.ptx.memory import ld_shared_f32, st_global_f32, st_shared_f32
from ferrum_numba.ptx.special import smem_base


def refused(function, num_threads=64):
    """Run a kernel; return the error, and the number of the line that is marked in it."""
    lines, first = inspect.getsourcelines(function)
    marked = [first + i for i, line in enumerate(lines) if "# here" in line]
    program = Program(function, pointers("out"), num_threads, smem_bytes=256)
    with pytest.raises(InterpreterError) as error:
        run(program, Launch((1, 1, 1), {}), {"out": np.zeros(64, np.float32)})
    return str(error.value), marked


def test_a_missing_barrier_is_named_with_who_writes_later():
    def kernel(out):
        thread = uint32(cuda.threadIdx.x)
        if thread % uint32(32) == uint32(0):
            at = uint32(smem_base() + uint32(thread // uint32(32)) * uint32(4))
            st_shared_f32(at, float32(1))  # here
        st_global_f32(out, ld_shared_f32(uint32(smem_base() + uint32(4))))  # here

    message, (writes, reads) = refused(kernel)
    # both orders of warps end in the same two lines, of the warps that are apart
    assert f"{__file__}:{reads}: thread 0 of block (0, 0, 0) ld_shared_f32 reads 4 bytes" in message
    assert "which nobody has written" in message
    later = f"{__file__}:{writes}: thread 32 of block (0, 0, 0) st_shared_f32 writes it later"
    assert f"; {later}; missing: a barrier, such as cuda.syncthreads(), between the two" in message


def test_a_copy_that_another_warp_begins_later_is_named():
    def kernel(out):
        thread = uint32(cuda.threadIdx.x)
        if thread == uint32(32):
            st_global_f32(out, float32(1))
            cp_async_4(smem_base(), out)  # here
            cp_async_commit()
            cp_async_wait(0)
        st_global_f32(out, ld_shared_f32(smem_base()))

    message, (copies,) = refused(kernel)
    later = f"{__file__}:{copies}: thread 32 of block (0, 0, 0) cp_async_4 copies to it later"
    assert f"; {later}; missing: a barrier" in message


def test_what_nobody_writes_is_said_as_it_was():
    def kernel(out):
        st_global_f32(out, ld_shared_f32(smem_base()))

    message, _ = refused(kernel)
    assert message.endswith("which nobody has written")


def test_who_waits_for_a_reader_that_is_stuck_ends_the_search():
    def kernel(out):
        if uint32(cuda.threadIdx.x) < uint32(32):
            st_global_f32(out, ld_shared_f32(smem_base()))
        cuda.syncthreads()
        st_shared_f32(smem_base(), float32(1))

    message, _ = refused(kernel)
    assert message.endswith("which nobody has written")


def test_a_missing_operand():
    def kernel(out):
        st_shared_f32(float32(1.24))  # here

    message, (line,) = refused(kernel)
    assert message.startswith(f"{__file__}:{line}: thread 0 of block (0, 0, 0) st_shared_f32 ")
    assert message.endswith("takes (address: u32, value: f32); got 1 argument")


def test_no_operand_at_all():
    def kernel(out):
        st_shared_f32()

    assert refused(kernel)[0].endswith("takes (address: u32, value: f32); got 0 arguments")


def test_one_operand_too_many():
    def kernel(out):
        st_shared_f32(smem_base(), float32(1), float32(2))

    assert refused(kernel)[0].endswith("takes (address: u32, value: f32); got 3 arguments")


def test_a_missing_immediate():
    def kernel(out):
        lop3(uint32(1), uint32(2), uint32(3))

    words = "lop3 takes (a: u32, b: u32, c: u32, lut: constant); got 3 arguments"
    assert refused(kernel)[0].endswith(words)


def test_swapped_operands():
    def kernel(out):
        st_shared_f32(float32(1.5), smem_base())

    words = "got np.float32(1.5), for its address; it takes (address: u32, value: f32)"
    assert refused(kernel)[0].endswith(words)
