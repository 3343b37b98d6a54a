"""`ferrum-numba report` beside a GPU that is made up: first what is known, then row by row."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from axpy import OP, Axpy, Problem
from test_cli import Measured

from ferrum_numba import cli, gpu, results, tune
from ferrum_numba.cli import ceilings, refining
from ferrum_numba.errors import LaunchError
from ferrum_numba.kernels.ceilings.rates import Rate
from ferrum_numba.report import Document
from ferrum_numba.report.drawing import Drawer
from ferrum_numba.tune.search import SearchTask, search
from ferrum_numba.tune.worker import Outcome

SETS = {"small": (Problem(64), Problem(100), Problem(128))}
H200 = replace(gpu.KNOWN["h200"], source="live", uuid="GPU-here")
FASTEST = "Fastest of each problem: axpy, NVIDIA H200, cold"


class Ceiling(Axpy):
    """A kernel that stands for a ceiling."""

    name = "dram_read"
    op = replace(OP, name="dram_read")


class Hot(Ceiling):
    """One that says of what, and so may be sustained."""

    rate = Rate("DRAM", "GB/s")


class Elsewhere(Hot):
    """One of another GPU."""

    name = "wgmma"
    op = replace(OP, name="wgmma")

    def runs_on(self, facts):
        return False


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch, request):
    """Leave the pictures out, which take most of the time, but where they are asked for."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(Drawer, "draw", lambda self, picture: ("<svg></svg>", b""))


@pytest.fixture
def pictures():
    """Have them drawn."""


@pytest.fixture
def board(monkeypatch):
    """Return a measurer that stands for a GPU; it notes what the report says before each search."""
    measurer = Measured(Outcome("measured", us=(50.0, 50.1, 50.2) * 3, rel_error=1e-7), [])
    measurer.before = []

    def fake(kernels, problems, facts, *, policy, store_path, progress, **rest):
        rest.pop("timeout_s")
        rest.pop("plan", None)
        measurer.before.append((kernels[0].op.name, reported()))
        task = SearchTask(kernels, problems, facts, policy, store_path, **rest)
        return search(task, measurer, progress)

    monkeypatch.setattr(gpu, "driver_present", lambda: True)
    monkeypatch.setattr(gpu, "live", lambda: H200)
    monkeypatch.setattr(tune, "tune", fake)
    return measurer


@pytest.fixture
def run(capsys):
    def run(*argv, ceilings=(), recorded=None):
        status = cli.main((Axpy(),), SETS, ("report", *argv, "--out", "r"), ceilings, recorded)
        return status, *capsys.readouterr()

    return run


def reported(folder="r"):
    """Return how many problems the report has a fastest row of; None where there is no report."""
    try:
        found = Document.load(f"{folder}/report.json")
    except ValueError:
        return None
    tables = [b for b in found.blocks if getattr(b, "title", "") == FASTEST]
    return len(tables[0].rows) if tables else 0


def test_the_first_report_is_there_before_anything_is_measured(run, board, tmp_path):
    status, out, err = run("--problem", "small")
    assert status == 0
    assert board.before == [("axpy", 0)]
    assert "what is known is in r; it is refined as rows come" in err
    assert reported() == 3
    assert "r/report.html" in out.split()
    assert "Plan for NVIDIA H200 (modelled)" in (tmp_path / "r/report.html").read_text()


def test_recorded_results_are_shown_until_they_are_measured(run, board, tmp_path):
    for folder in ("recorded", "mine"):
        (tmp_path / folder).mkdir()
    assert run("--problem", "n=100", "--store", "recorded")[0] == 0
    board.before.clear()
    status, *_ = run("--problem", "n=64", "--store", "mine", recorded=tmp_path / "recorded")
    assert status == 0
    assert board.before == [("axpy", 1)]
    assert reported() == 2
    assert json.loads((tmp_path / "mine/h200/axpy.json").read_text())["rows"][0]["problem"] == {
        "n": 64
    }


