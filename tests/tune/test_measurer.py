"""The measurer on a driver of host memory: checks, heats, rounds, and a fault between them."""

from dataclasses import replace

import host_driver
import numpy as np
import pytest
from axpy import PARAMETERS, Axpy, Config, Problem
from test_check import run_axpy

from ferrum_numba.measure import Policy, timing
from ferrum_numba.measure.clocks import Reading
from ferrum_numba.tune import measurer
from ferrum_numba.tune.measurer import GpuMeasurer
from ferrum_numba.tune.prepared import prepare
from ferrum_numba.tune.worker import Candidate

AXPY = Axpy()
HUNDRED, THOUSAND = Problem(100), Problem(1000)
# three times this is what the copies of the weights exceed
POLICY = Policy(samples=5, min_graph_us=100.0, rotate_bytes_factor=1e-4, warmup_ms=1.0)


class Wider(Axpy):
    """Another kernel on the same operands."""

    name = "wider"


@pytest.fixture
def host(monkeypatch):
    """Return a host driver of kernels that are right, and of some that are not."""
    host = host_driver.install(monkeypatch, launch_us=5.0)
    monkeypatch.setattr(timing, "driver", host)
    monkeypatch.setattr(timing, "read_clocks", lambda *_, **__: Reading(clock_mhz=1980.0))
    monkeypatch.setattr(measurer.Device, "open", classmethod(lambda cls: host.device()))

    def spoil(x, w, out, count, n):
        host_driver.view(w, n, np.float32)[:] = 0
        host_driver.view(out, n, np.float32)[:] = 0

    for fault in ("", "scale", "overrun"):
        host.kernels[f"axpy_{fault}"] = (PARAMETERS, run_axpy(fault))
    host.kernels["axpy_spoil"] = (PARAMETERS, spoil)
    return host


def candidate(fault="", problem=HUNDRED, kernel=AXPY, regime="cold"):
    binary = host_driver.binary(f"axpy_{fault}", PARAMETERS, fingerprint=f"of {fault}")
    return Candidate(kernel, Config(), problem, binary, regime)


def test_a_candidate_is_checked_loaded_once_and_timed(host):
    found = GpuMeasurer(POLICY)
    for problem in (HUNDRED, THOUSAND):
        found.open(AXPY, problem)
        outcome = found.run(candidate(problem=problem), None)
        assert (outcome.status, outcome.reason) == ("measured", "")
        assert outcome.us == pytest.approx([5.0] * 5)
        assert outcome.rotated
        # replays, at least: the samples, and what came before them
        calls = outcome.extra["calls"]
        assert outcome.extra["busy_us"] > 6 * 5.0 * calls
    assert host.calls.count("cuLibraryLoadData") == 1


def test_what_is_far_slower_is_dropped_after_a_quick_look(host):
    found = GpuMeasurer(POLICY)
    found.open(AXPY, HUNDRED)
    outcome = found.run(candidate(), 2.0)
    assert outcome.status == "slow"
    assert len(outcome.us) == measurer.QUICK_SAMPLES


@pytest.mark.parametrize(
    ("fault", "words"), [("scale", "relative error"), ("overrun", "written outside of out")]
)
def test_a_wrong_kernel_is_told(host, fault, words):
    found = GpuMeasurer(POLICY)
    found.open(AXPY, HUNDRED)
    outcome = found.run(candidate(fault), None)
    assert outcome.status == "wrong"
    assert words in outcome.reason
    assert outcome.us == ()


def test_a_kernel_that_writes_to_the_weights_spoils_nobody_elses_check(host, tmp_path):
    found = GpuMeasurer(POLICY)
    made = prepare((AXPY, Wider()), HUNDRED, tmp_path / "made")
    for kernel in (AXPY, Wider()):
        found.open(kernel, HUNDRED, made[kernel.name])
    weights = [one.buffers()["w"].pointer for one in found._operands.values()]
    assert weights[0] == weights[1]
    assert found.run(candidate("spoil"), None).status == "wrong"
    for kernel in (AXPY, Wider()):
        assert found.run(candidate(kernel=kernel), None).status == "measured"


def test_operands_made_ahead_are_uploaded_once_for_kernels_and_problems(host, tmp_path):
    found = GpuMeasurer(POLICY)
    pointers = []
    for i in range(2):
        made = prepare((AXPY, Wider()), HUNDRED, tmp_path / str(i))
        # another problem with the same weight, as another M is
        problem = HUNDRED if i == 0 else replace(HUNDRED)
        found._problem = None
        for kernel in (AXPY, Wider()):
            found.open(kernel, problem, made[kernel.name])
            assert found.run(candidate(problem=problem, kernel=kernel), None).status == "measured"
        pointers += [one.buffers()["w"].pointer for one in found._operands.values()]
    assert len(set(pointers)) == 1


def test_rounds_are_of_graphs_that_are_kept(host):
    found = GpuMeasurer(POLICY)
    found.open(AXPY, HUNDRED)
    both = [candidate(), replace(candidate(), config=Config(128))]
    assert found.run(both[0], None).status == "measured"
    found.round(both, 0, 3)
    captures = host.calls.count("cuStreamBeginCapture")
    outcomes = found.round(both, 1, 3)
    assert host.calls.count("cuStreamBeginCapture") == captures
    assert [one.us for one in outcomes] == [pytest.approx([5.0] * 3)] * 2
    # the program is that of the heat, whatever came with the candidate
    assert host.calls.count("cuLibraryLoadData") == 1


def test_results_are_copied_to_one_memory_for_all(host):
    found = GpuMeasurer(POLICY)
    found.open(AXPY, THOUSAND)
    found.run(candidate(problem=THOUSAND), None)
    assert len(host.page_locked) == 2
    found.open(AXPY, HUNDRED)
    found.run(candidate(), None)
    assert len(host.page_locked) == 2
