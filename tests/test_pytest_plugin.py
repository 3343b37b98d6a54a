"""`pytest --ferrum-kernels`: a package's kernels are checked, and timed against a baseline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from result_rows import make_environment, make_row

from ferrum_numba.pytest_plugin import Failed, judged
from ferrum_numba.results import ResultFile, save

SUPPORT = Path(__file__).parent / "support"
# an Axpy whose default config is as it is told
MODULE = """
from axpy import Axpy, Config

class Mine(Axpy):
    name = "mine"
    def configs(self, gpu):
        return (Config(64, {fault!r}),)

KERNELS = (Mine(),)
"""
SAMPLES = [9.9, 9.95, 10.0, 10.0, 10.0, 10.05, 10.1]


@pytest.fixture
def run(tmp_path):
    """Run pytest in a folder with a package of kernels; return (status, what it said)."""

    def run(*options, fault=""):
        (tmp_path / "mine.py").write_text(MODULE.format(fault=fault))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p",
             "ferrum_numba.pytest_plugin", "-rA", "--color=no", *options],
            cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{SUPPORT}"},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return run


def baseline(tmp_path, **changes):
    row = make_row(
        "mine", op="axpy", problem={"n": 64}, config={"num_threads": 64, "fault": ""},
        samples=SAMPLES, **{"us_low": 9.9, "us_high": 10.1, **changes},
    )  # fmt: skip
    save(tmp_path / "base.json", ResultFile(make_environment(), [row]))
    return row


def test_every_kernel_is_checked_on_every_test_problem(run):
    status, said = run("--ferrum-kernels", "mine", "--ferrum-on", "interpreter")
    assert status == 0
    assert "4 passed" in said
    assert "check[mine-Problem(n=1000)]" in said


def test_a_wrong_kernel_fails_with_its_reason_and_no_traceback(run):
    status, said = run("--ferrum-kernels", "mine", "--ferrum-on", "interpreter", fault="scale")
    assert status == 1
    assert "check[mine-Problem(n=64)] is wrong on the interpreter: relative error" in said
    assert "Traceback" not in said


def test_a_package_s_own_tests_run_beside_them(run, tmp_path):
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n")
    assert "5 passed" in run("--ferrum-kernels", "mine", "--ferrum-on", "interpreter")[1]
    assert "1 passed" in run()[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ferrum-kernels", "nowhere"], "--kernels nowhere: no module is named nowhere"),
        (["--ferrum-baseline", "base.json"], "--ferrum-baseline needs --ferrum-kernels"),
        (["--ferrum-kernels", "mine", "--ferrum-baseline", "no.json"], "no.json: cannot be read"),
        (["--ferrum-kernels", "axpy"], "it has no KERNELS, a tuple of kernels"),
    ],
)
def test_a_mistake_is_one_sentence(run, options, words):
    status, said = run(*options, "--ferrum-on", "interpreter")
    assert status == 4
    assert words in said
    assert "Traceback" not in said


def test_what_has_a_baseline_is_timed_where_a_gpu_is(run, tmp_path):
    baseline(tmp_path)
    options = ("--ferrum-kernels", "mine", "--ferrum-baseline", "base.json")
    status, said = run(*options, "--ferrum-on", "interpreter")
    assert status == 0
    # here or there
    assert "time[mine-Problem(n=64)]" in said or "1 skipped" in said
    save(tmp_path / "base.json", ResultFile(make_environment(), [make_row("other")]))
    assert "has no row of mine" in run(*options)[1]


@pytest.mark.parametrize(
    ("factor", "tolerance", "fails"), [(1.2, 1.05, True), (1.2, 1.3, False), (1.0, 1.05, False)]
)
def test_slower_is_what_is_above_the_tolerance(tmp_path, factor, tolerance, fails):
    then = baseline(tmp_path)
    now = make_row("mine", 10 * factor, samples=[us * factor for us in SAMPLES], run="now")
    if fails:
        words = (
            r"time\[mine\] got slower: 12 us now, 10 then: 1\.200 times; 1\.05 times are allowed"
        )
        with pytest.raises(Failed, match=words):
            judged("time[mine]", now, then, tolerance)
    else:
        assert judged("time[mine]", now, then, tolerance).startswith(f"{10 * factor:g} us now")