def test_a_store_that_is_not_there_is_an_error_with_a_gpu_too(run, board, tmp_path):
    status, out, err = run("--problem", "small", "--store", "nosuch")
    assert (status, out) == (2, "")
    assert err == "ferrum-numba: --store nosuch: no such folder of results is here\n"
    assert board.before == []
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_anew_as_rows_come_and_is_whole_when_it_is_killed(run, board, monkeypatch):
    monkeypatch.setattr(refining, "EVERY_S", 0.0)
    seen = []

    def stop_at_the_third(candidate, best_us):
        seen.append(reported())
        if len(seen) == 5:
            raise SystemExit(137)
        return board.outcome

    board.run = stop_at_the_third
    with pytest.raises(SystemExit):
        run("--problem", "small")
    # two configs a problem: what was measured is in the report before the next is
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 2)
    assert reported() == 2


def test_on_a_pipe_it_says_lines_up_to_a_minute_apart(run, board, monkeypatch):
    monkeypatch.setattr(refining, "PLAN_S", -1.0)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def after_half_a_minute(candidate, best_us):
        now[0] += 30.0
        return board.outcome

    board.run = after_half_a_minute
    _, _, err = run("--problem", "small")
    said = [line for line in err.splitlines() if line.startswith("axpy: ")]
    # of six, said as each begins
    assert [line.split(",")[0] for line in said] == ["axpy: 2 of 6", "axpy: 3 of 6", "axpy: 5 of 6"]
    assert "min" in said[1]


def test_ctrl_c_leaves_what_was_measured_in_the_report(run, board):
    asked = []

    def stop(candidate, best_us):
        asked.append(candidate)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return board.outcome

    board.run = stop
    status, _, err = run("--problem", "small")
    assert status == 130
    assert "stopped; 2 rows kept" in err
    assert reported() == 1


def test_a_page_that_cannot_be_written_now_does_not_stop_the_measuring(
    run, board, monkeypatch, tmp_path
):
    monkeypatch.setattr(refining, "EVERY_S", 0.0)
    bad = tmp_path / "results/h200/other.json"

    def answer(candidate, best_us):
        # somebody writes half a file beside ours, and the rest later
        bad.write_text("{") if len(board.asked) < 3 else bad.unlink(missing_ok=True)
        board.asked.append(candidate)
        return board.outcome

    board.run = answer
    status, _, err = run("--problem", "small")
    assert status == 0
    assert "the report waits: results/h200/other.json: is not JSON" in err
    assert reported() == 3


def test_a_plan_that_takes_long_is_left_out(run, board, monkeypatch):
    monkeypatch.setattr(refining, "PLAN_S", -1.0)
    status, _, err = run("--problem", "small", "--no-cache")
    assert status == 0
    assert "the plan is left out: it takes more than" in err
    assert reported() == 3


def test_ceilings_are_kept_by_board_and_measured_again_after_a_day(
    run, board, tmp_path, monkeypatch
):
    monkeypatch.setattr(refining, "PLAN_S", -1.0)

    def measured(*argv):
        board.before.clear()
        assert run("--problem", "n=64", *argv, ceilings=(Ceiling(),))[0] == 0
        return [op for op, _ in board.before]

    kept = tmp_path / "results/h200/ceilings/GPU-here.json"
    assert measured() == ["dram_read", "axpy"]
    assert {row.op for row in results.load(kept).rows} == {"dram_read"}
    assert measured() == ["axpy"]
    assert measured("--ceilings") == ["dram_read", "axpy"]
    found = results.load(kept)
    yesterday = (datetime.now(UTC) - timedelta(hours=25)).isoformat(timespec="milliseconds")
    environment = {**found.environment, "date": yesterday}
    rows = [replace(row, run=yesterday) for row in found.rows]
    results.save(kept, results.ResultFile(environment, rows))
    assert measured() == ["dram_read", "axpy"]


@pytest.fixture
def hot(monkeypatch, board):
    """Return what is sustained, in its order; the board holds half of its burst."""
    held = []

    def apart(function, asked):
        kernel, *_, seconds = asked
        # all bursts are known by then, and nothing else was measured
        held.append((kernel.name, seconds, [op for op, _ in board.before]))
        if len(held) == 3:
            raise LaunchError("the board is gone")
        us = 2 * 50.1
        return {"us": us, "us_low": us, "us_high": us, "clock_mhz": 1500.0, "throttle": ()}

    monkeypatch.setattr(ceilings, "apart", apart)
    monkeypatch.setattr(refining, "PLAN_S", -1.0)
    return held


