"""Exact intervals against brute force, and verdicts on known samples."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum_numba.results.statistics import compare, coverage, median_interval


@pytest.mark.parametrize("n", range(1, 11))
def test_coverage_counts_the_ways_samples_fall_about_the_median(n):
    sides = list(itertools.product((0, 1), repeat=n))
    for k in range(1, (n + 1) // 2 + 1):
        # the k-th smallest is below the median and the k-th largest above: k on each side
        enclosing = sum(k <= sum(side) <= n - k for side in sides)
        assert coverage(n, k) == pytest.approx(enclosing / 2**n)


# ranks of the 95 % interval, counted from 1: tables of the sign test
@pytest.mark.parametrize(
    ("n", "low", "high"),
    [(6, 1, 6), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18), (100, 40, 61)],
)
def test_ranks_of_the_interval(n, low, high):
    ranks = np.random.default_rng(n).permutation(np.arange(1, n + 1))
    assert median_interval(ranks) == ((n + 1) / 2, low, high)


@pytest.mark.parametrize("n", range(1, 6))
def test_few_samples_give_their_whole_range(n):
    assert median_interval(range(n)) == ((n - 1) / 2, 0, n - 1)


def test_more_confidence_gives_a_wider_interval():
    us = range(15)
    assert median_interval(us, 0.5)[1:] == (5, 9)
    assert median_interval(us, 0.99)[1:] == (2, 12)
    assert median_interval(us, 0.99999)[1:] == (0, 14)


def test_the_interval_holds_the_true_median_as_often_as_promised():
    draws = np.random.default_rng(0).lognormal(size=(2000, 15))
    held = [low <= 1 <= high for _, low, high in map(median_interval, draws)]
    # true coverage of ranks 4 and 12 of 15 is 0.9648; the bound is 4 standard deviations below
    assert np.mean(held) > 0.948


def test_no_sample_has_no_median():
    with pytest.raises(ValueError, match="a median needs one sample at least"):
        median_interval([])


def around(centre, spread=0.001, n=15):
    return [centre * (1 + spread * (i - n // 2) / (n // 2)) for i in range(n)]


@pytest.mark.parametrize(
    ("a", "b", "name"),
    [
        (around(9.0), around(10.0), "FASTER"),
        (around(10.0), around(9.0), "SLOWER"),
        (around(10.0), around(10.0), "SAME"),
        # a sure difference that does not matter
        (around(10.04), around(10.0), "SAME"),
        (around(10.0, 0.05), around(10.0, 0.05), "UNDECIDED"),
        # the medians differ, the samples do not say so
        (around(9.8, 0.1), around(10.0, 0.1), "UNDECIDED"),
        # more than a tie, but the interval begins within it
        (around(9.88, 0.008), around(10.0, 0.001), "FASTER"),
    ],
)
def test_verdicts(a, b, name):
    assert compare(a, b).name == name


def test_the_ratio_is_that_of_a_over_b():
    verdict = compare([8.0] * 15, [10.0] * 15)
    assert (verdict.ratio, verdict.low, verdict.high) == (0.8, 0.8, 0.8)


def test_a_wider_tie_makes_the_same_of_a_difference():
    assert compare(around(9.7), around(10.0), tie=0.05).name == "SAME"


OPPOSITE = {"FASTER": "SLOWER", "SLOWER": "FASTER", "SAME": "SAME", "UNDECIDED": "UNDECIDED"}
times = st.lists(st.floats(1, 1e4), min_size=1, max_size=20)


@given(times, times)
def test_swapping_the_sides_turns_the_verdict(a, b):
    forth, back = compare(a, b), compare(b, a)
    assert math.isclose(forth.ratio * back.ratio, 1)
    assert forth.low <= forth.ratio * (1 + 1e-12)
    assert forth.ratio <= forth.high * (1 + 1e-12)
    # on the very edge of a tie the rounding of a quotient decides
    edge = any(math.isclose(v, e) for v in (forth.low, forth.ratio, forth.high)
               for e in (1, 1.01, 1 / 1.01))  # fmt: skip
    assert edge or back.name == OPPOSITE[forth.name]
