"""The heats: who is measured first, who is left, when it is enough."""

import math
from types import SimpleNamespace

from ferrum_numba.tune.budget import NEVER, Deadline
from ferrum_numba.tune.heats import Entry, Heats
from ferrum_numba.tune.searchers import Exhaustive


class Some:
    """A searcher for all of its configs that may be left early."""

    def __init__(self, configs):
        self.left = list(configs)

    def ask(self):
        return list(self.left)

    def tell(self, config, us):
        if config in self.left:
            self.left.remove(config)


class Searched:
    """Heats of kernels by name, the first of their times the default's, and what was measured."""

    def __init__(self, times, searcher=Some, passed=lambda: False, roof_us=0.0):
        self.asked, self.best, self.times = [], [], times
        self.entries = [self.entry(name, range(len(us)), searcher) for name, us in times.items()]
        Heats("problem", self.entries, self.measure, passed, roof_us).run()

    def entry(self, name, configs, searcher):
        expected_us = self.times[name][0] or math.inf
        kernel = SimpleNamespace(name=name)
        return Entry(kernel, configs, configs, [0], searcher(configs), expected_us)

    def measure(self, kernel, config, problem, best_us):
        self.asked.append((kernel.name, config))
        self.best.append(best_us)
        us = self.times[kernel.name][config]
        return SimpleNamespace(status="measured" if us else "wrong", us=us or math.nan)

    def of(self, name):
        return [config for kernel, config in self.asked if kernel == name]


def test_every_kernels_default_comes_before_anything_else():
    found = Searched({"slow": [9.0, 8.0], "fast": [4.0, 3.0, 5.0]})
    assert found.asked[:2] == [("fast", 0), ("slow", 0)]
    # the design that is ahead is searched first, and each is compared with itself alone
    assert [name for name, _ in found.asked[2:4]] == ["fast", "fast"]
    assert found.best[:4] == [None, None, 4.0, 3.0]


def test_a_design_that_is_far_behind_is_left_with_its_default():
    found = Searched({"fast": [1.0, 1.1], "behind": [1.6] * 6, "hopeless": [3.5] * 6})
    assert len(found.of("hopeless")) == 1
    assert len(found.of("behind")) == 3


def test_an_exhaustive_search_leaves_nobody():
    found = Searched({"fast": [1.0, 1.1], "hopeless": [30.5] * 6}, Exhaustive)
    assert len(found.of("hopeless")) == 6


def test_the_defaults_are_measured_when_the_time_is_up_and_nothing_else():
    found = Searched({"a": [2.0] * 5, "b": [3.0] * 5}, Exhaustive, passed=lambda: True)
    assert found.asked == [("a", 0), ("b", 0)]


def test_a_time_at_the_roof_is_enough():
    found = Searched({"a": [2.0, 1.05, 1.0, 0.9], "b": [3.0] * 5}, Exhaustive, roof_us=1.1)
    assert found.asked == [("a", 0), ("b", 0), ("a", 1)]


def test_what_fails_does_not_lead():
    found = Searched({"a": [None, 2.0], "b": [1.0, 3.0]}, Exhaustive)
    assert [entry.best_us for entry in found.entries] == [2.0, 1.0]


def test_a_deadline_is_shared_and_none_never_comes():
    assert not NEVER.passed()
    assert math.isinf(NEVER.share(0.1).at)
    assert math.isinf(Deadline.after(None).left_s)
    whole = Deadline.after(100.0)
    assert 9.0 < whole.share(0.1).left_s <= 10.0
    assert not whole.passed()
    assert Deadline.after(0.0).passed()
    assert Deadline.after(-5.0).left_s == 0.0
