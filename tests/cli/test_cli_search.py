"""`plan --out`, and of `tune`: `--plan`, `--budget`, `--stop-within`, `--replay`, `--t4`."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from axpy import Axpy, Problem
from test_cli import Measured
from toy_kernel import Toy

from ferrum_numba import __main__ as entry
from ferrum_numba import cli, gpu, tune
from ferrum_numba.kernels.decode.kernel import Decode
from ferrum_numba.perf.readme_table import RESULTS
from ferrum_numba.tune import planned
from ferrum_numba.tune.search import SearchTask, search
from ferrum_numba.tune.worker import Outcome

SETS = {"small": (Problem(64), Problem(100))}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Run a command on the toy kernels; return (status, stdout, stderr)."""

    def run(*argv):
        status = cli.main((Axpy(), Toy()), SETS, argv)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def board(monkeypatch):
    """Return a measurer that stands for a GPU of this machine, with what it was given to search."""
    measurer = Measured(Outcome("measured", us=(50.0,) * 9, extra={"busy_us": 1e4}), [])
    measurer.tasks = []

    def fake(kernels, problems, facts, *, policy, store_path, progress, **rest):
        rest.pop("timeout_s")
        plan = rest.pop("plan")
        task = SearchTask(kernels, problems, facts, policy, store_path, **rest)
        measurer.tasks.append((task, plan))
        return search(task, measurer, progress, binaries=plan and plan.binaries)

    monkeypatch.setattr(gpu, "live", lambda: gpu.KNOWN["h200"])
    monkeypatch.setattr(tune, "tune", fake)
    return measurer


PLAN = ("plan", "axpy", "--gpu", "h200", "--problem", "small", "--out", "plan")


def test_a_plan_is_kept_and_tuned_without_a_compiler(run, board, monkeypatch):
    status, out, err = run(*PLAN)
    assert status == 0
    assert "plan holds the programs of 2 problems" in err
    assert "is expected to hold NVIDIA H200 for 0.0 minutes" in err
    assert "axpy" in out
    monkeypatch.setattr("ferrum_numba.tune.search.build_space", None)
    status, out, err = run("tune", "axpy", "--plan", "plan", "--json")
    (found,) = json.loads(out)
    assert status == 0
    assert [row["problem"]["n"] for row in found["rows"]] == [64, 64, 100, 100]
    assert "GPU held" in err
    assert "inside timed kernels" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_stopped_plan_says_what_it_has_and_how_to_go_on(run, monkeypatch, number):
    kept = planned.cache.keep

    def stop_after_one(*about):
        kept(*about)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(planned.cache, "keep", stop_after_one)
    status, out, err = run(*PLAN)
    assert (status, out) == (130, "")
    assert err == (
        "ferrum-numba: stopped; 1 program kept; to go on: ferrum-numba plan axpy --gpu h200 "
        "--problem small --out plan\n"
    )
    assert [file.suffix for file in Path("plan/programs").iterdir()] == [".cubin"]


def test_ctrl_c_while_the_command_line_loads_is_one_sentence(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.__import__", stop)
    status = entry.main()
    monkeypatch.undo()
    assert status == 130
    assert capsys.readouterr().err == "ferrum-numba: stopped before it began\n"


def test_some_problems_of_a_plan_are_tuned_and_no_others(run, board):
    run(*PLAN)
    _, out, _ = run("tune", "axpy", "--plan", "plan", "--problem", "n=100", "--json")
    assert {row["problem"]["n"] for row in json.loads(out)[0]["rows"]} == {100}
    status, out, err = run("tune", "axpy", "--plan", "plan", "--problem", "n=65")
    assert (status, out) == (2, "")
    assert "Problem(n=65) is not in the plan plan, which has 2 problems" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("tune", "axpy", "--plan", "nowhere"), "nowhere is no plan, or one that was not finished"),
        (("tune", "toy", "--plan", "plan"), "plan has no programs of toy"),
        ((*PLAN, "--arch", "sm_80"), "a plan is for NVIDIA H200, which is sm_90a"),
        (("tune", "axpy", "--replay", "nowhere"), "nowhere: cannot be read"),
        (("tune", "axpy", "--replay", "x", "--plan", "plan"), "takes no --plan"),
        (("tune", "axpy", "--replay", "x", "--stop-within", "5"), "takes no --stop-within"),
        (("tune", "axpy", "--replay", "x", "--budget", "5m"), "takes no --budget"),
        (("tune", "axpy", "--replay", "x", "--gpus", "all"), "takes no --gpus"),
        (("tune", "axpy", "--replay", "x", "--repeat", "3"), "takes no --repeat"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_sentence(run, board, argv, words):
    run(*PLAN)
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--budget", "soon"), ("--budget", "0m"), ("--stop-within", "120"), ("--stop-within", "x")],
)
def test_a_wrong_value_is_named(capsys, option, value):
    with pytest.raises(SystemExit) as ended:
        cli.main((Axpy(),), SETS, ["tune", option, value])
    assert ended.value.code == 2
    assert value in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("5", 5)])
