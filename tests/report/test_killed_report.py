"""A report that is killed at any time, by a signal that nobody can catch, is a whole one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("rounds", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_a_report_is_whole_whenever_it_is_killed(tmp_path, rounds):
    command = [sys.executable, TESTS / "support/killed_report.py", tmp_path, str(rounds), "7"]
    paths = os.pathsep.join(str(TESTS / name) for name in ("support", "report"))
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # what the last report prints comes first
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["broken"] == []
    assert found["killed"] > rounds / 2, found
    # some were stopped before anything was measured, others with some of it
    assert len({problems for problems in found["seen"] if problems is not None}) >= 2, found
    # each file once, and the pictures that are there no more
    assert found["steps"] >= found["files"] - 3, found
    assert (found["status"], found["left"]) == (0, [])
