"""Remarks on a program that compiles, and the sentence on one that does not."""

import inspect
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from numba import cuda
from numba.cuda.types import float16, float32, int64, uint32, uint64

from ferrum_numba.compile import build_program, cache
from ferrum_numba.compile.compiler import compile_ptx
from ferrum_numba.contract import Program, pointers
from ferrum_numba.errors import BuildError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels.prefill.kernel import Prefill
from ferrum_numba.ptx.memory import ld_global_f32, ld_global_u32, st_global_f32, st_global_u32

ARCH = "sm_90a"
NUMBERS = {1: 2}


def program(function):
    return Program(function, pointers("x", "out"), 32)


def line_of(function, mark):
    lines, first = inspect.getsourcelines(function)
    (number,) = [first + i for i, line in enumerate(lines) if mark in line]
    return f"{inspect.getsourcefile(function)}:{number}"


@cuda.jit(device=True, forceinline=True)
def a_tenth(value):
    return float32(value * 0.1)  # the double


def with_doubles(x, out):
    value = a_tenth(ld_global_f32(x))
    if x < int64(out):  # the comparison
        st_global_f32(out, value)


def on_the_stack(x, out):
    values = cuda.local.array(64, uint32)
    for i in range(64):
        values[i] = ld_global_u32(x + uint64(4 * i))
    st_global_u32(out, values[ld_global_u32(x) & uint32(63)])  # the index


def of_floats(x, out):
    st_global_f32(out, ld_global_f32(x) * float32(0.1))


def test_a_kernel_of_floats_needs_no_remark():
    assert build_program(program(of_floats), ARCH).remarks == ()


def test_doubles_are_named_with_their_lines_in_device_functions_too():
    first, second = build_program(program(with_doubles), ARCH).remarks
    assert first.startswith(f"{line_of(a_tenth.py_func, '# the double')}: 3 instructions (")
    assert "mul.f64" in first
    assert second.startswith(f"{line_of(with_doubles, '# the comparison')}: ")
    assert "setp" in second
    assert "write float32(...)" in second


def test_looking_for_the_lines_changes_no_program():
    before = compile_ptx(program(with_doubles), ARCH, "entry")
    build_program(program(with_doubles), ARCH)
    assert compile_ptx(program(with_doubles), ARCH, "entry") == before
    assert ".loc" not in before


def test_an_array_on_the_stack_is_named_with_its_lines():
    binary = build_program(program(on_the_stack), ARCH)
    (remark,) = binary.remarks
    assert binary.stack_bytes == 256
    assert line_of(on_the_stack, "# the index") in remark
    assert "256 bytes a thread" in remark


def test_the_linker_s_remark_is_kept_with_the_remedy(tmp_path, monkeypatch):
    kernel, gpu = Prefill(), KNOWN["h200"]
    problem = next(p for p in kernel.op.tests if kernel.refuses(p) is None)
    made = kernel.build(kernel.default(problem, gpu), ARCH)
    binary = build_program(replace(made, lto=False), ARCH)
    (remark,) = binary.remarks
    assert re.fullmatch(r"the linker: 'setmaxnreg' ignored .*; give the Program lto=True", remark)
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path))
    cache.store("key", binary)
    assert cache.load("key").remarks == binary.remarks


def plain(value):
    return value


def calls_a_plain_function(x, out):
    st_global_u32(out, plain(ld_global_u32(x)))  # here


def calls_numpy(x, out):
    st_global_f32(out, np.exp(ld_global_f32(x)))  # here


def reads_a_dictionary(x, out):
    st_global_u32(out, NUMBERS[1])  # here


def is_of_two_types(x, out):
    value = uint32(1)
    if x == uint64(0):
        value = (value, value)
    st_global_u32(out, value)  # anywhere


def adds_text(x, out):
    st_global_u32(out, ld_global_u32(x) + "a")  # here


def gives_a_float(x, out):
    st_global_u32(out, ld_global_f32(x))  # here


def has_no_such_name(x, out):
    st_global_u32(out, nowhere(x))  # noqa: F821 here


def asks_math_for_nothing(x, out):
    st_global_f32(out, math.nothing(ld_global_f32(x)))  # here


def has_no_constant_shape(x, out):
    values = cuda.local.array(int(x), uint32)  # here
    values[0] = uint32(0)


def of_float16(x, out):
    value = float16(ld_global_f32(x))
    st_global_f32(out, float32(value * value))


def test_arithmetic_of_float16_does_not_link_and_says_what_does():
    with pytest.raises(BuildError, match=r"does not link.*float16; use float32, or the f16x2"):
        build_program(program(of_float16), ARCH)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (
            calls_a_plain_function,
            r"plain is a plain Python function.*; decorate it with",
        ),
        (calls_numpy, r"np\.exp is no function of a kernel; use math\.exp"),
        (reads_a_dictionary, r"NUMBERS is of .*dict.*; give kernels numbers"),
        (is_of_two_types, r"value is uint32 here and .*; give it one type, by a cast"),
        (adds_text, r"numba has no add\(uint32, .*\); cast its arguments"),
        (gives_a_float, r"st_global_u32: value must be u32, not float32; see f32_bits"),
        (has_no_such_name, r"nowhere is not defined; import it"),
        (asks_math_for_nothing, r"nothing"),
        (has_no_constant_shape, r"an array's shape is no constant.*; compute it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_compile_is_one_sentence_with_the_line_and_a_remedy(kernel, words):
    with pytest.raises(BuildError) as caught:
        build_program(program(kernel), ARCH)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(words, message)
    if kernel is not is_of_two_types:
        assert line_of(kernel, " here") in message
