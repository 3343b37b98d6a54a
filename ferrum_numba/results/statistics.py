"""Medians with exact intervals, and verdicts between two sets of samples. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Name = Literal["FASTER", "SLOWER", "SAME", "UNDECIDED"]


@dataclass(frozen=True)
class Verdict:
    """How the time of a compares with that of b.

    name:  FASTER or SLOWER: the interval of the ratio excludes 1, and the ratio differs from 1 by
           more than a tie; SAME: the whole interval is a tie; UNDECIDED: more samples are needed
    ratio: median of a over median of b; less than 1 where a is faster
    low:   with `high`, an interval that holds the true ratio
    """

    name: Name
    ratio: float
    low: float
    high: float


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
    a_us: Sequence[float], b_us: Sequence[float], tie: float = 0.01, confidence: float = 0.95
) -> Verdict:
    """Return the verdict on two sets of samples of the same work.

    Args:
        tie: the relative difference that does not matter
    """
    # each interval may miss with half of the risk, so that both hold with the whole confidence
    each = 1 - (1 - confidence) / 2
    a, a_low, a_high = median_interval(a_us, each)
    b, b_low, b_high = median_interval(b_us, each)
    ratio, low, high = a / b, a_low / b_high, a_high / b_low
    return Verdict(_name(ratio, low, high, tie), ratio, low, high)


def _name(ratio: float, low: float, high: float, tie: float) -> Name:
    least, most = 1 / (1 + tie), 1 + tie
    if least <= low and high <= most:
        return "SAME"
    if high < 1 and ratio < least:
        return "FASTER"
    if low > 1 and ratio > most:
        return "SLOWER"
    return "UNDECIDED"
