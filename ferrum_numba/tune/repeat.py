"""How far apart the winners of repeated finals are: whether a tune comes out as it did before."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ferrum_numba.results import Row, compare_rows, winners
from ferrum_numba.results.winners import about, even_us

# a winner that changes by less than the first does not matter, by more than the second it does
APART = (0.01, 0.03)


@dataclass(frozen=True)
class Repeats:
    """What repeated finals of the same problems agree on.

    problems, finals: how many problems, and finals of each
    apart:            for each problem and two of its finals, how much slower one winner is than the
                      other; 0 where it is the same
    regrets:          for each problem and final, how much slower its winner is than the best of all
                      finals taken together
    """

    problems: int
    finals: int
    apart: tuple[float, ...]
    regrets: tuple[float, ...]

    def flips(self, beyond: float) -> int:
        """Return how many times two finals name winners that are further apart than this."""
        return sum(one > beyond for one in self.apart)

    def __str__(self) -> str:
        """Return both in a sentence each."""
        pairs = len(self.apart)
        flips = ", ".join(
            f"{self.flips(beyond)} ({self.flips(beyond) / max(pairs, 1):.1%}) by more than "
            f"{beyond:.0%}"
            for beyond in APART
        )
        mean = sum(self.regrets) / max(len(self.regrets), 1)
        return (
            f"{self.finals} finals of {self.problems} problems: of {pairs} pairs of winners differ "
            f"{flips}; regret {mean:.2%} on average, {max(self.regrets, default=0.0):.2%} at most"
        )


def repeats(runs: Sequence[Sequence[Row]]) -> Repeats:
    """Return what repeated tunes agree on, of the problems that all of them decided.

    Args:
        runs: rows of each tune
    """
    decided = [{about(found.row): found.row for found in winners(rows)} for rows in runs]
    shared = [key for key in decided[0] if all(key in one for one in decided)] if decided else []
    apart, regrets = [], []
    for key in shared:
        finals = [{row.key: row for row in rows if about(row) == key} for rows in runs]
        named = [one[key].key for one in decided]
        behind = {name: _behind(name, named[0], finals) for name in set(named)}
        best = min(behind.values())
        regrets += [math.expm1(behind[name] - best) for name in named]
        apart += [
            math.expm1(abs(behind[a] - behind[b])) for a, b in itertools.combinations(named, 2)
        ]
    return Repeats(len(shared), len(runs), tuple(apart), tuple(regrets))


def _behind(
    name: tuple[str, ...], other: tuple[str, ...], finals: Sequence[dict[tuple[str, ...], Row]]
) -> float:
    """Return the log of how much slower one row is than another, over all finals that have both."""
    logs = [_log_ratio(one[name], one[other]) for one in finals if {name, other} <= one.keys()]
    return sum(logs) / len(logs) if logs else math.inf


def _log_ratio(row: Row, other: Row) -> float:
    ratio = compare_rows(row, other).ratio if row is not other else 1.0
    return math.log(ratio or even_us(row) / even_us(other))
