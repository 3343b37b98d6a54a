"""The measurer on a GPU: operands made ahead, shared memory, and a plan tuned to its end."""

import importlib

import numpy as np
import pytest

from ferrum_numba import compile, results, tune
from ferrum_numba.check import bind_and_run
from ferrum_numba.gpu import live
from ferrum_numba.kernels import PACKED, RAW
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import HostOperands, OperandSet, Uploads, page_locked
from ferrum_numba.measure import Policy
from ferrum_numba.tune.held import Held
from ferrum_numba.tune.measurer import GpuMeasurer
from ferrum_numba.tune.plan import plan_into
from ferrum_numba.tune.planned import Plan
from ferrum_numba.tune.prepared import prepare
from ferrum_numba.tune.worker import Candidate

pytestmark = pytest.mark.gpu

PROBLEM = W4A16Problem(16, 4096, 4096)
POLICY = Policy(samples=5, warmup_ms=50.0)


def candidate(kernel, problem, gpu):
    config = kernel.default(problem, gpu)
    return Candidate(kernel, config, problem, compile.build(kernel, config, gpu.arch))


def test_operands_made_ahead_serve_all_kernels_and_the_next_problem(device, tmp_path):
    measurer = GpuMeasurer(POLICY)
    for M in (16, 17):
        problem = W4A16Problem(M, 4096, 4096)
        made = prepare((*RAW, *PACKED), problem, tmp_path / str(M))
        for kernel in (*RAW, *PACKED):
            measurer.open(kernel, problem, made[kernel.name])
            outcome = measurer.run(candidate(kernel, problem, device.gpu), None)
            assert (outcome.status, outcome.reason) == ("measured", "")
            assert outcome.rel_error < 5e-4
            assert outcome.extra["busy_us"] > sum(outcome.us)
    # the packed weight of four kernels and two problems is one upload
    buffers = [
        one._buffers["packed"] for one in measurer._operands.values() if one.kernel in PACKED
    ]
    assert len({buffer.pointer for buffer in buffers}) == 1


def test_a_round_reuses_what_the_heats_loaded(device, tmp_path):
    measurer = GpuMeasurer(POLICY)
    both = [candidate(kernel, PROBLEM, device.gpu) for kernel in PACKED[:2]]
    for one in both:
        measurer.open(one.kernel, PROBLEM)
        assert measurer.run(one, None).status == "measured"
    for turn in range(4):
        outcomes = measurer.round(both, turn, 3)
        assert [len(one.us) for one in outcomes] == [3, 3]


def test_a_result_in_page_locked_memory_is_the_result(device):
    kernel = PACKED[1]
    operands = OperandSet(
        device, kernel, PROBLEM, host=HostOperands.make(kernel, PROBLEM), uploads=Uploads(),
        guard_bytes=1024,
    )  # fmt: skip
    one = candidate(kernel, PROBLEM, device.gpu)
    memory = [page_locked(operands.out.size_bytes) for _ in range(2)]
    ran = bind_and_run(operands, one.config, one.binary, into=memory)
    checked = ran.check()
    assert checked.ok, checked.reason
    np.testing.assert_array_equal(ran.results[0], operands.result())
    assert ran.bound.damage() is None


@pytest.mark.timing
def test_a_plan_is_tuned_within_its_budget(device, tmp_path, monkeypatch):
    # other tests opened the GPU in this process, which so counts as another one that computes
    module = importlib.import_module("ferrum_numba.tune.search")
    monkeypatch.setattr(module, "compute_processes", lambda uuid: 0)
    gpu = live()
    plan_into(tmp_path / "plan", PACKED, [PROBLEM], gpu, limit=6)
    plan, held = Plan.read(tmp_path / "plan", PACKED), Held()
    rows = tune.tune(
        plan.kernels, plan.problems, gpu, policy=Policy(samples=25, min_graph_us=1600.0),
        store_path=tmp_path / "rows.json", plan=plan, held=held, searcher="model", budget_s=20.0,
    )  # fmt: skip
    (won,) = results.winners(rows)
    assert won.row.stage == "final"
    assert {row.status for row in rows} <= {"measured", "slow", "pruned"}
    print(held.sentence())
    assert 0.0 < held.held_s < 25.0
    assert held.busy > 0.5
