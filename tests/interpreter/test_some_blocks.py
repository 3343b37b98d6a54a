"""Some blocks of a launch whose operands are too large to be there: windows at their ends."""

import numpy as np
import pytest
from numba import cuda, uint32, uint64

from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.errors import InterpreterError
from ferrum_numba.interpreter import Window, run_some
from ferrum_numba.ptx.memory import ld_global_nc_u32, st_global_u32

PARAMETERS = (*pointers("x", "out"), *sizes("columns"))
ROWS, COLUMNS = 1 << 20, 1 << 16
SIZE_BYTES = ROWS * COLUMNS * 4
LAST = Window(SIZE_BYTES - (1 << 20), 1 << 20)


def wide(x, out, columns):
    row = uint32(uint32(cuda.blockIdx.x) + uint32(cuda.threadIdx.x) * 0)
    at = (uint64(row) * uint64(columns) + uint64(uint32(cuda.threadIdx.x))) << 2
    st_global_u32(out + at, ld_global_nc_u32(x + at))


def narrow(x, out, columns):
    row = uint32(uint32(cuda.blockIdx.x) + uint32(cuda.threadIdx.x) * 0)
    at = uint64(uint32(row * columns + uint32(cuda.threadIdx.x))) << 2
    st_global_u32(out + at, ld_global_nc_u32(x + at))


def ran(function, windows, buffers=None, block=ROWS - 1):
    launch = Launch((ROWS, 1, 1), {"columns": COLUMNS})
    program = Program(function, PARAMETERS, 32)
    return run_some(program, launch, buffers or {}, windows, [(block, 0, 0)])


def test_the_last_block_reads_and_writes_the_ends_of_256_gib():
    assert ran(wide, {"x": LAST, "out": LAST}) == {"out"}


def test_an_address_of_32_bits_is_elsewhere():
    with pytest.raises(InterpreterError, match=r"x - \d+, outside its 1048576 bytes"):
        ran(narrow, {"x": LAST, "out": LAST})


def test_another_block_is_elsewhere_too():
    with pytest.raises(InterpreterError, match="outside its 1048576 bytes"):
        ran(wide, {"x": LAST, "out": LAST}, block=0)


def test_what_is_there_is_read_and_stays_as_it_is():
    x = np.arange(COLUMNS, dtype=np.uint32)
    before = x.copy()
    first = Window(0, 4 * COLUMNS)
    assert ran(wide, {"out": first}, {"x": x}, block=0) == {"out"}
    np.testing.assert_array_equal(x, before)
