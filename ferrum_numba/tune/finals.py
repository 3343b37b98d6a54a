"""The final: the best of a problem timed in turn, round after round, until the rounds decide.

In a round every finalist is timed once, by a few replays. Rounds come in pairs: the second of a
pair has the order of the first reversed, so that what drifts, and what a finalist leaves behind for
the next, weighs on both sides of a comparison alike. Every pair has another order.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ferrum_numba.results.row import FINAL, MEASURED, Row
from ferrum_numba.results.statistics import ahead, compare_rounds
from ferrum_numba.tune.worker import Candidate, Measurer, Outcome

if TYPE_CHECKING:
    from ferrum_numba.measure import Policy

# the best of the heats that meet in a final, besides those that always do
FINALISTS = 8
# numbers of rounds after which the evidence is looked at: each look is a chance to be wrong
LOOKS = (6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# rounds after which it does not matter whether others are as fast as the leader or slower
ENOUGH_ROUNDS = 32


def never() -> bool:
    """Tell that there is time."""
    return False


def finalists(rows: Sequence[Row], always: Collection[tuple[str, ...]] = ()) -> list[int]:
    """Return the places of the rows that meet in a final, the fastest of the heats first.

    They are the best 8, the best of every kernel, because a table shows them, and the default and
    the incumbent, because what wins must have beaten those. Where there was a final, its best 8 and
    the best 8 of what is newer: a time of a final is longer than the same config's heat, and what
    was left out of it stays out.

    Args:
        rows:   of one problem in one regime
        always: keys of rows that are in the final wherever they were measured: of the default and
                of the incumbent
    """
    timed = [i for i, row in enumerate(rows) if row.status == MEASURED]
    timed.sort(key=lambda i: rows[i].us)
    last = max((rows[i].run for i in timed if rows[i].stage == FINAL), default="")
    finals = [i for i in timed if rows[i].stage == FINAL]
    heats = [i for i in timed if rows[i].stage != FINAL and not (finals and rows[i].run <= last)]
    best = [*finals[:FINALISTS], *heats[:FINALISTS]]
    leaders = {rows[i].kernel: i for i in reversed([*finals, *heats])}
    set_in = [i for i in timed if rows[i].key in always]
    return list(dict.fromkeys([*best, *leaders.values(), *set_in]))


def due(rows: Sequence[Row], places: Sequence[int]) -> bool:
    """Tell whether these rows must meet in a final: one of them is newer than their last one."""
    finals = [rows[i].run for i in places if rows[i].stage == FINAL]
    return len(places) > 1 and any(
        rows[i].stage != FINAL and (not finals or rows[i].run > max(finals)) for i in places
    )


def contest(
    measurer: Measurer,
    candidates: Sequence[Candidate],
    policy: Policy,
    deadline: Callable[[], bool] = never,
    name: str | None = None,
) -> list[Outcome]:
    """Time candidates round by round until each is decided against the leader.

    A candidate that is slower than the leader by more than a tie is timed no more. What is left
    when the rounds, or the time, are at an end is undecided; `results.compare_rows` says so.

    Args:
        policy:   how many replays a round times, and how many rounds there are at most
        deadline: tells whether the time is up; asked after each pair of rounds
        name:     of this contest; by default one that no other has

    Returns:
        an outcome for each candidate, in their order, with its rounds; nothing where the first
        pair of rounds failed
    """
    name = name or uuid.uuid4().hex[:12]
    taken: list[list[Outcome]] = [[] for _ in candidates]
    running = list(range(len(candidates)))
    for pair in range(policy.most_rounds // 2):
        # another order, the same when replayed; of two, one and its reverse are all there are
        if len(running) > 2:
            random.Random(pair).shuffle(running)
        for turn in (2 * pair, 2 * pair + 1):
            seen = measurer.round([candidates[i] for i in running], turn, policy.round_samples)
            if seen is None:
                return _outcomes(taken, name)
            for i, outcome in zip(running, seen, strict=True):
                taken[i].append(outcome)
        if 2 * (pair + 1) in LOOKS:
            running = _undecided(taken, running, policy.tie)
        if len(running) < 2 or deadline():
            break
    return _outcomes(taken, name)


def _undecided(taken: Sequence[Sequence[Outcome]], running: Sequence[int], tie: float) -> list[int]:
    """Return those that may still win; the leader alone where all others are decided."""
    rounds = {i: [one.us for one in taken[i]] for i in running}
    mhz = {i: [_mhz(one) for one in taken[i]] for i in running}
    first = running[ahead([rounds[i] for i in running])]
    verdicts = {
        i: compare_rounds(rounds[i], rounds[first], tie, a_mhz=mhz[i], b_mhz=mhz[first])
        for i in running
        if i != first
    }
    names = {verdict.name for verdict in verdicts.values()}
    open_ = any(verdict.may_be_faster(tie) for verdict in verdicts.values())
    # after so many rounds, who cannot be faster by more than a tie is no reason to go on
    if not open_ and (len(rounds[first]) >= ENOUGH_ROUNDS or names <= {"SAME", "SLOWER"}):
        return [first]
    return [i for i in running if i == first or verdicts[i].name != "SLOWER"]


def _outcomes(taken: Sequence[Sequence[Outcome]], name: str) -> list[Outcome]:
    # one of a pair tells of its order as much as of the candidate
    complete = [list(rounds[: len(rounds) // 2 * 2]) for rounds in taken]
    if not all(complete):
        return []
    return [_joined(rounds, name) for rounds in complete]


def _joined(rounds: Sequence[Outcome], name: str) -> Outcome:
    """Return the rounds of one candidate as one outcome."""
    samples = [us for one in rounds for us in one.us]
    held: list[bool] = [bool(one.extra.get("throttle")) for one in rounds for _ in one.us]
    return replace(
        rounds[-1],
        us=tuple(samples),
        rounds=tuple(one.us for one in rounds),
        contest=name,
        round_mhz=tuple(_mhz(one) for one in rounds),
        throttled=tuple(i for i, low in enumerate(held) if low),
        extra=_seen(rounds),
    )


def _mhz(outcome: Outcome) -> float | None:
    clocks: list[float | None] = outcome.extra.get("clock_mhz") or [None]
    return clocks[-1]


def _seen(rounds: Sequence[Outcome]) -> dict[str, Any]:
    """Return the board's state over all rounds: the last where there is one of each."""
    extra: dict[str, Any] = {}
    for one in rounds:
        extra |= {name: value for name, value in one.extra.items() if value is not None}
    clocks = [one.extra["clock_mhz"] for one in rounds if "clock_mhz" in one.extra]
    if clocks:
        extra["clock_mhz"] = [clocks[0][0], clocks[-1][-1]]
    if "throttle" in extra:
        extra["throttle"] = sorted({why for one in rounds for why in one.extra["throttle"]})
    if "busy_us" in extra:
        extra["busy_us"] = sum(one.extra["busy_us"] for one in rounds)
    return extra
