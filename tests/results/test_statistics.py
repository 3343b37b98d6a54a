"""Exact intervals against brute force, verdicts on known samples and rounds, recorded finals."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum_numba import results
from ferrum_numba.perf.readme_table import RESULTS
from ferrum_numba.results.statistics import (
    compare,
    compare_rounds,
    coverage,
    median_interval,
    observations,
    t_quantile,
    t_within,
)
from ferrum_numba.results.winners import about, rounds_of


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


@pytest.mark.parametrize("us", [math.nan, math.inf, 0.0, -1.0])
def test_of_what_is_no_time_nothing_is_said(us):
    """One such sample of many would not move a median; the interval must not decide either."""
    good, bad = [1.0] * 16, [1.0] * 15 + [us]
    for a, b in ((good, bad), (bad, good)):
        for found in (compare(a, b), compare_rounds([[one] for one in a], [[one] for one in b])):
            assert found.name == "UNDECIDED"
            assert found.may_be_faster()


def test_of_no_samples_nothing_is_said():
    for found in (compare([], [1.0]), compare_rounds([], [[1.0]] * 8)):
        assert (found.name, found.low, found.high) == ("UNDECIDED", 0.0, math.inf)


def test_of_one_sample_nothing_is_said():
    for a, b in ([1.0], [1.0] * 15), ([1.0] * 15, [2.0]), ([1.0] * 6, [2.0] * 15):
        verdict = compare(a, b)
        assert (verdict.name, verdict.low, verdict.high) == ("UNDECIDED", 0.0, math.inf)
    assert compare([1.0] * 7, [1.0] * 15).name == "SAME"


# rounds


def rounds(centre, count=48, spread=0.0, seed=0):
    logs = np.random.default_rng(seed).normal(0, spread, (count, 3))
    return (centre * np.exp(logs)).tolist()


@pytest.mark.parametrize(
    ("a", "b", "name"),
    [
        (rounds(9.0), rounds(10.0), "FASTER"),
        (rounds(10.0), rounds(9.0), "SLOWER"),
        (rounds(10.0), rounds(10.0), "SAME"),
        (rounds(10.04), rounds(10.0), "SAME"),
        (rounds(10.3, spread=0.01), rounds(10.0, spread=0.01, seed=1), "SLOWER"),
        (rounds(10.0, spread=0.1), rounds(10.0, spread=0.1, seed=1), "UNDECIDED"),
        (rounds(10.3, 8), rounds(10.0, 8), "UNDECIDED"),
        (rounds(30.0, 6), rounds(10.0, 6), "SLOWER"),
    ],
)
def test_verdicts_of_rounds(a, b, name):
    verdict = compare_rounds(a, b)
    assert verdict.name == name
    assert verdict.low <= verdict.ratio <= verdict.high
    back = compare_rounds(b, a)
    assert back.name == OPPOSITE[name]
    assert math.isclose(back.low * verdict.high, 1)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_rounds_decide_nothing(count):
    verdict = compare_rounds(rounds(10.0, max(count, 1)), rounds(90.0, count or 9), confidence=0.5)
    assert verdict.name == "UNDECIDED"
    assert verdict.ratio == pytest.approx(1 / 9)


def test_rounds_that_only_one_has_do_not_count():
    a = rounds(9.0, 48)
    assert compare_rounds(a, [*rounds(10.0, 48), [1.0]] + [[1.0]] * 20) == compare_rounds(
        a, rounds(10.0, 48)
    )


def test_what_both_have_in_a_round_does_not_count():
    clocks = np.exp(np.random.default_rng(0).normal(0, 0.5, (48, 1)))
    a, b = (clocks * rounds(centre, spread=0.002, seed=7 + centre) for centre in (9, 10))
    assert compare_rounds(a, b).name == "FASTER"
    assert compare(a.ravel(), b.ravel()).name == "UNDECIDED"


def test_the_order_within_a_pair_of_rounds_does_not_count():
    # whatever comes second takes 5 % longer
    a = [[10.0], [10.5]] * 24
    b = [[10.5], [10.0]] * 24
    assert compare_rounds(a, b).name == "SAME"


def test_a_few_wild_rounds_do_not_count():
    wild = rounds(10.0)
    for i in (3, 17, 30, 41):
        wild[i] = [25.0] * 3
    verdict = compare_rounds(wild, rounds(10.0))
    assert (verdict.name, verdict.ratio) == ("SAME", 1.0)


def test_a_gap_must_hold_in_cycles_where_clocks_moved():
    a, b = rounds(9.0), rounds(10.0)
    moved = {"a_mhz": [1980.0] * 48, "b_mhz": [1782.0] * 48}
    assert compare_rounds(a, b, **moved).name == "UNDECIDED"
    # both at the same clock, wherever it went
    together = [1980.0, 1500.0] * 24
    assert compare_rounds(a, b, a_mhz=together, b_mhz=together).name == "FASTER"
    # of rounds whose clock was not read, nothing of the kind is known
    unknown = {**moved, "b_mhz": [None] * 48}
    assert compare_rounds(a, b, **unknown).name == "FASTER"


def test_what_lasts_counts_less():
    def verdict(pattern):
        a = [[10.0 * factor] for factor in np.repeat(pattern, 2)]
        return compare_rounds(a, [[10.0]] * len(a))

    quick, slow = (verdict(pattern) for pattern in ([1.02, 0.98] * 12, [1.02] * 12 + [0.98] * 12))
    assert quick.high < slow.high


@pytest.mark.parametrize(
    ("count", "left"), [(2, 1), (30, 15), (62, 31), (64, 16), (66, 17), (126, 16), (256, 16)]
)
def test_of_many_rounds_observations_get_longer(count, left):
    logs = np.random.default_rng(count).normal(size=count)
    found = observations(logs)
    assert len(found) == left
    if count in (2, 30, 62, 64, 256):
        assert found.mean() == pytest.approx(logs.mean())


# tables of Student's t
@pytest.mark.parametrize(
    ("freedom", "confidence", "t"),
    [
        (1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (5, 0.99, 4.032),
        (10, 0.999, 4.587), (30, 0.95, 2.042), (1, 0.5, 1.0), (120, 0.95, 1.980),
    ],
)  # fmt: skip
def test_quantiles_of_t(freedom, confidence, t):
    assert t_quantile(freedom, confidence) == pytest.approx(t, abs=6e-4)
    assert t_within(t_quantile(freedom, confidence), freedom) == pytest.approx(confidence)


@pytest.fixture(scope="module")
def recorded():
    """Return the rounds of every pair that met in a recorded final."""
    finals = {}
    for row in results.load(RESULTS).rows:
        name, taken = rounds_of(row)
        if taken and row.status == "measured":
            finals.setdefault((name, about(row)), []).append(taken)
    return [pair for every in finals.values() for pair in itertools.combinations(every, 2)]


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_the_interval_of_one_half_holds_the_other_in_recorded_finals(recorded, level):
    assert len(recorded) >= 647
    held = []
    for a, b in recorded:
        verdict = compare_rounds(a[:2], b[:2], confidence=level)
        held.append(verdict.low <= compare_rounds(a[2:], b[2:]).ratio <= verdict.high)
    assert np.mean(held) >= level


def test_recorded_halves_are_not_independent_samples(recorded):
    """Show what the samples were taken for: the interval of independent ones misses too often."""
    held = []
    # finals of four long rounds, which were taken for so many samples then
    for a, b in (pair for pair in recorded if {len(one) for one in pair} == {4}):
        first = compare(np.ravel(a[:2]), np.ravel(b[:2]))
        second = np.median(a[2:]) / np.median(b[2:])
        held.append(first.low <= second <= first.high)
    assert np.mean(held) < 0.8
