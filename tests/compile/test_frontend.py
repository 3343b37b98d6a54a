"""numba's front end with less work: the same code, and nothing of numba's changed for others."""

import gc
import importlib
import inspect
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from numba import cuda
from numba.core.types.functions import BaseFunction
from numba.cuda import compiler as numba_compiler
from numba.cuda import dispatcher, utils
from numba.cuda.descriptor import cuda_target
from numba.cuda.types import uint32

from ferrum_numba.compile import frontend
from ferrum_numba.compile.compiler import compile_ptx
from ferrum_numba.contract import Program, pointers
from ferrum_numba.errors import BuildError
from ferrum_numba.gpu import find
from ferrum_numba.kernels import KERNELS, TOOLS
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.ptx.memory import st_global_u32
from ferrum_numba.ptx.special import thread_id

COMPILER = importlib.import_module("ferrum_numba.compile.compiler")
H200 = find("h200")
BY_NAME = {kernel.name: kernel for kernel in (*KERNELS, *TOOLS)}
REPLACED = (
    (dispatcher, "get_current_device"),
    (numba_compiler, "CUDACompiler"),
    (cuda_target.typing_context, "resolve_function_type"),
    (cuda_target.target_context, "get_abi_sizeof"),
    (BaseFunction, "get_call_type"),
    (utils, "pysignature"),
)


@contextmanager
def numbas_own(capability):
    """Stand in for `front_end`: all that numba does, for a target that is not there."""
    device = SimpleNamespace(compute_capability=capability[:2])
    original, dispatcher.get_current_device = dispatcher.get_current_device, lambda: device
    try:
        yield
    finally:
        dispatcher.get_current_device = original


def ptx_of(name):
    """Return the PTX of a kernel's default."""
    kernel = BY_NAME[name]
    problem = kernel.op.tests[0] if kernel in TOOLS else W4A16Problem(16, 4096, 4096)
    return compile_ptx(kernel.build(kernel.default(problem, H200), H200.arch), H200.arch, name)


@pytest.mark.parametrize("name", ["add_bias", "repack", "w4a16_gptq", "marlin"])
def test_the_code_is_numbas_own(name, monkeypatch):
    mine = ptx_of(name)
    monkeypatch.setattr(COMPILER, "front_end", numbas_own)
    assert mine == ptx_of(name)


def test_where_numba_clears_variables_the_code_is_shorter(monkeypatch):
    mine = ptx_of("decode")
    monkeypatch.setattr(COMPILER, "front_end", numbas_own)
    theirs = ptx_of("decode")
    assert len(mine) < len(theirs) < 1.01 * len(mine)


def values_of_replaced():
    return [vars(owner).get(name, "of its class") for owner, name in REPLACED]


def test_numba_is_left_as_it_was():
    before = values_of_replaced()
    ptx_of("add_bias")
    assert values_of_replaced() == before

    def broken(out):
        st_global_u32(out, out + "text")

    with pytest.raises(BuildError, match="broken does not compile"):
        compile_ptx(Program(broken, pointers("out"), 32), "sm_80", "broken")
    assert values_of_replaced() == before


def calling_a_device_function():
    """Return a kernel, and the device function that it calls."""

    @cuda.jit(device=True, forceinline=True)
    def doubled(value):
        return uint32(value + value)

    def kernel(out):
        st_global_u32(out, doubled(thread_id()))

    return kernel, doubled


def test_what_is_remembered_keeps_no_program():
    kernel, doubled = calling_a_device_function()
    compile_ptx(Program(kernel, pointers("out"), 32), "sm_80", "kernel")
    dies = weakref.ref(doubled)
    del kernel, doubled
    gc.collect()
    assert dies() is None


def test_functions_within_functions_go_through_all_of_numbas_passes():
    def kernel(out):
        def tripled(value):
            return uint32(3 * value)

        st_global_u32(out, tripled(thread_id()))

    assert not frontend.is_plain(kernel)
    ptx = compile_ptx(Program(kernel, pointers("out"), 32), "sm_80", "kernel")
    assert "3" in ptx
    assert "st.global.u32" in ptx


def test_what_is_not_plain():
    def loops_over_literals(values):
        for value in cuda.literal_unroll(values):
            st_global_u32(value)

    assert not frontend.is_plain(loops_over_literals)
    assert not frontend.is_plain(numba_compiler.compile_cuda)
    assert frontend.is_plain(ptx_of)


def test_a_function_may_be_inlined_by_numba():
    @cuda.jit(device=True, inline="always")
    def doubled(value):
        return uint32(value + value)

    @cuda.jit(device=True)
    def left_to_nvvm(value):
        return uint32(value + value)

    def inlined(out):
        st_global_u32(out, doubled(thread_id()))

    def called(out):
        st_global_u32(out, left_to_nvvm(thread_id()))

    texts = {
        compile_ptx(Program(function, pointers("out"), 32), "sm_80", "kernel")
        for function in (inlined, called)
    }
    assert len(texts) == 1


def test_an_error_is_found_every_time():
    def broken(out):
        st_global_u32(out)

    for _ in range(2):
        with pytest.raises(BuildError, match="broken does not compile"):
            compile_ptx(Program(broken, pointers("out"), 32), "sm_80", "broken")


def test_signatures_are_those_of_inspect():
    def function(first, *, second=2):
        return first, second

    assert frontend._python_signature(function) == inspect.signature(function)
    assert frontend._python_signature(function) is frontend._python_signature(function)
    with pytest.raises(TypeError):
        frontend._python_signature(3)
