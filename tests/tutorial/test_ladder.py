"""Every step of the tutorial is right and compiles into registers alone."""

import sys

import numpy as np
import pytest

from ferrum_numba import gpu
from ferrum_numba.cases import cases_of
from ferrum_numba.check import on_interpreter
from ferrum_numba.compile import build
from ferrum_numba.errors import ProblemError
from ferrum_numba.perf import tutorial
from ferrum_numba.perf.tutorial_table import GROUPED, STEPS

GPU = gpu.find("h200")
KERNELS = tutorial.ladder()

from ladder.op import Problem  # noqa: E402
from ladder.reference import GROUP, int4_gemm  # noqa: E402

NAMES = [kernel.name for kernel in KERNELS]
by_name = pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)


@pytest.fixture(autouse=True)
def _the_tutorials_own(monkeypatch):
    """Find the ladder also where another test has imported a copy of it since."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tutorial.TUTORIAL)])


def test_the_steps_are_those_of_the_pages():
    assert [*STEPS, GROUPED] == NAMES
    for kernel in KERNELS:
        assert type(kernel).__module__ == f"ladder.{kernel.name}"


@by_name
def test_a_step_is_right(kernel):
    problem = kernel.op.problem(*(1, 128, 128) if kernel.name != GROUPED else (1, 2, 128, 128))
    found = on_interpreter(kernel, kernel.default(problem, GPU), problem, gpu=GPU)
    assert (found.ok, found.remarks) == (True, ()), found.reason


@by_name
def test_a_step_compiles_into_registers(kernel):
    problem = kernel.op.problem(*(256, 4096, 4096) if kernel.name != GROUPED else (64, 8, 512, 512))
    binary = build(kernel, kernel.default(problem, GPU), GPU.arch)
    assert (binary.spill_bytes, binary.stack_bytes, binary.remarks) == (0, 0, ())


@pytest.mark.slow
@by_name
def test_a_step_is_right_on_every_problem(kernel):
    for case in cases_of(kernel, GPU):
        found = on_interpreter(kernel, case.config, case.problem, gpu=case.gpu, runs=2)
        assert (found.ok, found.remarks) == (True, ()), f"{case.problem}: {found.reason}"


@pytest.mark.slow
@by_name
def test_every_config_of_a_step_compiles_and_every_fourth_is_right(kernel):
    problem = kernel.op.problem(*(35, 128, 512) if kernel.name != GROUPED else (35, 2, 128, 512))
    for i, config in enumerate(kernel.fitting(problem, GPU)):
        binary = build(kernel, config, GPU.arch)
        assert (binary.spill_bytes, binary.stack_bytes) == (0, 0), config
        if i % 4 == 0:
            found = on_interpreter(kernel, config, problem, gpu=GPU)
            assert found.ok, f"{config}: {found.reason}"


def test_the_reference_is_a_loop_over_elements():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 256)).astype(np.float16)
    qweight = rng.integers(0, 2**32, (32, 3), np.uint32)
    scales = rng.random((2, 3)).astype(np.float16)
    got = int4_gemm(x, qweight, scales)
    for m, n in np.ndindex(2, 3):
        codes = [int(qweight[k // 8, n]) >> 4 * (k % 8) & 15 for k in range(256)]
        weights = [(code - 8) * float(scales[k // GROUP, n]) for k, code in enumerate(codes)]
        want = sum(float(x[m, k]) * weights[k] for k in range(256))
        np.testing.assert_allclose(got[m, n], want, rtol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((0, 128, 128), "M must be at least 1; got 0"),
        ((1, 64, 128), "N must be a multiple of 128; got 64"),
        ((1, 128, 200), "K must be a multiple of 128; got 200"),
        ((2**20, 2**13, 128), "an operand has at most 4294967296 elements; got 8589934592"),
    ],
)
def test_what_no_step_can_run_is_no_problem(sizes, words):
    with pytest.raises(ProblemError, match=words):
        Problem(*sizes)
