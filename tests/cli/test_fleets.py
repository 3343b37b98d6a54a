"""`tune` on several GPUs or a cluster, `why-miss` and `decisions merge`, without a GPU."""

import contextlib
import json
import os
import signal
import sys
from dataclasses import replace

import pytest
from axpy import Axpy, Problem
from full_disk import contents, files_of_at_most, limits_of
from toy_kernel import Toy, make_binary

from ferrum_numba import cli, gpu, results, tune
from ferrum_numba.errors import DeviceError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.results import decisions
from ferrum_numba.tune import dask_fleet, fleet
from ferrum_numba.tune.search import SearchTask, search
from ferrum_numba.tune.space import program_of
from ferrum_numba.tune.worker import Outcome

SETS = {"small": (Problem(64), Problem(100))}
BOARDS = [replace(KNOWN["h200"], uuid=f"board-{i}") for i in (1, 2)]


class Fixed:
    """Takes as long for every candidate, and interrupts where it is told to."""

    def __init__(self):
        self.asked, self.stop = 0, None

    def run(self, candidate, best_us):
        self.asked += 1
        if self.stop:
            self.stop()
        return Outcome("measured", us=(50.0,) * 9, rel_error=1e-7)

    def round(self, candidates, turn, samples):
        return None


@pytest.fixture(autouse=True)
def measurer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measurer = Fixed()

    def fake(kernels, problems, facts, *, timeout_s, progress, plan=None, **rest):
        return search(SearchTask(kernels, problems, facts, **rest), measurer, progress)

    def build(pairs, arch, *_, **__):
        return {(k.name, c): make_binary(program_of(k, c, arch)) for k, c in pairs}

    monkeypatch.setattr("ferrum_numba.tune.search.build_space", build)
    monkeypatch.setattr(gpu, "live", lambda index=0: BOARDS[index])
    monkeypatch.setattr(gpu, "_driver_gpus", lambda: 2)
    monkeypatch.setattr(tune, "tune", fake)
    return measurer


@pytest.fixture
def run(capsys):
    """Run a command on the toy kernels; return (status, stdout, stderr)."""

    def run(*argv, ceilings=()):
        status = cli.main((Axpy(), Toy()), SETS, argv, ceilings)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def on_boards(measurer, monkeypatch):
    """Stand in for the fleet; return what it was given."""
    given = []

    def tune_fleet(task, boards, *, yardsticks, timeout_s, progress, plan):
        given.append((boards, yardsticks, timeout_s))
        return search(task, measurer, progress)

    monkeypatch.setattr(fleet, "tune_fleet", tune_fleet)
    return given


TUNE = ("tune", "axpy", "--problem", "n=64")


def test_several_gpus_are_given_to_a_fleet_with_its_yardsticks(run, on_boards, tmp_path):
    status, out, _ = run(*TUNE, "--gpus", "all", "--timeout", "7", ceilings=(Toy(), Axpy()))
    ((boards, yardsticks, timeout_s),) = on_boards
    assert (status, boards, timeout_s) == (0, BOARDS, 7.0)
    # of two that are bound by memory the first
    assert [(y.kernel.name, y.problem) for y in yardsticks] == [("toy", Toy.op.tests[-1])]
    assert "n=64" in out
    assert (tmp_path / "results/h200/axpy.json").is_file()


def test_one_of_several_gpus_is_a_fleet_of_one(run, on_boards):
    run(*TUNE, "--gpus", "GPU-board-2")
    assert on_boards[0][0] == [BOARDS[1]]


def test_a_cluster_says_for_which_gpu_and_is_closed(run, measurer, monkeypatch):
    seen = []

    class Cluster(contextlib.AbstractContextManager):
        def __init__(self, address):
            seen.append(address)

        def gpu(self):
            return BOARDS[1]

        def tune(self, task, *, yardsticks, timeout_s, progress, plan):
            seen.append(task.gpu.uuid)
            return search(task, measurer, progress)

        def __exit__(self, *_):
            seen.append("closed")

    monkeypatch.setattr(dask_fleet, "Cluster", Cluster)
    status, _, _ = run(*TUNE, "--dask", "tcp://host:8786")
    assert (status, seen) == (0, ["tcp://host:8786", "board-2", "closed"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--gpus", "5"], "GPU 5 was asked for, this machine has 2, from 0"),
        (["--gpus", "0,0"], "GPU GPU-board-1 is named twice in 0,0"),
    ],
)
def test_a_gpu_that_is_not_there_is_one_sentence_and_status_2(run, argv, words):
    status, out, err = run(*TUNE, *argv)
    assert (status, out, err) == (2, "", f"ferrum-numba: {words}\n")


def test_gpus_of_two_models_are_refused_before_anything_is_compiled(run, monkeypatch):
    boards = [BOARDS[0], replace(KNOWN["a100"], uuid="board-3")]
    monkeypatch.setattr(gpu, "live", boards.__getitem__)
    status, _, err = run(*TUNE, "--gpus", "all")
    assert status == 2
    assert "got NVIDIA H200 and NVIDIA A100-SXM4-80GB; name those of one model" in err


