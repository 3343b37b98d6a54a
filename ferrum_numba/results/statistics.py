"""Medians with exact intervals, and verdicts: of paired rounds, or of two sets of samples.

NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Literal

import numpy as np

from ferrum_numba.shown import Part, Shown

Rounds = Sequence[Sequence[float]]
Mhz = Sequence[float | None]
Name = Literal["FASTER", "SLOWER", "SAME", "UNDECIDED"]

# relative difference that does not matter
TIE = 0.01
# rounds before which nothing is decided
LEAST_ROUNDS = 4
# observations from which on a fifth on either side does not count
TRIMMED = 8
# as many observations are joined by twos: from 16 to 31 are left
MOST_OBSERVATIONS = 32
# spread of the log-ratio of one observation. The recorded finals are two observations each; with
# this, the interval of the first holds the second as often as it should, at every level
SPREAD = 0.012
# of each comparison of a final, so that all of them together are wrong in less than 1 % of finals
DECIDED = 0.99995
MOST_LOG = 100.0
# a clock is read to 15 MHz of 1980
CLOCK_MOVED = 0.01


@dataclass(frozen=True)
class Verdict(Shown):
    """How the time of a compares with that of b.

    name:  FASTER or SLOWER: the interval of the ratio excludes 1, and the ratio differs from 1 by
           more than a tie; SAME: the whole interval is a tie; UNDECIDED: more samples are needed
    ratio: time of a over that of b; less than 1 where a is faster
    low:   with `high`, an interval that holds the true ratio; 0 and inf where nothing bounds it
    """

    name: Name
    ratio: float
    low: float
    high: float

    def may_be_faster(self, tie: float = TIE) -> bool:
        """Return whether the interval holds ratios at which a is faster by more than a tie."""
        return self.low * (1 + tie) < 1

    def parts(self) -> Iterable[Part]:
        """Return it in a sentence."""
        from ferrum_numba.results.display import of_verdict

        return [of_verdict(self)]


def coverage(n: int, k: int) -> float:
    """Return how surely the k-th smallest and k-th largest of n samples enclose the median.

    Exact for any distribution: the number of samples below the median is binomial(n, 1/2).
    """
    return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / (1 << n)


def median_interval(us: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the median and the ends of its interval: two of the samples.

    Args:
        us:         samples in any order; with fewer than 6 no two of them enclose the median with
                    95 %, and the interval is the whole range
        confidence: the least probability that the interval holds the true median

    Returns:
        (median, low, high)
    """
    ordered = np.sort(np.asarray(us, np.float64))
    n = len(ordered)
    if n == 0:
        raise ValueError("a median needs one sample at least")
    enough = [k for k in range(1, (n + 1) // 2 + 1) if coverage(n, k) >= confidence]
    k = max(enough, default=1)
    return float(np.median(ordered)), float(ordered[k - 1]), float(ordered[n - k])


def compare(
    a_us: Sequence[float], b_us: Sequence[float], tie: float = TIE, confidence: float = 0.95
) -> Verdict:
    """Return the verdict on two sets of independent samples of the same work.

    Samples of one replay after the other are not independent: see `compare_rounds`. Of so few that
    no two of them enclose the median, and of what is no time, nothing is said.

    Args:
        tie: the relative difference that does not matter
    """
    if not (_are_times(a_us) and _are_times(b_us)):
        return undecided(math.nan)
    # each interval may miss with half of the risk, so that both hold with the whole confidence
    each = 1 - (1 - confidence) / 2
    a, a_low, a_high = median_interval(a_us, each)
    b, b_low, b_high = median_interval(b_us, each)
    if coverage(min(len(a_us), len(b_us)), 1) < each:
        return undecided(a / b)
    ratio, low, high = a / b, a_low / b_high, a_high / b_low
    return Verdict(_name(ratio, low, high, tie), ratio, low, high)


def undecided(ratio: float) -> Verdict:
    """Return the verdict where nothing bounds the true ratio."""
    return Verdict("UNDECIDED", ratio, 0.0, math.inf)


def compare_rounds(
    a: Rounds,
    b: Rounds,
    tie: float = TIE,
    confidence: float = DECIDED,
    a_mhz: Mhz = (),
    b_mhz: Mhz = (),
) -> Verdict:
    """Return the verdict on two that were timed in the same rounds of one final.

    A round says one thing: the log of the ratio of both medians. Two rounds in a row, of which the
    second had the order reversed, are one observation. The interval is that of a trimmed mean of
    observations (Tukey and McLaughlin): of eight or more, a fifth on either side does not count, so
    that a step of the clocks in the midst of a round does not either. Its spread is that which was
    seen, and that of one observation more as finals usually have it (`SPREAD`): a few that agree by
    chance prove little. `docs/tuning.md#evidence` has how often it holds. Of what is no
    time, nothing is said.

    Args:
        a, b:         samples in us, a list of them for each round; where one has more rounds than
                      the other, those that both have are compared
        tie:          the relative difference that does not matter
        confidence:   the probability that the interval holds the true ratio; by default what
                      leaves 8 equals undecided though a final looks at them again and again
        a_mhz, b_mhz: the SM clock in each round. Where it moved, what is faster must be so in
                      cycles as well
    """
    if not (_are_times(_flat(a)) and _are_times(_flat(b))):
        return undecided(math.nan)
    # one round alone tells of its order as much as of the two
    count = min(len(a), len(b)) // 2 * 2
    logs = np.array([math.log(median(a[i]) / median(b[i])) for i in range(count)])
    if not count:
        return undecided(median(_flat(a)) / median(_flat(b)))
    centre, half = _trimmed(observations(logs), confidence)
    # of two observations at a high confidence the interval is wider than a float
    half = min(half, MOST_LOG)
    ratio, low, high = math.exp(centre), math.exp(centre - half), math.exp(centre + half)
    name = _name(ratio, low, high, tie) if count >= LEAST_ROUNDS else "UNDECIDED"
    if name in ("FASTER", "SLOWER"):
        cycles = _in_cycles(logs, a_mhz[:count], b_mhz[:count])
        if cycles is not None and _name(cycles, cycles, cycles, tie) != name:
            name = "UNDECIDED"
    return Verdict(name, ratio, low, high)


def ahead(every: Sequence[Rounds]) -> int:
    """Return the place of the one that is ahead of the others, round by round."""
    first = 0
    for i in range(1, len(every)):
        if compare_rounds(every[i], every[first]).ratio < 1:
            first = i
    return first


def observations(logs: np.ndarray) -> np.ndarray:
    """Return what counts as one observation each: means over runs of rounds, two at the least.

    Of many rounds the runs get longer: what lasts over some of them is then one observation too.
    """
    found: np.ndarray = logs.reshape(-1, 2).mean(axis=1)
    while len(found) >= MOST_OBSERVATIONS:
        odd = found[len(found) // 2 * 2 :]
        found = np.concatenate([found[: len(found) // 2 * 2].reshape(-1, 2).mean(axis=1), odd])
    return found


def _trimmed(found: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the trimmed mean of observations, and half of the width of its interval."""
    ordered = np.sort(found)
    # of fewer, each that is left out costs more than a wild one does
    cut = len(ordered) // 5 if len(ordered) >= TRIMMED else 0
    kept = ordered[cut : len(ordered) - cut]
    off = np.clip(found, kept[0], kept[-1])
    off -= off.mean()
    squares = float(off @ off) + SPREAD**2
    freedom = max(len(kept) - 1, 1)
    error = math.sqrt(squares * _lasting(off) / (len(kept) * freedom))
    return float(kept.mean()), t_quantile(freedom, confidence) * error


def _lasting(off: np.ndarray) -> float:
    """Return how many observations in a row say as much as one, by how alike neighbours are.

    Args:
        off: observations less their mean, in the order in which they were taken
    """
    if len(off) < 4:
        return 1.0
    squares = float(off @ off)
    # neighbours out of few seem less alike than they are; what is small beside the usual spread may
    # be as alike as it likes
    alike = (float(off[1:] @ off[:-1]) + squares / len(off)) / (squares + SPREAD**2)
    alike = min(max(alike, 0.0), 0.9)
    return (1 + alike) / (1 - alike)


def _in_cycles(logs: np.ndarray, a_mhz: Mhz, b_mhz: Mhz) -> float | None:
    """Return the ratio of cycles; None where the clock stood still, or is not known throughout."""
    known = [clock for clock in (*a_mhz, *b_mhz) if clock]
    if len(known) < 2 * len(logs) or max(known) <= (1 + CLOCK_MOVED) * min(known):
        return None
    cycles = logs + np.log(np.array(a_mhz, float) / np.array(b_mhz, float))
    return math.exp(_trimmed(observations(cycles), 0.5)[0])


def _are_times(samples: Sequence[float]) -> bool:
    """Return whether there are samples, and each is a time: above 0 and finite, no nan."""
    return len(samples) > 0 and all(0 < us < math.inf for us in samples)


def _flat(rounds: Rounds) -> list[float]:
    return [us for one in rounds for us in one]


@cache
def t_quantile(freedom: int, confidence: float) -> float:
    """Return what Student's t of so many degrees of freedom stays within, on both sides."""
    low, high = 0.0, 1.0
    while t_within(high, freedom) < confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < confidence else (low, middle)
    return high


def t_within(t: float, freedom: int) -> float:
    """Return the probability that Student's t lies in -t to t.

    A finite sum for whole degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    square, odd = math.cos(angle) ** 2, freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= square * k / (k + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def _name(ratio: float, low: float, high: float, tie: float) -> Name:
    least, most = 1 / (1 + tie), 1 + tie
    if least <= low and high <= most:
        return "SAME"
    if high < 1 and ratio < least:
        return "FASTER"
    if low > 1 and ratio > most:
        return "SLOWER"
    return "UNDECIDED"
