"""`compare` as other programs call it: two files, a status, one sentence for a mistake."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from axpy import Axpy, Problem
from result_rows import make_environment, make_row
from test_counters import NAMES, UNITS, VALUES, fake_ncu, page
from toy_kernel import Toy

from ferrum_numba import cli, gpu
from ferrum_numba.compare.designs import trials
from ferrum_numba.results import ResultFile, load, save
from ferrum_numba.tune.worker import Outcome

SAMPLES = [9.9, 9.95, 10.0, 10.0, 10.0, 10.05, 10.1]


@pytest.fixture(autouse=True)
def _no_gpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "_driver_gpus", lambda: "there is none")


@pytest.fixture
def run(capsys):
    def run(*argv):
        status = cli.main((Axpy(), Toy()), {"small": (Problem(64),)}, ["compare", *argv])
        return status, *capsys.readouterr()

    return run


def write(name, *factors, **changes):
    """Write a file in which each problem takes so many times 10 us."""
    rows = [
        make_row(
            M=i + 1, us=10 * factor, samples=[us * factor for us in SAMPLES], run=name,
            **{"us_low": 9.9 * factor, "us_high": 10.1 * factor, **changes},
        )
        for i, factor in enumerate(factors)
    ]  # fmt: skip
    save(name, ResultFile(make_environment(), rows))
    return name


def test_nothing_got_slower(run):
    old, new = write("old.json", 1, 1), write("new.json", 1, 0.8)
    status, out, _ = run(old, new)
    assert status == 0
    assert "1 FASTER, 1 SAME, 0 SLOWER, 0 UNDECIDED" in out
    assert run(old, old)[0] == 0


def test_something_got_slower(run):
    status, out, _ = run(write("old.json", 1, 1), write("new.json", 1, 1.2, registers=80), "--json")
    assert status == 1
    found = json.loads(out)
    assert (found["slower"], [pair["verdict"] for pair in found["pairs"]]) == (
        1,
        ["SAME", "SLOWER"],
    )
    assert found["pairs"][1]["ratio"] == pytest.approx(1.2)
    assert found["pairs"][1]["delta"] == {"registers": 16, "spill_bytes": 0, "smem_bytes": 0}
    assert found["pairs"][1]["old"]["us"] == 10


COUNTED = {"dram_bytes": 2e6, "l2_hit": 0.5, "issue": 0.25, "stalls": {"wait": 2.0}}


def test_what_both_files_counted_is_compared(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    old = write("old.json", 1, counters=COUNTED)
    later = {**COUNTED, "dram_bytes": 5e6, "l2_hit": 0.4, "stalls": {"wait": 2.5}}
    new = write("new.json", 1.2, counters=later)
    status, out, _ = run(old, new)
    assert status == 1
    for words in ("DRAM +3 MB", "L2 hits -10.0 % points", "issue slots +0.0", "wait +0.5"):
        assert words in " ".join(out.split())
    found = json.loads(run(old, new, "--json")[1])["pairs"][0]["delta"]["counters"]
    assert (found["dram_bytes"], found["stalls"]) == (3e6, {"wait": 0.5})
    assert (
        "counters" not in json.loads(run(old, write("n.json", 1), "--json")[1])["pairs"][0]["delta"]
    )


class Fake:
    """A measurer without a GPU: as many us as there are threads."""

    def run(self, candidate, best_us):
        us = (float(candidate.config.num_threads),)
        return Outcome("measured", us=us, rel_error=0.0, max_error=0.0)

    def round(self, candidates, turn, samples):
        return [self.run(candidate, None) for candidate in candidates]


def test_kernels_are_counted_where_ncu_is_there(run, tmp_path, monkeypatch):
    facts = replace(gpu.KNOWN["h200"], uuid="GPU-1")
    monkeypatch.setattr(gpu, "live", lambda: facts)
    monkeypatch.setattr(
        "ferrum_numba.compare.designs.compare_designs",
        lambda old, new, problems, gpu, policy, run, timeout: trials(
            Fake(), old, new, problems, gpu, policy, run
        ),
    )
    fake_ncu(tmp_path, page(NAMES, UNITS, VALUES))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    argv = ("axpy:num_threads=32", "axpy:num_threads=64", "--counters", "--out", "rows.json")
    status, out, _ = run(*argv, "--json")
    assert status == 1
    assert json.loads(out)["pairs"][0]["delta"]["counters"]["l2_hit"] == 0
    assert all(row.more["counters"]["dram_bytes"] == 1572860.0 for row in load("rows.json").rows)
    monkeypatch.setenv("PATH", "")
    status, out, err = run(*argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "there is no ncu on the path" in err


def test_a_comparison_is_drawn_as_arrows(run, tmp_path):
    about = {"flops": 1e9, "bytes": 1e7}
    old, new = write("old.json", 1, 1, **about), write("new.json", 1, 1.2, **about)
    status, _, err = run(old, new, "--roofline", "here/arrows.svg")
    assert status == 1
    assert "here/arrows.svg has 2 of 2 problems" in err
    svg = (tmp_path / "here/arrows.svg").read_text()
    assert "From old.json to new.json: NVIDIA H200" in svg
    assert "before; the arrow leads to now" in svg
    bare = write("bare.json", 1, flops=None, tflops=None, gbps=None)
    status, out, err = run(bare, bare, "--roofline", "none.svg")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "none.svg is not drawn: no problem has a time and work in both" in err
    assert not (tmp_path / "none.svg").exists()


def test_what_fails_got_slower(run):
    new = write("new.json", 1, ok=False, status="wrong", reason="differs")
    other = ResultFile(make_environment(), [make_row(M=9)])
    save(new, ResultFile(other.environment, [make_row(ok=False, status="wrong"), *other.rows]))
    status, out, _ = run(write("old.json", 1), new)
    assert status == 1
    assert "no row that counts: 1 wrong" in out


def test_a_kernel_alone_and_each(run):
    rows = [make_row(samples=SAMPLES, run="a"), make_row("decode", 12.0, samples=[12.0] * 7)]
    save("old.json", ResultFile(make_environment(), rows))
    rows = [make_row(samples=SAMPLES, run="a"), make_row("decode", 14.0, samples=[14.0] * 7)]
    save("new.json", ResultFile(make_environment("2026-02-02T00:00:00.000+00:00"), rows))
    assert run("old.json", "new.json")[0] == 0
    assert run("old.json", "new.json", "--each-kernel")[0] == 1
    assert run("old.json", "new.json", "--kernel", "decode")[0] == 1
    status, _, err = run("old.json", "new.json", "--kernel", "decoed")
    assert (status, err.count("\n")) == (2, 1)
    assert "old.json: has no kernel decoed; did you mean decode?" in err


def files_of(case, which):
    """Return an old and a new file, one of which is bad."""
    bad, good = ("old.json", "new.json") if which == "old" else ("new.json", "old.json")
    environment = make_environment()
    rows = [make_row()]
    if case == "op":
        rows = [make_row(op="gemm")]
    elif case == "gpu":
        environment["gpu"] = "NVIDIA A10"
    elif case == "nothing":
        rows = []
    elif case == "contradiction":
        rows = [make_row(samples=[20.0] * 3)]
    save(bad, ResultFile(environment, rows))
    texts = {"schema": json.dumps({"schema": 9, "rows": []}), "empty": "", "no JSON": "{"}
    if case in texts:
        Path(bad).write_text(texts[case])
    elif case == "missing":
        Path(bad).unlink()
    write(good, 1)
    return bad, ("old.json", "new.json")


@pytest.mark.parametrize("which", ["old", "new"])
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("schema", "needs schema 1, got 9"),
        ("empty", "is empty"),
        ("nothing", "has no rows"),
        ("contradiction", "row 0: us is 10, but the median of its samples is 20"),
        ("no JSON", "is not JSON"),
        ("missing", "cannot be read"),
    ],
)
def test_a_bad_file_is_one_sentence_and_status_2(run, case, words, which):
    bad, files = files_of(case, which)
    status, out, err = run(*files)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{bad}: {words}" in err


@pytest.mark.parametrize("which", ["old", "new"])
@pytest.mark.parametrize(
    ("case", "ours", "theirs"),
    [("op", "w4a16_gemm", "gemm"), ("gpu", "NVIDIA H200", "NVIDIA A10")],
)
def test_files_of_two_ops_or_gpus_are_one_sentence_and_status_2(run, case, ours, theirs, which):
    _, files = files_of(case, which)
    status, out, err = run(*files)
    assert (status, out, err.count("\n")) == (2, "", 1)
    first, second = (theirs, ours) if which == "old" else (ours, theirs)
    assert f"one file is of {first}, the other of {second}: another" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["axpi", "axpy"], "axpi is no result file, no kernel and no revision; did you mean axpy?"),
        (["axpy", "old.json"], "two of a kind are compared: axpy is a design, and old.json a file"),
        (["axpy", "axpy:num_threads=64"], "no GPU to run on: there is none"),
        (["old.json", "old.json", "--m", "4"], "--m has no meaning for files"),
        (
            ["old.json", "new.json", "--counters"],
            "--counters is for kernels, and",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(run, argv, words):
    status, out, err = run(*argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err
