"""A against A, on a measurer of our own."""

import random

import pytest

from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import KERNELS
from ferrum_numba.measure import Policy
from ferrum_numba.perf import compare_aa
from ferrum_numba.perf.compare_aa import PROBLEMS, pairs, told
from ferrum_numba.tune.worker import Outcome


@pytest.fixture(autouse=True)
def _nothing_compiled(monkeypatch):
    monkeypatch.setattr(compare_aa, "build", lambda *_: None)


class Noisy:
    """Every round takes 10 us, give or take; of one kernel as much more as it is told."""

    def __init__(self, more=1.0):
        self.more, self.random, self.opened = more, random.Random(0), []

    def open(self, kernel, problem):
        self.opened.append(kernel.name)

    def round(self, candidates, turn, samples):
        return [
            Outcome("measured", us=(self.random.gauss(10, 0.02) * self._factor(one),) * samples)
            for one in candidates
        ]

    def _factor(self, candidate):
        return self.more if candidate.kernel.name.endswith("_again") else 1.0


def taken(measurer, how, count=16):
    return list(pairs(measurer, KERNELS, KNOWN["h200"], Policy(), count, how))


def test_a_program_is_the_same_as_itself():
    measurer = Noisy()
    found = taken(measurer, "together")
    assert len(found) == 16
    assert len(measurer.opened) == len(PROBLEMS)
    assert {one.verdict.name for one in found} == {"SAME"}
    assert told(found, "together").startswith("together: 16 of 16 SAME (100.0%)")


def test_operands_of_its_own_may_make_a_difference():
    measurer = Noisy(more=1.05)
    found = taken(measurer, "apart", 9)
    assert len(found) == 9
    assert len(measurer.opened) == 2 * len(PROBLEMS)
    text = told(found, "apart")
    assert "0 of 9 SAME" in text
    assert text.count("SLOWER") == 9