def ceiling_rows(folder):
    found = Document.load(folder / "r/report.json")
    (table,) = [b for b in found.blocks if getattr(b, "title", "") == "Ceilings of NVIDIA H200"]
    return {cells[1]: float(cells[2].split()[0]) for cells in table.rows if cells[1]}


def test_ceilings_are_sustained_after_all_bursts_and_before_the_rows(run, board, hot, tmp_path):
    kernels = (Hot(), Elsewhere())
    kept = tmp_path / "results/h200/ceilings/GPU-here.json"
    assert run("--problem", "n=64", ceilings=kernels)[0] == 0
    assert hot == [("dram_read", 2.0, ["dram_read"])]
    assert [op for op, _ in board.before] == ["dram_read", "axpy"]
    assert [bool(row.more.get("sustained")) for row in results.load(kept).rows].count(True) == 1
    rates = ceiling_rows(tmp_path)
    assert rates["sustained"] == pytest.approx(rates["burst"] / 2, rel=1e-3)
    # kept for a day, like the bursts
    assert run("--problem", "n=64", ceilings=kernels)[0] == 0
    assert len(hot) == 1
    assert run("--problem", "n=64", "--ceilings", ceilings=kernels)[0] == 0
    assert len(hot) == 2


def test_what_cannot_be_sustained_is_said_and_the_report_goes_on(run, board, hot, tmp_path):
    hot += [None, None]
    status, _, err = run("--problem", "n=64", ceilings=(Hot(),))
    assert status == 0
    assert "dram_read is not sustained: the board is gone" in err
    assert set(ceiling_rows(tmp_path)) == set()
    assert reported() == 1


def test_a_wrong_candidate_is_status_1_and_in_the_report(run, board, tmp_path):
    board.outcome = Outcome("wrong", "relative error 1.0")
    assert run("--problem", "n=64")[0] == 1
    assert "relative error 1.0" in (tmp_path / "r/report.md").read_text()


def test_what_was_asked_for_is_reported_first(run, board):
    assert run("axpy", "--problem", "n=64")[0] == 0
    headings = [b.text for b in Document.load("r/report.json").blocks if hasattr(b, "level")]
    assert headings[:3] == ["Verdict", "What to do next", "What was asked for"]
    assert run()[0] == 0
    headings = [b.text for b in Document.load("r/report.json").blocks if hasattr(b, "level")]
    assert "What was asked for" not in headings


def data(folder):
    """Return what the pictures of measured rows are drawn from, and every table of them."""
    paths = [*folder.glob("axpy-*.csv"), *folder.glob("axpy-*.json")]
    return {path.name: path.read_bytes() for path in paths}


def test_without_the_gpu_the_same_results_draw_the_same(run, board, tmp_path, monkeypatch):
    assert run("--problem", "small")[0] == 0
    measured = data(tmp_path / "r")
    assert len(measured) >= 6
    monkeypatch.setattr(gpu, "driver_present", lambda: False)
    monkeypatch.setattr(gpu, "_driver_gpus", lambda: "there is none")
    (tmp_path / "r").rename(tmp_path / "before")
    assert run("--problem", "small")[0] == 0
    assert data(tmp_path / "r") == measured


@pytest.mark.usefixtures("pictures")
def test_a_report_is_written_again_from_its_json(run, board, tmp_path, monkeypatch):
    assert run("--problem", "small")[0] == 0
    (tmp_path / "r").rename(tmp_path / "before")
    monkeypatch.setattr(gpu, "driver_present", None)
    assert run("--from", "before/report.json")[0] == 0
    for folder in ("before", "r"):
        names = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert len(names) > 10
    for path in (tmp_path / "before").iterdir():
        assert (tmp_path / "r" / path.name).read_bytes() == path.read_bytes()


def test_a_report_says_what_has_changed(run, board, tmp_path):
    assert run("--problem", "small")[0] == 0
    (tmp_path / "results/h200/axpy.json").rename(tmp_path / "old.json")
    board.outcome = replace(board.outcome, us=(40.0, 40.1, 40.2) * 3)
    (tmp_path / "now").mkdir()
    argv = ("--problem", "small", "--store", "now", "--compare", "old.json")
    assert run(*argv)[0] == 0
    assert "3 FASTER of 3 problems." in (tmp_path / "r/report.md").read_text()
