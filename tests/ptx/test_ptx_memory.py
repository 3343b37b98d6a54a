"""The memory half of the vocabulary: its PTX where reading it is the only test, and its effects."""

import re

import pytest
from numba import cuda
from numba.cuda.types import uint32, uint64
from ptx_cases_hints import CASES as HINT_CASES
from ptx_cases_memory import CASES as MEMORY_CASES

from ferrum_numba import ptx
from ferrum_numba.compile.compiler import compile_ptx
from ferrum_numba.contract import Program, pointers
from ferrum_numba.ptx import asynchronous, memory, special, sync
from ferrum_numba.ptx.instruction import Instruction

VOCABULARY = [
    value
    for module in (asynchronous, memory, special, sync)
    for value in vars(module).values()
    if isinstance(value, Instruction)
]
CASES = [case for case in (*MEMORY_CASES, *HINT_CASES) if case.runs_on("sm_90a")]
# reads of what nobody writes, hints that read nothing, and what touches no memory at all
NO_CLOBBER = re.compile(
    r"ld_global_nc_|prefetch_|createpolicy_|thread_id|block_id|clock64|opaque_|globaltimer|cluster_ctarank|mapa|smem"
)


def compiled(kernel, arch="sm_90a", num_threads=64):
    return compile_ptx(Program(kernel, pointers("a", "out"), num_threads), arch, "case")


@pytest.mark.parametrize("one", VOCABULARY, ids=str)
def test_what_touches_memory_clobbers_it(one):
    clobbers = "~{memory}" in one.constraints
    assert clobbers == (one.effect == "memory") == (not NO_CLOBBER.match(one.name))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases_compile_for_the_tuned_architecture(case):
    assert ".target sm_90a" in compile_ptx(case.program(), "sm_90a", "case")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_shared_memory_is_one_aligned_external_array(arch):
    def kernel(a, out):
        base = ptx.smem_base()
        ptx.st_shared_u32(base, uint32(1))
        ptx.st_global_u32(out, ptx.smem_base())

    source = compiled(kernel, arch)
    assert re.findall(r"\.extern \.shared .*", source) == [
        ".extern .shared .align 1024 .b8 ferrum_dynamic_smem[];"
    ]
    assert "cvta" not in source


def test_a_predicated_load_is_zero_before_it_loads():
    def kernel(a, out):
        value = ptx.ld_global_nc_v4_if(a, uint32(cuda.threadIdx.x))
        ptx.st_global_v4(out, value)

    source = compiled(kernel)
    block = source[source.index("setp.ne.u32 p") :]
    order = [block.index(f"mov.b32 t{i}, 0;") for i in range(4)]
    order += [block.index("@p ld.global.nc.v4.u32 {t0, t1, t2, t3}")]
    order += [block.index(f", t{i};") for i in range(4)]
    assert order == sorted(order)


def test_a_load_in_a_loop_is_not_moved_out_of_it():
    def kernel(a, out):
        while ptx.ld_acquire_gpu(a) == uint32(0):
            pass

    source = compiled(kernel)
    loop = re.search(r"(\$L__BB0_\d+):(?:(?!\$L).)*bra\s+\1;", source, re.DOTALL).group()
    assert "ld.acquire.gpu.global.u32" in loop


def test_a_wait_may_be_inlined_several_times():
    def kernel(a, out):
        base = ptx.smem_base()
        for i in range(3):
            ptx.mbarrier_wait(base, uint32(i))
        ptx.mbarrier_wait(uint32(base + uint32(8)), uint32(0))
        ptx.st_global_u32(out + uint64(0), uint32(0))

    source = compiled(kernel)
    assert source.count("again:") == source.count("@!p bra again;") == 4


def test_immediates_must_be_literal():
    def kernel(a, out):
        ptx.cp_async_wait(uint32(cuda.threadIdx.x))

    with pytest.raises(Exception, match="cp_async_wait: n must be a literal integer"):
        compiled(kernel)
