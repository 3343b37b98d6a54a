"""Operands made ahead by another process: the same as those made in place, and gone afterwards."""

import os
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from toy_kernel import Misbehaving, Problem, Toy, make_binary

from ferrum_numba import whole
from ferrum_numba.kernels import PACKED, RAW
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.launch import HostOperands
from ferrum_numba.tune import prepared
from ferrum_numba.tune.prepared import Preparer, Stored, prepare
from ferrum_numba.tune.worker import Ahead, Candidate, Outcome, Worker

PROBLEM = W4A16Problem(3, 256, 256, 128, dtype="bf16")
KERNELS = (*RAW, *PACKED)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(prepared, "_room", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.uint8])
@pytest.mark.parametrize("shape", [(3, 5), (0, 4), ()])
def test_an_array_comes_back_from_its_file(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    found = Stored.keep(tmp_path / "x", array).load()
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(found, array)


def test_what_is_made_ahead_is_what_is_made_in_place(tmp_path):
    made = prepare(KERNELS, PROBLEM, tmp_path / "made")
    assert set(made) == {kernel.name for kernel in KERNELS}
    for kernel in KERNELS:
        here, there = HostOperands.make(kernel, PROBLEM), made[kernel.name].load()
        assert there.digests == here.digests
        np.testing.assert_array_equal(there.want, here.want)
        for name, array in here.arrays.items():
            assert there.arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(there.arrays[name], array)
    # four kernels read one packed weight
    assert len({made[kernel.name].arrays["packed"].path for kernel in PACKED}) == 1


def test_files_go_when_their_problem_is_done(folder):
    preparer, toy = Preparer(), Toy()
    for M in (1, 2, 3):
        preparer.expect([toy], Problem(M))
    first = preparer.take(toy, Problem(1), 60.0)
    assert first is not None
    np.testing.assert_array_equal(first.load().want, HostOperands.make(toy, Problem(1)).want)
    second = preparer.take(toy, Problem(3), 60.0)
    assert second is not None
    assert not os.path.exists(first.want.path)
    assert os.path.exists(second.want.path)
    preparer.close()
    assert list(folder.iterdir()) == []


def test_no_more_is_begun_where_much_waits(monkeypatch):
    preparer, toy = Preparer(), Toy()
    monkeypatch.setattr(prepared, "MOST_BYTES", 0)
    # the one in use does not count, nor does what is no file yet
    for M in (1, 2):
        preparer.expect([toy], Problem(M))
        preparer.wait(Problem(M), 60.0)
    preparer.expect([toy], Problem(3))
    assert preparer.take(toy, Problem(3), 60.0) is None
    assert preparer.take(toy, Problem(2), 60.0) is not None
    # now the second is in use
    preparer.expect([toy], Problem(3))
    assert preparer.take(toy, Problem(3), 60.0) is not None
    preparer.close()


def test_what_nobody_expected_or_what_fails_is_not_there():
    preparer, toy = Preparer(), Toy()
    assert preparer.take(toy, Problem(1), 60.0) is None
    preparer.expect([toy], "no problem")
    assert preparer.take(toy, "no problem", 60.0) is None
    preparer.close()


LEFT_BEHIND = """
import time
from pathlib import Path
from toy_kernel import Problem, Toy
from ferrum_numba.tune import prepared

if __name__ == "__main__":
    prepared._room = lambda: Path({folder!r})
    preparer = prepared.Preparer()
    preparer.expect([Toy()], Problem(1))
    preparer.take(Toy(), Problem(1), 60.0)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(folder, tmp_path_factory):
    script = tmp_path_factory.mktemp("left") / "left_behind.py"
    script.write_text(LEFT_BEHIND.format(folder=str(folder)))
    environment = {**os.environ, "PYTHONPATH": "tests/support"}
    killed = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment)
    assert killed.stdout.readline() == b"ready\n"
    killed.kill()
    killed.communicate()
    (left,) = folder.iterdir()
    # its processes end with it, and with them the last hold on the lock
    deadline = time.monotonic() + 30
    while left.exists() and time.monotonic() < deadline:
        whole.sweep(folder)
        time.sleep(0.1)
    assert not left.exists()


def test_what_is_in_use_is_left_alone(folder):
    preparer = Preparer()
    preparer.expect([Toy()], Problem(1))
    whole.sweep(folder)
    assert preparer.take(Toy(), Problem(1), 60.0) is not None
    preparer.close()


class Opened(Misbehaving):
    """Says what it was opened with."""

    def open(self, kernel, problem, prepared=None):
        self.given = prepared

    def run(self, candidate, best_us):
        return Outcome("measured", us=(1.0 if self.given is None else 2.0,))


def test_a_worker_is_given_what_it_expects():
    with Worker(Opened) as worker:
        assert isinstance(worker, Ahead)
        worker.expect([Toy()], Problem(2))
        worker.ready(Problem(2))
        worker.ready(Problem(3))
        expected = Candidate(Toy(), Toy.space[0], Problem(2), make_binary())
        unexpected = Candidate(Toy(), Toy.space[0], Problem(3), make_binary())
        assert worker.run(expected, None).us == (2.0,)
        assert worker.run(unexpected, None).us == (1.0,)
