"""No shipped kernel has accesses that nothing orders, in whatever order warps and blocks run."""

from dataclasses import replace

import pytest
from test_kernels import COVER, SMALL, problems, short

from ferrum_numba import check, interpreter
from ferrum_numba.kernels import KERNELS
from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.perf import fault_cases

CORNERS = [
    case for kernel in KERNELS for case in fault_cases.cases(kernel.name)[: len(kernel.corners())]
]
# the quickest of each design
QUICK = [case for case in CORNERS if (case.kernel.name, case.problem.K) in {
    ("decode", 512), ("decode_wgmma", 960), ("prefill", 896), ("marlin", 768), ("w4a16_gptq", 520),
    ("grouped_decode", 512), ("grouped_wgmma", 512),
}]  # fmt: skip


def name(case):
    return f"{case.kernel.name}-{case.problem.K}-{case.gpu.num_sms}"


@pytest.mark.parametrize("case", QUICK, ids=name)
def test_no_design_races(case):
    found = fault_cases.run(case)
    assert found.ok, found.reason


@pytest.mark.slow
@pytest.mark.parametrize("case", CORNERS, ids=name)
def test_every_order_gives_the_same_bits(case):
    found = fault_cases.run(case, orders=len(interpreter.SCHEDULES))
    assert found.ok, found.reason


@pytest.mark.slow
@pytest.mark.parametrize("case", problems(), ids=short)
def test_no_problem_of_an_op_races(case):
    kernel, problem = case
    found = check.on_interpreter(
        kernel, kernel.default(problem, SMALL), problem, gpu=SMALL, races=True
    )
    assert found.ok, found.reason


@pytest.mark.slow
@pytest.mark.parametrize("case", COVER, ids=short)
def test_no_value_of_a_space_races(case):
    kernel, config, problem = case
    found = check.on_interpreter(kernel, config, problem, gpu=SMALL, races=True)
    assert found.ok, found.reason


@pytest.mark.parametrize("M", [1, 16])
def test_the_sums_of_a_cluster_are_ordered(M):
    """Where racecheck warns: an mbarrier's initialisation, and the first arrival at it."""
    problem, kernel = W4A16Problem(M, 512, 512), Decode()
    gpu = replace(fault_cases.H200, num_sms=8)
    config = kernel.default(problem, fault_cases.H200)
    assert config.cluster > 1
    found = check.on_interpreter(kernel, config, problem, gpu=gpu, races=True)
    assert found.ok, found.reason