def test_gpus_and_a_cluster_exclude_each_other(run, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*TUNE, "--gpus", "all", "--dask", "tcp://host:8786")
    assert stop.value.code == 2
    assert "--dask: not allowed with argument --gpus" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_status_2(run, monkeypatch):
    def refuse(address):
        raise DeviceError(f"no Dask scheduler answers at {address}: no")

    monkeypatch.setattr(dask_fleet, "Cluster", refuse)
    status, _, err = run(*TUNE, "--dask", "tcp://host:1")
    assert (status, err) == (2, "ferrum-numba: no Dask scheduler answers at tcp://host:1: no\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_stopped_tune_says_how_to_go_on_and_goes_on(run, measurer, number):
    measurer.stop = lambda: measurer.asked == 3 and os.kill(os.getpid(), number)
    argv = ("tune", "axpy", "--problem", "small", "--store", "my store")
    status, _, err = run(*argv)
    assert status == 130
    assert err.splitlines()[-1] == (
        "ferrum-numba: stopped; 2 rows kept; to go on: "
        "ferrum-numba tune axpy --problem small --store 'my store'"
    )
    measurer.stop = None
    status, _, _ = run(*argv)
    assert (status, measurer.asked) == (0, 3 + 2)


def test_a_disk_that_is_full_is_one_sentence_and_status_2(run, measurer, tmp_path):
    assert run(*TUNE)[0] == 0
    (tmp_path / "results/h200/tuning.sqlite").write_bytes(b"overwritten by another" * 99)
    for beside in (tmp_path / "results/h200").glob("tuning.sqlite-*"):
        beside.unlink()
    status, out, err = run("tune", "axpy", "--problem", "n=100")
    assert (status, out) == (2, "")
    words = (
        "results/h200/tuning.sqlite is damaged or no database: file is not a database; remove it"
    )
    assert err == f"ferrum-numba: {words}: the next tune takes in the result files beside it\n"


WHY = ("why-miss", "axpy", "--problem", "n=64")


def test_why_miss_explains_what_would_be_measured(run):
    status, out, _ = run(*WHY)
    assert status == 0
    assert "nothing of axpy was measured for this problem" in out
    assert not os.path.exists("results/h200/tuning.sqlite"), "asking makes no store"
    assert run(*TUNE)[0] == 0
    status, out, _ = run(*WHY)
    assert "known: not measured again" in out
    status, out, _ = run(*WHY, "--json")
    assert [one["why"] for one in json.loads(out)] == [None, None]


def test_why_miss_names_another_driver(run, monkeypatch):
    monkeypatch.setattr("ferrum_numba.results.provenance.driver_version", lambda: "580.1")
    assert run(*TUNE)[0] == 0
    monkeypatch.setattr("ferrum_numba.results.provenance.driver_version", lambda: "610.2")
    _, out, _ = run(*WHY, "--json")
    assert {one["why"] for one in json.loads(out)} == {"another driver: was 580.1, is 610.2"}
    measured = run(*TUNE, "--json")[1]
    assert json.loads(measured)[0]["environment"]["driver"] == "610.2"


def test_decisions_of_many_files_are_one_table(run, tmp_path):
    for name, problem in (("one", "n=64"), ("two", "n=100")):
        assert run("tune", "axpy", "--problem", problem, "--store", name)[0] == 0
    files = [f"{name}/h200/axpy.json" for name in ("one", "two")]
    status, out, err = run("decisions", "merge", *files, "--out", "a.json")
    assert (status, out) == (0, "")
    assert err == "2 decisions of 1 board are in a.json\n"
    run("decisions", "merge", *reversed(files), "--out", "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    found = decisions.load_decisions("a.json")
    assert [one.problem["n"] for one in found] == [100, 64]


@pytest.mark.parametrize("most", [2, pytest.param(sys.maxsize, marks=pytest.mark.slow)])
def test_a_full_disk_loses_no_row_and_leaves_no_half_table(run, tmp_path, most):
    """A limit on files that goes through all sizes of the store and of what is made of it."""
    assert run(*TUNE)[0] == 0
    merge = ("decisions", "merge", "results/h200/axpy.json", "--out")
    assert run(*merge, "a.json")[0] == 0
    written, table = contents(tmp_path / "results"), (tmp_path / "a.json").read_bytes()
    pages = range(0, max(map(len, written.values())), 4096)
    for limit in sorted({*limits_of(written, most), *pages[:: max(1, len(pages) // most)]}):
        with files_of_at_most(limit):
            status, out, err = run(*TUNE, "--store", f"at{limit}")
        assert (status, out) == (2, ""), limit
        assert err.splitlines()[-1].startswith("ferrum-numba: "), limit
        assert "Traceback" not in err
        # what was measured before is not measured again
        assert run(*TUNE, "--store", f"at{limit}")[0] == 0
        assert len(results.load(f"at{limit}/h200/axpy.json").rows) == 2
    for limit in (0, len(table) // 2, len(table) - 1):
        for name, before in (("a.json", table), ("new.json", None)):
            with files_of_at_most(limit):
                status, out, err = run(*merge, name)
            assert (status, out) == (2, "")
            assert err == f"ferrum-numba: {name}: cannot be written: File too large\n"
            path = tmp_path / name
            assert (path.read_bytes() if path.exists() else None) == before


def test_a_file_that_cannot_be_merged_leaves_nothing(run, tmp_path):
    (tmp_path / "bad.json").write_text("{")
    status, _, err = run("decisions", "merge", "bad.json", "--out", "a.json")
    assert status == 2
    assert err.startswith("ferrum-numba: bad.json: is not JSON: ")
    assert not (tmp_path / "a.json").exists()


def test_a_table_takes_no_other_files_place(run, tmp_path):
    assert run(*TUNE)[0] == 0
    file = tmp_path / "results/h200/axpy.json"
    before = file.read_bytes()
    status, out, err = run("decisions", "merge", str(file), "--out", str(file))
    assert (status, out) == (2, "")
    assert err.startswith(f"ferrum-numba: {file} is there and no table of decisions; ")
    assert file.read_bytes() == before
    for _ in range(2):
        assert run("decisions", "merge", str(file), "--out", "a.json")[0] == 0


def test_the_toys_store_is_a_result_file_like_any(run):
    assert run(*TUNE)[0] == 0
    assert len(results.load("results/h200/axpy.json").rows) == 2
