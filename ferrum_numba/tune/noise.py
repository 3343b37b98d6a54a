"""Finals on a board of known noise: how often the tuner's own rules name a wrong winner.

Nothing here decides: a final is `finals.contest`, and who won it `results.winners`, as in a tune.
The board alone is made up, and what it measures is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import numpy as np

from ferrum_numba.measure import Policy
from ferrum_numba.results import Row, compare_rows, winners
from ferrum_numba.results.row import FINAL
from ferrum_numba.results.statistics import compare_rounds
from ferrum_numba.tune.finals import contest
from ferrum_numba.tune.worker import Candidate, Outcome

# a winner that is slower than the best by more than this is wrong
WRONG = 0.01
# of the intervals whose coverage is counted
LEVEL = 0.95
CLOCK_MHZ = 1980.0
# of turns, one a candidate and round: how many begin a throttle, and how many of those end it
THROTTLES, RECOVERS = 0.02, 0.05


@dataclass(frozen=True)
class Noise:
    """What a board adds to true times, as logs of factors.

    white:    spread of a sample
    walk:     spread of the step that the board takes between two turns
    trend:    what it gets slower by from turn to turn
    throttle: what all times are longer by while it throttles
    tails:    share of samples that are interrupted, for as long as they take or longer
    residual: spread of what a candidate has for a whole round
    lasting:  share of the residual that stays to the next round
    after:    spread of what a candidate leaves behind for the next in turn
    """

    name: str
    white: float = 0.003
    walk: float = 0.0
    trend: float = 0.0
    throttle: float = 0.0
    tails: float = 0.0
    residual: float = 0.0
    lasting: float = 0.0
    after: float = 0.0


NOISES = (
    Noise("white, 0.3 %"),
    Noise("white, 1 %", white=0.01),
    Noise("drift", walk=0.002, trend=0.0005),
    Noise("throttle steps of 8 %", throttle=0.08),
    Noise("throttle steps of 15 %", throttle=0.15),
    Noise("heavy tails", tails=0.1),
    Noise("what ran before, 1 %", after=0.01),
    Noise("round residuals of 1.7 %", residual=0.017),
    Noise("round residuals of 1.7 %, lasting", residual=0.017, lasting=0.5),
    Noise("round residuals of 4 %", residual=0.04),
)


class Board:
    """A measurer whose times are known, but for the noise; a candidate's config is its place."""

    def __init__(self, true_us: Sequence[float], noise: Noise, seed: int) -> None:
        """Set the true times and how they are disturbed."""
        self._true, self._noise = np.log(true_us), noise
        self._random = np.random.default_rng(seed)
        count = len(true_us)
        self._left = self._random.normal(0, noise.after, count) if noise.after else np.zeros(count)
        self._state, self._throttled, self._before = 0.0, False, 0
        self._residual = self._random.normal(0, noise.residual, count)

    def run(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """Refuse: a heat is none of this board's."""
        raise NotImplementedError

    def round(
        self, candidates: Sequence[Candidate], turn: int, samples: int
    ) -> list[Outcome] | None:
        """Return what the board measures of each candidate."""
        noise, places = self._noise, [cast(int, one.config) for one in candidates]
        fresh = self._random.normal(0, noise.residual, len(self._residual))
        kept = noise.lasting
        self._residual = kept * self._residual + np.sqrt(1 - kept**2) * fresh
        order = places if turn % 2 == 0 else places[::-1]
        taken = [self._turn(place, samples) for place in order]
        return taken if turn % 2 == 0 else taken[::-1]

    def _turn(self, place: int, samples: int) -> Outcome:
        noise, random = self._noise, self._random
        self._state += noise.trend + random.normal(0, noise.walk)
        if noise.throttle:
            ends = RECOVERS if self._throttled else THROTTLES
            self._throttled ^= random.random() < ends
        logs = self._true[place] + self._state + self._residual[place] + self._left[self._before]
        logs = logs + self._throttled * np.log1p(noise.throttle)
        logs = logs + random.normal(0, noise.white, samples)
        if noise.tails:
            logs = logs + (random.random(samples) < noise.tails) * np.log1p(
                random.pareto(1.5, samples)
            )
        self._before = place
        clock_mhz = CLOCK_MHZ / (1 + self._throttled * noise.throttle)
        throttle = ["power cap"] if self._throttled else []
        extra = {"clock_mhz": [clock_mhz, clock_mhz], "throttle": throttle}
        return Outcome("measured", us=tuple(np.exp(logs).tolist()), extra=extra)


def final(
    true_us: Sequence[float], noise: Noise, seed: int, policy: Policy | None = None
) -> list[Row]:
    """Hold a final on such a board; return a row for each candidate."""
    board = Board(true_us, noise, seed)
    candidates = [_candidate(place) for place in range(len(true_us))]
    outcomes = contest(board, candidates, policy or Policy(), name="synthetic")
    return [_row(place, outcome) for place, outcome in enumerate(outcomes)]


def _candidate(place: int) -> Candidate:
    unknown = cast(Any, None)
    return Candidate(unknown, place, unknown, unknown)


def _row(place: int, outcome: Outcome) -> Row:
    each = [median(one) for one in outcome.rounds]
    # as many registers for all: a tie must not be broken by what is known to be the best
    return Row(
        "synthetic", "synthetic", {}, {"place": place}, us=median(each), ok=True,
        samples=outcome.us, stage=FINAL, rounds=outcome.rounds, contest=outcome.contest,
        round_mhz=outcome.round_mhz, throttled=outcome.throttled,
    )  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """What came of many finals on boards of one noise, as shares of them.

    wrong:     the winner is slower than the best by more than 1 %
    falsely:   of candidates that are all equal, one was called slower than the winner
    undecided: something may be faster than the winner by more than a tie
    held:      the interval of 95 % of two candidates holds their true ratio
    rounds:    rounds of the winner, on average
    """

    wrong: float
    falsely: float
    undecided: float
    held: float
    rounds: float


def figures(
    noise: Noise, fields: Sequence[Sequence[float]], policy: Policy | None = None
) -> Figures:
    """Hold a final for each field of true times; the seed is the field's place."""
    told = [
        _told(final(true_us, noise, seed, policy), true_us) for seed, true_us in enumerate(fields)
    ]
    return Figures(*np.mean(told, axis=0).tolist())


def _told(rows: Sequence[Row], true_us: Sequence[float]) -> tuple[float, ...]:
    (winner,) = winners(rows)
    wrong = true_us[winner.row.config["place"]] > (1 + WRONG) * min(true_us)
    names = {compare_rows(row, winner.row).name for row in rows if row is not winner.row}
    falsely = max(true_us) == min(true_us) and bool(names & {"SLOWER", "FASTER"})
    # of these two nothing is known beforehand; the winner looks better than it is
    pair = compare_rounds(rows[0].rounds, rows[1].rounds, confidence=LEVEL)
    held = pair.low <= true_us[0] / true_us[1] <= pair.high
    return wrong, falsely, bool(winner.undecided), held, len(winner.row.rounds)


def equals(count: int, finals: int) -> list[list[float]]:
    """Return fields of so many candidates that are all alike."""
    return [[10.0] * count for _ in range(finals)]


def rivals(count: int, finals: int, spread: float = 0.04, seed: int = 0) -> list[list[float]]:
    """Return fields whose candidates are behind the best by some per cent, few or many."""
    random = np.random.default_rng(seed)
    behind = random.exponential(spread, (finals, count))
    behind[:, 0] = 0.0
    return [row.tolist() for row in 10.0 * np.exp(random.permuted(behind, axis=1))]
