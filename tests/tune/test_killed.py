"""Processes that are killed: what was measured stays, and nothing stays on the GPU."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parent.parent / "support"


@pytest.mark.parametrize("rounds", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_no_measured_row_is_lost_by_kills_at_random_times(rounds, tmp_path):
    command = [sys.executable, SUPPORT / "killed_tuner.py", tmp_path, str(rounds), "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["killed"] > rounds / 4, found
    assert found["noted"] > 40, found
    assert (found["lost"], found["twice"]) == (0, 0), found


# a measurer whose candidate hangs, in a process that is started by one that will be killed
PARENT = """
import sys
from functools import partial
from test_killed import Hanging, candidate
from ferrum_numba.tune.worker import Worker
if __name__ == "__main__":
    with Worker(partial(Hanging, sys.argv[1]), 600.0) as worker:
        worker.run(candidate(), None)
"""


class Hanging:
    """Says which process it is in, and hangs in C, as a driver's call does."""

    def __init__(self, path):
        self.path = path

    def open(self, kernel, problem, *_):
        pass

    def run(self, candidate, best_us):
        Path(self.path).write_text(str(os.getpid()))
        time.sleep(600)


def candidate():
    from toy_kernel import Config, Problem, Toy, make_binary

    from ferrum_numba.tune.worker import Candidate

    return Candidate(Toy(), Config(), Problem(2), make_binary())


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_the_measuring_process_ends_with_a_tuner_that_is_killed(tmp_path):
    said, script = tmp_path / "pid", tmp_path / "parent.py"
    script.write_text(PARENT)
    paths = os.pathsep.join([str(SUPPORT), str(Path(__file__).parent)])
    parent = subprocess.Popen(
        [sys.executable, script, said], env={**os.environ, "PYTHONPATH": paths}
    )
    try:
        assert wait_for(lambda: said.exists() and said.read_text())
        child = int(said.read_text())
        assert alive(child)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert wait_for(lambda: not alive(child), 10.0), "it would hold the GPU for ten minutes"


def test_a_process_without_a_parent_of_ours_goes_on():
    from ferrum_numba.compile.orphan import end_with_parent

    assert multiprocessing.parent_process() is None
    end_with_parent()
