"""What a cluster's worker holds from call to call, and when it lets go; no cluster needed."""

import time
from dataclasses import replace

import pytest
from toy_kernel import Config, Problem, Toy, make_binary

from ferrum_numba.errors import DeviceError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.tune import dask_worker
from ferrum_numba.tune.dask_worker import Session, call, leave
from ferrum_numba.tune.exclusive import exclusive
from ferrum_numba.tune.worker import Candidate, Outcome

GPU = replace(KNOWN["h200"], uuid="board-1")
CANDIDATE = Candidate(Toy(), Config(), Problem(2), make_binary())


class Counting:
    """Answers how often its process was asked."""

    def __init__(self):
        self.asked = 0

    def open(self, kernel, problem, *_):
        pass

    def run(self, candidate, best_us):
        self.asked += 1
        return Outcome("measured", us=(float(self.asked),))


@pytest.fixture(autouse=True)
def _own_locks(monkeypatch, tmp_path):
    monkeypatch.setenv("FERRUM_NUMBA_LOCK_DIR", str(tmp_path))
    yield
    leave(dask_worker._held.name)


def session(name):
    return Session(name, GPU, Counting, 30.0)


def measured(name):
    return call(session(name), "run", CANDIDATE, None).us


def free():
    """Tell whether somebody else could measure on the GPU."""
    try:
        with exclusive(GPU):
            return True
    except DeviceError:
        return False


def test_a_session_keeps_its_process_and_the_gpu_until_it_leaves():
    assert [measured("one") for _ in range(2)] == [(1.0,), (2.0,)]
    assert not free()
    leave("another")
    assert not free()
    leave("one")
    assert free()


def test_another_session_has_a_process_of_its_own():
    assert measured("one") == (1.0,)
    assert measured("two") == (1.0,)


def test_a_tuner_that_calls_no_more_loses_the_gpu(monkeypatch):
    monkeypatch.setattr(dask_worker, "IDLE_S", 0.3)
    assert measured("one") == (1.0,)
    deadline = time.monotonic() + 10.0
    while not free() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert free()
    # and has it again when it calls again
    assert measured("one") == (1.0,)


def test_a_gpu_that_is_measured_on_is_refused():
    with exclusive(GPU), pytest.raises(DeviceError, match="another process is measuring"):
        measured("one")