def test_a_budget_is_a_time(run, board, text, seconds):
    assert run("tune", "axpy", "--problem", "n=64", "--budget", text)[0] == 0
    ((task, _),) = board.tasks
    assert task.budget_s == seconds


def test_problems_that_a_budget_does_not_reach_are_told(run, board):
    status, _, err = run("tune", "axpy", "--problem", "small", "--budget", "0.0000001")
    assert status == 0
    assert "2 of 2 problems not reached in 1e-07 s" in err
    assert board.asked == []


def test_problems_that_nothing_fits_are_told_apart_from_those(run, board, monkeypatch):
    monkeypatch.setattr(Axpy, "misfit", lambda *_: "too small")
    status, _, err = run("tune", "axpy", "--problem", "n=64")
    assert status == 0
    assert "no config fits here for 1 of 1 problem\n" in err


def test_a_folder_for_t4_is_made_before_anything_is_measured(run, board):
    Path("taken").touch()
    status, _, err = run("tune", "axpy", "--problem", "n=64", "--t4", "taken")
    assert status == 2
    assert err == "ferrum-numba: taken cannot be written: File exists\n"
    assert board.asked == []


def test_a_searcher_that_is_not_installed_is_missed_before_anything_compiles(
    run, board, monkeypatch
):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("ferrum_numba.tune.search.build_space", None)
    status, _, err = run("tune", "axpy", "--problem", "n=64", "--searcher", "optuna")
    assert status == 2
    assert "pip install 'ferrum-numba[optuna]'" in err


def test_what_was_measured_before_is_an_incumbent(run, board):
    board.outcome = Outcome("measured", us=(9.0,) * 9)
    run("tune", "axpy", "--problem", "n=64")
    run("tune", "axpy", "--problem", "n=64", "--store", "elsewhere")
    ((first, _), (second, _)) = board.tasks
    assert (len(first.earlier), len(second.earlier)) == (0, 0)
    run("tune", "axpy", "--problem", "n=64")
    assert len(board.tasks[-1][0].earlier) == 2


@pytest.mark.parametrize("us", [0.0, -1.0, float("nan"), float("inf")])
def test_a_sample_that_is_no_time_is_a_row_and_the_rest_is_kept(run, board, us):
    good = Outcome("measured", us=(50.0,) * 9)
    odd = Outcome("measured", us=(50.0,) * 8 + (us,))
    board.run = lambda candidate, _: odd if candidate.config.num_threads == 64 else good
    status, out, err = run("tune", "axpy", "--problem", "n=64", "--json")
    assert (status, "Traceback" in err) == (0, False)
    rows = {row["config"]["num_threads"]: row for row in json.loads(out)[0]["rows"]}
    assert {threads: row["status"] for threads, row in rows.items()} == {
        64: "failed", 128: "measured",
    }  # fmt: skip
    assert rows[64]["reason"] == f"1 of 9 samples are no times, such as {us} us"


def test_a_roof_needs_ceilings_of_this_very_board(run, board):
    run("tune", "axpy", "--problem", "n=64", "--stop-within", "5%")
    ((task, _),) = board.tasks
    assert task.within == 0.05
    assert task.roof_us is None


def test_results_are_replayed_and_handed_on_as_t4(run, board):
    times = {64: 90.0, 128: 50.0}
    board.run = lambda candidate, best_us: Outcome(
        "measured", us=(times.get(candidate.config.num_threads, 70.0),) * 9
    )
    assert run("tune", "axpy", "--problem", "small", "--t4", "handed")[0] == 0
    files = sorted(Path("handed").iterdir())
    assert len(files) == 2
    # two configs are no landscape, whichever file they come from
    for recorded in ("results/h200/axpy.json", str(files[0])):
        status, out, err = run("tune", "axpy", "--replay", recorded, "--json")
        assert (status, out) == (2, "")
        assert "has no landscape of axpy" in err


def test_recorded_results_say_what_each_way_of_searching_finds(capsys):
    argv = ["tune", "decode", "--replay", str(RESULTS), "--searcher", "model"]
    assert cli.main((Decode(),), {}, [*argv, "--json", "--t4", "handed"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert {one["searcher"] for one in found["strategies"]} == {"default", "exhaustive", "model"}
    assert found["search"]["problems"] >= 40
    assert found["search"]["worst"] < 0.03
    count = len(list(Path("handed").iterdir()))
    assert f"{count} files in the T4 format are in handed" in err
    some = [*argv, "--json", "--problem", "M=16,N=4096,K=4096,group_size=128"]
    assert cli.main((Decode(),), {}, some) == 0
    out, _ = capsys.readouterr()
    assert json.loads(out)["search"]["problems"] == 1
    assert cli.main((Decode(),), {}, [*argv, "--json", "--m", "16"]) == 0
    out, _ = capsys.readouterr()
    assert 1 < json.loads(out)["search"]["problems"] < found["search"]["problems"]
    assert cli.main((Decode(),), {}, [*argv, "--m", "3"]) == 2
    assert "has no landscape of decode for these problems" in capsys.readouterr().err
    assert cli.main((Decode(),), {}, argv) == 0
    out, _ = capsys.readouterr()
    assert "searched as asked for (model)" in out
    assert max(map(len, out.splitlines())) <= 160
