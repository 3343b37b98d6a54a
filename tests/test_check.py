"""What a check says of a right kernel, and of each way to be wrong."""

import math
import re
from dataclasses import replace

import axpy
import host_driver
import numpy as np
import pytest
from axpy import PARAMETERS, Axpy, Config, Problem
from cuda.bindings import driver

from ferrum_numba import check
from ferrum_numba.errors import BuildError, ContextError
from ferrum_numba.launch import OperandSet

HUNDRED = Problem(100)
# fault -> what the reason must say
WRONG = {
    "scale": "relative error .* got .*, want ",
    "unwritten": r"1 of 100 elements are not finite \(never written, or overflowed\)",
    "overrun": "written outside of out: 4 bytes written past the end, the first at [+]0",
    "memory": "run 2 on the same inputs and workspace gives other bits than the first: ",
}


def run_axpy(fault):
    """Return the kernel as the host driver runs it."""

    def run(x, w, out, count, n):
        x, w, count = (host_driver.view(a, n, np.float32) for a in (x, w, count))
        result = host_driver.view(out, n + 1, np.float32)
        short = 1 if fault == "unwritten" else 0
        factor = np.float32(2 if fault == "scale" else 3)
        result[: n - short] = (factor * x + w + count)[: n - short]
        if fault == "overrun":
            result[n] = 1
        if fault == "memory":
            count += 1

    return run


@pytest.fixture
def host(monkeypatch):
    host = host_driver.install(monkeypatch)
    for fault in ("", *WRONG):
        host.kernels[f"axpy_{fault}"] = (PARAMETERS, run_axpy(fault))
    return host


def on_host(host, fault, problem=HUNDRED, **options):
    binary = host_driver.binary(f"axpy_{fault}", PARAMETERS)
    return check.on_gpu(Axpy(), Config(), problem, host.device(), binary=binary, **options)


@pytest.mark.parametrize("problem", axpy.OP.tests, ids=str)
def test_a_right_kernel_passes(host, problem):
    checked = on_host(host, "", problem)
    assert checked.ok
    assert checked.reason == ""
    assert checked.how == "gpu"
    assert checked.rel_error < 1e-6
    assert checked.seconds > 0


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_kernel_is_a_row_with_its_reason(host, fault):
    checked = on_host(host, fault)
    assert not checked.ok
    assert re.search(WRONG[fault], checked.reason)


class Halves(Axpy):
    """The same, its result a structure of two halves."""

    op = replace(
        axpy.OP,
        output=lambda problem: ((), np.dtype([(name, "f4", (problem.n // 2,)) for name in "ab"])),
        reference=lambda problem, inputs: np.array(
            tuple(np.split(axpy.OP.reference(problem, inputs), 2)),
            [(name, "f8", (problem.n // 2,)) for name in "ab"],
        ),
    )


@pytest.mark.parametrize(("fault", "reason"), [("", ""), *WRONG.items()])
def test_of_a_structure_the_wrong_field_is_named(host, fault, reason):
    binary = host_driver.binary(f"axpy_{fault}", PARAMETERS)
    checked = check.on_gpu(Halves(), Config(), HUNDRED, host.device(), binary=binary)
    assert checked.ok is not bool(fault)
    reason = reason.replace("1 of 100", "1 of 50")
    field = {"scale": "[ab]: ", "unwritten": "b: ", "memory": "a: "}.get(fault, "")
    assert re.search(f"^{field}{reason}", checked.reason)


def test_what_changes_between_runs_needs_two_runs_to_be_seen(host):
    assert on_host(host, "memory", repeats=1).ok


def test_every_seed_is_another_input(host):
    errors = {on_host(host, "scale", seed=seed).rel_error for seed in range(3)}
    assert len(errors) == 3


def test_a_problem_or_config_that_does_not_fit_is_a_row(host):
    checked = on_host(host, "", Problem(2**20))
    assert (checked.ok, checked.reason) == (False, "n must be less than 2^20")
    assert math.isinf(checked.rel_error)
    crowded = Config(num_threads=2048)
    checked = check.on_gpu(Axpy(), crowded, Problem(1), host.device(), binary=None)
    assert checked.reason == "too many threads"


def test_a_failed_build_is_a_row(host, monkeypatch):
    def fail(kernel, config, arch):
        raise BuildError(f"{kernel.name} does not compile for {arch}")

    monkeypatch.setattr(check, "build", fail)
    checked = check.on_gpu(Axpy(), Config(), Problem(1), host.device())
    assert checked.reason == "axpy does not compile for sm_90a"


def test_a_refused_launch_is_a_row(host):
    host.fail["cuMemAlloc"] = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    checked = on_host(host, "")
    assert (checked.ok, checked.reason) == (
        False, "NVIDIA H200 has no 524,800 bytes left of its 141,000,000,000"
    )  # fmt: skip


def test_a_lost_context_is_raised(host):
    host.fail["cuCtxSynchronize"] = driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(ContextError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        on_host(host, "")


def test_one_set_of_operands_serves_many_configs(host):
    operands = OperandSet(host.device(), Axpy(), HUNDRED, rotate_bytes=1000, guard_bytes=1024)
    outcomes = {
        fault: check.on_operands(
            operands, Config(), host_driver.binary(f"axpy_{fault}", PARAMETERS)
        ).ok
        for fault in ("", "scale", "unwritten", "memory", "")
    }
    assert outcomes == {"": True, "scale": False, "unwritten": False, "memory": False}


@pytest.mark.parametrize("problem", axpy.OP.tests, ids=str)
def test_the_interpreter_passes_a_right_kernel(problem):
    checked = check.on_interpreter(Axpy(), Config(), problem)
    assert checked.ok, checked.reason
    assert checked.how == "interpreter"
    assert checked.seconds > 0


@pytest.mark.parametrize("fault", ["scale", "unwritten", "overrun"])
def test_the_interpreter_finds_a_wrong_kernel(fault):
    checked = check.on_interpreter(Axpy(), Config(fault=fault), HUNDRED)
    assert not checked.ok
    # a store past the end is the interpreter's own finding, in its words
    assert re.search(WRONG[fault] if fault != "overrun" else "out", checked.reason)


def test_the_interpreter_refuses_what_does_not_fit():
    checked = check.on_interpreter(Axpy(), Config(), Problem(2**20))
    assert (checked.ok, checked.reason) == (False, "n must be less than 2^20")


@pytest.mark.gpu
@pytest.mark.parametrize("problem", axpy.OP.tests, ids=str)
def test_a_right_kernel_passes_on_the_gpu(device, problem):
    checked = check.on_gpu(Axpy(), Config(), problem, device)
    assert checked.ok, checked.reason


@pytest.mark.gpu
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_kernel_is_found_on_the_gpu(device, fault):
    checked = check.on_gpu(Axpy(), Config(fault=fault), HUNDRED, device)
    assert not checked.ok
    assert re.search(WRONG[fault], checked.reason)
