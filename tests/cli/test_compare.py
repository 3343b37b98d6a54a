"""`compare` as other programs call it: two files, a status, one sentence for a mistake."""

import json
from pathlib import Path

import pytest
from axpy import Axpy, Problem
from result_rows import make_environment, make_row
from toy_kernel import Toy

from ferrum_numba import cli, gpu
from ferrum_numba.results import ResultFile, save

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
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(run, argv, words):
    status, out, err = run(*argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err
