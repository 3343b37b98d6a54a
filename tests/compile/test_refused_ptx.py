"""PTX that the linker refuses: its words name a line, whose text is said, too."""

import pytest

from ferrum_numba.compile.compiler import build_program
from ferrum_numba.contract import Program, pointers
from ferrum_numba.errors import BuildError
from ferrum_numba.ptx.instruction import F32, instruction
from ferrum_numba.ptx.memory import st_global_f32


@instruction("add.f23 <d>, <a>, <a>;")
def misspelt(a: F32) -> F32:
    """Return a + a, if f23 were a type."""
    return a + a


def test_the_line_of_an_own_instruction_is_said():
    def kernel(out):
        st_global_f32(out, misspelt(1.0))

    with pytest.raises(BuildError, match=r"line \d+ is `add\.f23 %f\d+, ") as error:
        build_program(Program(kernel, pointers("out"), 32), "sm_80")
    assert "f23" in str(error.value)
