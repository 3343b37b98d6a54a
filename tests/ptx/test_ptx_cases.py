"""Every PTX instruction: the interpreter against an independent result, the compiler, the GPU."""

from importlib import import_module
from pathlib import Path

import pytest
from ptx_cases import Case, assert_agrees, on_gpu, on_interpreter, opcodes

from ferrum_numba import ptx
from ferrum_numba.compile.compiler import compile_ptx
from ferrum_numba.compile.link import link
from ferrum_numba.kernels.prefill.steps import StageAhead
from ferrum_numba.kernels.w4a8_wgmma.steps import Stage8
from ferrum_numba.ptx.instruction import Instruction

TESTS = Path(__file__).parents[1]
TABLES = sorted(path.stem for path in TESTS.rglob("ptx_cases_*.py"))
CASES = [case for table in TABLES for case in import_module(table).CASES]
SEED = 0
# where kernels keep instructions of several lines
STEPS = (
    "ceilings.steps", "decode.steps", "decode_wgmma.steps", "gptq.steps", "grouped_wgmma.steps",
    "prefill.steps",
    "shared.columns", "shared.handoff", "shared.int4", "shared.tile", "w4a8_decode.steps",
    "w4a8_wgmma.steps",
)  # fmt: skip

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def test_case_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


def exported():
    """Return every public instruction, or maker of some, of the vocabulary and of the kernels."""
    found = [getattr(ptx, name) for name in ptx.__all__]
    for module in (import_module(f"ferrum_numba.kernels.{name}") for name in STEPS):
        public = [value for name, value in vars(module).items() if not name.startswith("_")]
        # a cached function makes instructions, and so does the one class that has some
        found += [value for value in public if isinstance(value, Instruction)]
        found += [value for value in public if hasattr(value, "cache_info")]
        found += [value for value in public if value in (StageAhead, Stage8)]
    return list(dict.fromkeys(found))


def name_of(exported):
    return exported.name if isinstance(exported, Instruction) else exported.__name__


@pytest.mark.parametrize("exported", exported(), ids=name_of)
def test_every_instruction_has_a_case(exported):
    covered = {instruction for case in CASES for instruction in case.instructions}
    if isinstance(exported, Instruction):
        assert exported in covered
    else:
        # a cached factory: one of what it makes stands for all
        name = f"{exported.__name__}_"
        assert any(instruction.name.startswith(name) for instruction in covered)


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
