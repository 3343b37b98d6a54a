"""Every step of the tutorial on a GPU: its own problems, and one of a model's size."""

import pytest

from ferrum_numba.cases import cases_of
from ferrum_numba.check import on_gpu
from ferrum_numba.perf import tutorial

KERNELS = tutorial.ladder()


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_step_is_right_on_the_gpu(device, kernel):
    if not kernel.runs_on(device.gpu):
        pytest.skip(f"{kernel.name} has no config for {device.gpu.name}")
    problems = [case.problem for case in cases_of(kernel, device.gpu)]
    for problem in (*problems, tutorial.problems_of(kernel)[-1]):
        found = on_gpu(kernel, kernel.default(problem, device.gpu), problem, device)
        assert found.ok, f"{problem}: {found.reason}"
