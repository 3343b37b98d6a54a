"""A disk that is full while a command writes: one sentence, status 2, what was there stays.

No file grows beyond a limit here, which every write meets in its turn: the limit goes through all
sizes of what a command writes.
"""

import shutil
import sys
from pathlib import Path

import gptq_layers as build
import pytest
from axpy import Axpy, Problem
from full_disk import contents, files_of_at_most, limits_of
from test_kills import report_of, source_of
from toy_kernel import Toy

from ferrum_numba import cli, gpu, whole
from ferrum_numba.kernels import KERNELS


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "_driver_gpus", lambda: "there is none")


@pytest.fixture
def run(capsys):
    """Run a command; return (status, stdout, stderr)."""

    def run(*argv):
        status = cli.main((Axpy(), Toy(), *KERNELS), {"small": (Problem(64), Problem(100))}, argv)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def checkpoint_of(folder, rng):
    layers = {name: build.make(rng, sym=True).gptq() for name in ("a.up", "b.up")}
    build.write(folder / "model", layers, {"group_size": 32})


def results_of(folder, rng):
    report_of(folder)


def nothing(folder, rng):
    pass


# a command -> what makes its inputs, its words, what it writes
COMMANDS = {
    "plan": (nothing, ("plan", "axpy", "--gpu", "h200", "--problem", "small", "--out"), "out"),
    "report": (results_of, ("report", "--from", "first/report.json", "--out"), "out"),
    "quantize": (lambda folder, rng: source_of(folder), ("quantize", "source"), "target"),
    "convert": (checkpoint_of, ("convert", "--to", "awq", "model"), "target"),
    "export": (checkpoint_of, ("export", "model", "--gpu", "h200", "--m", "1", "--out"), "out"),
}


def refused(run, words, target, before, limit):
    with files_of_at_most(limit):
        status, out, err = run(*words, target)
    assert (status, out) == (2, ""), (limit, err)
    said = err.splitlines()
    assert said[-1].startswith("ferrum-numba: ")
    assert said[-1].count("File too large") == 1, said
    assert "Traceback" not in err
    left = contents(Path(target))
    # a plan goes on from the programs that it has; without a manifest it is none
    left = {path: data for path, data in left.items() if not path.endswith(".cubin")}
    assert left == {path: data for path, data in before.items() if not path.endswith(".cubin")}


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("quantize", 4),
        ("convert", 4),
        *(pytest.param(name, sys.maxsize, marks=pytest.mark.slow) for name in COMMANDS),
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(run, tmp_path, rng, name, most):
    make, words, target = COMMANDS[name]
    make(tmp_path, rng)
    status, _, err = run(*words, target)
    assert status == 0, err
    written = contents(Path(target))
    whole_target = Path(target).rename(tmp_path / "whole")
    for limit in limits_of(written, most):
        refused(run, words, target, {}, limit)
    # and beside what is there, where it may be replaced
    if name in ("plan", "report", "export"):
        shutil.rmtree(target, ignore_errors=True)  # made, and empty
        whole_target.rename(target)
        refused(run, words, target, written, 0)
    assert not list(tmp_path.rglob(f"*{whole.ENDING}*"))
