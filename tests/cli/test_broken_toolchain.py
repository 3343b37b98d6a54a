"""A machine where nothing compiles: one sentence, the command that mends it, never status 0."""

import importlib
import json
import os
import subprocess
import sys

import pytest
from axpy import Axpy, Problem
from toy_builds import Config as ToyConfig
from toy_builds import Toy

from ferrum_numba import cli, gpu
from ferrum_numba.compile import Job, build, build_many, probe, toolchain
from ferrum_numba.errors import BuildError, ToolchainError

build_module = importlib.import_module("ferrum_numba.compile.compiler")
# what NumPy 2.5 no longer has, and numba-cuda 0.30.4 asks for when it compiles the first time
WITHOUT_ROW_STACK = "import numpy\ndel numpy.row_stack\n"
PROBLEM = ("--problem", "M=1,N=4096,K=4096", "--limit", "2")
WANTED_NUMPY = "pip install 'numpy<2.5'"


@pytest.fixture
def ferrum_numba(tmp_path):
    """Run the command line where NumPy is too new, in all of its processes."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_ROW_STACK)
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "FERRUM_NUMBA_CACHE_DIR": str(tmp_path / "cache"),
    }

    def run(*argv):
        command = [sys.executable, "-m", "ferrum_numba", *argv]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


def assert_one_sentence(done):
    sentence = done.stderr.splitlines()[-1]
    assert done.returncode == 2
    assert sentence.startswith("ferrum-numba: no kernel compiles here: numba-cuda 0.30")
    assert "does not go with NumPy" in sentence
    assert sentence.endswith(f"; {WANTED_NUMPY}")
    assert "Traceback" not in done.stderr


def test_doctor_compiles_a_kernel_and_says_what_is_wrong(ferrum_numba):
    done = ferrum_numba("doctor")
    assert done.returncode == 1
    (verdict,) = [line for line in done.stdout.splitlines() if "be compiled here" in line]
    assert verdict.startswith("kernels cannot be compiled here: numba-cuda 0.30")
    assert "has no attribute 'row_stack'" in verdict
    assert verdict.endswith(f"; {WANTED_NUMPY}")
    assert "`plan`" not in done.stdout


def test_doctor_says_it_to_programs(ferrum_numba):
    done = ferrum_numba("doctor", "--json")
    facts = json.loads(done.stdout)
    assert (done.returncode, facts["can_compile"]) == (1, False)
    assert facts["missing"][0]["command"] == WANTED_NUMPY


def test_a_plan_of_many_processes_stops(ferrum_numba):
    done = ferrum_numba("plan", "decode", *PROBLEM)
    assert_one_sentence(done)
    assert done.stdout == ""


@pytest.mark.skipif(gpu.driver_present(), reason="with a GPU it measures")
def test_a_report_ends_with_a_mistake(ferrum_numba, tmp_path):
    done = ferrum_numba("report", "decode", *PROBLEM, "--out", "report")
    assert_one_sentence(done)
    assert not (tmp_path / "report" / "report.html").exists()


def test_a_check_by_the_interpreter_asks_numba_for_types(ferrum_numba):
    assert_one_sentence(ferrum_numba("check", "decode", "--on", "interpreter", "--limit", "1"))


def fail(*arguments, **options):
    raise OSError("libnvvm.so:\n  wrong ELF class")


@pytest.fixture
def broken(monkeypatch, tmp_path):
    monkeypatch.setenv("FERRUM_NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build_module.compiler, "_compile_pyfunc_with_fixup", fail)


SENTENCE = (
    "no kernel compiles here: OSError: libnvvm.so: wrong ELF class; "
    "pip install --force-reinstall 'numba-cuda[cu13]'"
)


@pytest.mark.usefixtures("broken")
def test_whatever_a_compiler_raises_is_one_sentence():
    with pytest.raises(ToolchainError) as raised:
        probe()
    assert str(raised.value) == SENTENCE


@pytest.mark.usefixtures("broken")
def test_a_build_is_not_blamed_for_it():
    with pytest.raises(ToolchainError) as raised:
        build(Toy(), ToyConfig(), "sm_80")
    assert str(raised.value) == SENTENCE
    with pytest.raises(ToolchainError):
        list(build_many([Job(Toy(), ToyConfig(), "sm_80")]))


def test_a_kernel_that_does_not_compile_is_its_own_fault():
    with pytest.raises(BuildError) as raised:
        build(Toy(), ToyConfig(fault="does not type"), "sm_90a")
    assert not isinstance(raised.value, ToolchainError)


@pytest.mark.parametrize("command", ["plan", "tune", "bench"])
@pytest.mark.usefixtures("broken")
def test_every_command_that_compiles_says_so(command, monkeypatch, capsys, tmp_path):
    tune = importlib.import_module("ferrum_numba.tune")
    search = importlib.import_module("ferrum_numba.tune.search")

    def without_gpu(
        kernels, problems, facts, *, policy, store_path, progress, timeout_s, plan=None, **rest
    ):
        task = search.SearchTask(kernels, problems, facts, policy, store_path, **rest)
        return search.search(task, None, progress)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "live", lambda: gpu.KNOWN["h200"])
    monkeypatch.setattr(gpu, "driver_present", lambda: True)
    monkeypatch.setattr(tune, "tune", without_gpu)
    argv = [command, "axpy", "--problem", "n=64", *(["--limit", "1"] * (command != "bench"))]
    assert cli.main((Axpy(),), {"small": (Problem(64),)}, argv) == 2
    assert capsys.readouterr().err == f"ferrum-numba: {SENTENCE}\n"


def test_libraries_that_are_not_installed_are_said_with_their_command(monkeypatch):
    def missing(name):
        raise toolchain.DynamicLibNotFoundError(f"no\n{name}")

    monkeypatch.setattr(toolchain, "get_cudalib", missing)
    toolchain.toolchain.cache_clear()
    with pytest.raises(ToolchainError, match=r"NVRTC\) are not installed; pip install 'numba-cuda"):
        probe()
    with pytest.raises(ToolchainError, match="are not installed"):
        build(Toy(), ToyConfig(), "sm_80")


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    toolchain.toolchain.cache_clear()
