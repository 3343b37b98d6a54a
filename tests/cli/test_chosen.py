"""What commands choose where nothing is named, and how they say what went wrong."""

import json

import pytest
from axpy import Axpy, Problem

from ferrum_numba import cli
from ferrum_numba.compile import build
from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.errors import BuildError
from ferrum_numba.kernels import KERNELS
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.tune import space


class Even(Axpy):
    """It needs sizes that its threads divide, and a config of its space is wrong."""

    name = "even"

    def configs(self, gpu):
        config = self.config
        return [config(num_threads=1), *(config(num_threads=n, fault="scale") for n in (2, 4, 32))]

    def misfit(self, config, problem, gpu):
        fits = problem.n % config.num_threads == 0
        return None if fits else f"n = {problem.n} is no multiple of {config.num_threads}"


class Forgetful(Axpy):
    """Its launch has no n."""

    name = "forgetful"

    def launch(self, config, problem, gpu):
        return Launch((1, 1, 1), {})


class Swapped(Axpy):
    """Its function takes the weight before the activations."""

    name = "swapped"

    def build(self, config, arch):
        program = super().build(config, arch)
        other = pointers("w", "x", "out", "count") + sizes("n")
        return Program(program.function, other, program.num_threads)


def here(jobs, **_):
    """Compile in this process, for which no others are started."""

    def built(job):
        try:
            return build(job.kernel, job.config, job.arch)
        except BuildError as error:
            return error

    return [(job, built(job)) for job in jobs]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command on the toy kernels; return (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(space, "build_many", here)

    def run(*argv, sets=()):
        status = cli.main((Axpy(), Even(), Forgetful(), Swapped()), dict(sets), argv)
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("command", ["plan", "explain"])
def test_a_test_problem_that_nobody_named_is_said(run, command):
    status, _, err = run(command, "axpy", "--gpu", "h200")
    assert status == 0
    assert "no problem was named, so a test of the Op's is taken: n=1" in err
    assert err.endswith("name one of your size by --problem n=…\n")
    assert (
        "no problem was named" not in run(command, "axpy", "--gpu", "h200", "--problem", "n=5")[2]
    )
    named = {"mine": (Problem(300),)}
    assert "no problem was named" not in run(command, "axpy", "--gpu", "h200", sets=named)[2]


def test_what_is_to_be_done_after_new_names_a_problem(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ("new", "mine_op", "--like", "decode", "--json")
    assert cli.main(KERNELS, {"mine": (Problem(300), W4A16Problem(2, 512, 1024))}, argv) == 0
    commands = json.loads(capsys.readouterr()[0])["next"]
    named = [line.endswith(" --problem M=2,N=512,K=1024") for line in commands]
    assert named == [False, True, True, False]


def test_a_named_config_is_checked_on_the_problems_that_it_fits(run):
    argv = ("check", "even", "--on", "interpreter", "--configs", "num_threads=64")
    status, out, err = run(*argv)
    assert (status, "1 of 1 checks passed" in out) == (0, True)
    assert "3 problems left out, which the config does not fit; the first: even cannot run" in err
    assert "n = 1 is no multiple of 64" in err


def test_a_config_that_fits_none_is_a_mistake(run):
    argv = ("check", "even", "--on", "interpreter", "--configs", "num_threads=96")
    status, out, err = run(*argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "n = 1 is no multiple of 96" in err


def test_a_failure_names_its_configs_and_a_reason_is_said_once(run):
    argv = ("check", "even", "--on", "interpreter", "--configs", "all", "--problem", "n=64")
    status, out, _ = run(*argv)
    (line,) = (line for line in out.splitlines() if line.startswith("even n=64"))
    assert (status, "1 of 4 checks passed" in out) == (1, True)
    assert line.startswith("even n=64 with num_threads=2 fault=scale and 2 more configs: relative")


def test_plan_says_that_nothing_compiled(run, monkeypatch):
    wrong = BuildError("wrong")
    monkeypatch.setattr(space, "build_many", lambda jobs, **_: [(job, wrong) for job in jobs])
    status, out, _ = run("plan", "axpy", "--gpu", "h200", "--problem", "n=5")
    assert (status, out.endswith("none of 2 candidates compiled\n")) == (1, True)

    monkeypatch.setattr(space, "build_many", lambda jobs, **_: [*here(jobs[:1]), (jobs[1], wrong)])
    _, out, _ = run("plan", "axpy", "--gpu", "h200", "--problem", "n=5")
    assert out.endswith("1 of 1 compiled candidates are worth measuring; 1 did not compile\n")


def test_plan_and_explain_give_one_bound(run):
    about = ("axpy", "--gpu", "h200", "--problem", "n=1000000", "--json")
    (row, *_), found = json.loads(run("plan", *about)[1]), json.loads(run("explain", *about)[1])
    assert row["bound_us"] == found["bound"]["us"]


def test_a_scalar_that_the_launch_forgot_is_no_candidate(run):
    status, out, _ = run("plan", "forgetful", "--gpu", "h200", "--problem", "n=5", "--json")
    (row, *_) = json.loads(out)
    words = "no scalar is given for the parameter n"
    assert (status, row["status"], row["reason"]) == (1, "build failed", words)
    status, out, _ = run("check", "forgetful", "--on", "interpreter", "--limit", "1")
    assert (status, words in out) == (1, True)


@pytest.mark.parametrize("argv", [("plan", "--gpu", "h200"), ("check", "--on", "interpreter")])
def test_parameters_of_other_names_are_refused(run, argv):
    status, out, _ = run(argv[0], "swapped", *argv[1:], "--problem", "n=5", "--json")
    words = (
        "axpy takes (x, w, out, count, n), and its Program's parameters are (w, x, out, count, n): "
        "they must be the same names in the same order"
    )
    assert (status, json.loads(out)[0]["reason"]) == (1, words)
