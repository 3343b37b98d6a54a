"""The demonstration of several GPUs, with what measures faked and the cluster's processes real."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import toy_cluster
from toy_kernel import Problem, Toy, make_binary

from ferrum_numba import tune
from ferrum_numba.gpu import KNOWN
from ferrum_numba.measure import Policy
from ferrum_numba.perf import fleet
from ferrum_numba.results import Row

BOARDS = [replace(KNOWN["h200"], uuid=f"board-{i}") for i in (1, 2)]
SUPPORT = Path(toy_cluster.__file__).parent


@pytest.fixture
def task(tmp_path, monkeypatch):
    def build(pairs, *_, **__):
        return {(k.name, c): make_binary() for k, c in pairs}

    monkeypatch.setattr("ferrum_numba.tune.search.build_space", build)
    monkeypatch.setattr(fleet, "CEILINGS", ())
    problems = tuple(Problem(m) for m in range(2, 8))
    return tune.SearchTask((Toy(),), problems, KNOWN["h200"], Policy(), tmp_path / "toy.json")


@pytest.mark.parametrize(("seconds", "good"), [([10.0, 5.7], True), ([10.0, 5.8], False)])
def test_two_gpus_must_take_half_within_15_per_cent(task, monkeypatch, capsys, seconds, good):
    now = [0.0]
    left = [*seconds]

    def tune_fleet(mine, boards, *, yardsticks, progress):
        assert mine.store_path != task.store_path
        now[0] += 100.0
        progress(9, 9, "compile")
        now[0] += left.pop(0)
        return [Row("toy", "toy", {}, {}, board=board.uuid) for board in boards]

    monkeypatch.setattr(fleet.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(fleet, "tune_fleet", tune_fleet)
    assert fleet.speed(task, BOARDS) is good
    assert f"2 GPUs: 2 rows in {seconds[1]} s" in capsys.readouterr().out


def test_a_worker_that_is_killed_costs_no_row(task, monkeypatch, capsys, tmp_path):
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    monkeypatch.setenv("FERRUM_NUMBA_LOCK_DIR", str(tmp_path))
    make = partial(toy_cluster.Measures, tmp_path, delay_s=0.2)
    assert fleet.killed(task, BOARDS, describe_board=toy_cluster.board, make=make)
    out = capsys.readouterr().out
    assert "24 rows in" in out
    assert re.search(r"[1-9]\d* were there when the worker was ended after \d+ of 24", out)
    assert "0 are not in the store" in out
    assert "the worker was ended: True" in out
    assert "6 of 6 problems; statuses: measured" in out
