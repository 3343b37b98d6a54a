"""Every PTX instruction: the interpreter against an independent result, the compiler, the GPU."""

from importlib import import_module
from pathlib import Path

import pytest
from ptx_cases import Case, assert_agrees, on_gpu, on_interpreter, opcodes

from ferrum_numba import ptx
from ferrum_numba.compile.build import compile_ptx
from ferrum_numba.compile.link import link
from ferrum_numba.ptx.instruction import Instruction

TESTS = Path(__file__).parents[1]
TABLES = sorted(path.stem for path in TESTS.rglob("ptx_cases_*.py"))
CASES = [case for table in TABLES for case in import_module(table).CASES]
SEED = 0

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def test_case_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("name", ptx.__all__)
def test_every_instruction_has_a_case(name):
    exported = getattr(ptx, name)
    covered = {instruction for case in CASES for instruction in case.instructions}
    if isinstance(exported, Instruction):
        assert exported in covered
    else:
        # a cached factory: one of what it makes stands for all
        assert any(instruction.name.startswith(f"{name}_") for instruction in covered)


@each_case
def test_interpreter_equals_independent_result(case: Case, rng):
    want = case.want(case.inputs(rng))
    assert_agrees(case, on_interpreter(case, SEED), want, SEED)


@each_case
def test_case_compiles_without_a_gpu(case: Case):
    source = compile_ptx(case.program(), case.arch, "case")
    assert link(source, "case", case.arch).spill_bytes == 0
    missing = {op for one in case.instructions for op in opcodes(one) if op not in source}
    assert not missing


@pytest.mark.gpu
@each_case
def test_gpu_equals_interpreter(case: Case, device):
    if not case.runs_on(device.gpu.arch):
        pytest.skip(f"{case.name} needs {case.arch}, this GPU is {device.gpu.arch}")
    assert_agrees(case, on_gpu(case, SEED, device), on_interpreter(case, SEED), SEED)
