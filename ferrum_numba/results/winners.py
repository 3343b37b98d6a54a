"""Who won: the one rule, for dispatch, report, tables and the command line alike.

A row counts if it was measured in full, is correct, is of a kernel of this house, and nothing says
not to trust it. Of rows that count, those of a final come before any other. Within one final the
one that is ahead round by round wins, or of those that are its equals the one with the fewest
registers, then the least shared memory; between finals, and between rows of none, the faster.

Boards of one model differ by some per cent. Rows whose board was compared with others by a
yardstick (`board_factor`) compare with each other, their times divided by it. All others compare
with rows of their own board alone: the board of the newest final decides the problem, and no other
board's row wins it, however fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ferrum_numba.results.row import FINAL, MEASURED, Row, as_text, problem_key
from ferrum_numba.results.statistics import (
    TIE,
    Rounds,
    Verdict,
    ahead,
    compare,
    compare_rounds,
    undecided,
)

# what is slower than the winner by more than this cannot be its equal
NEAR = 1.1
# finals from before rounds were kept: so many rounds, their samples one after the other
EARLIER_ROUNDS = 4


class Timed(Protocol):
    """What has a time and its stage: a row, or what is kept of one."""

    @property
    def us(self) -> float:
        """Time of a call."""
        ...

    @property
    def stage(self) -> str:
        """How it was taken."""
        ...


T = TypeVar("T", bound=Timed)


@dataclass(frozen=True)
class Winner:
    """The row that won a problem, and the rows that cannot be told from it.

    ties:      as fast as the winner within a tie, and surely no faster than that
    undecided: for all that the samples say, faster than the winner by more than a tie
    """

    row: Row
    ties: list[Row] = field(default_factory=list)
    undecided: list[Row] = field(default_factory=list)


def counts(row: Row) -> bool:
    """Return whether a row may win: measured in full, correct, trusted, and not a peer's."""
    return row.status == MEASURED and row.ok and not row.untrusted and not row.peer


def rank(timed: Timed) -> tuple[bool, float]:
    """Return a sort key, the first to win first.

    Times of a final were taken in turn; others may owe a per cent to the clocks of their moment.
    """
    return timed.stage != FINAL, timed.us


def first_of_each(
    found: Iterable[T],
    about: Callable[[T], Hashable],
    order: Callable[[T], Any] = rank,
) -> list[T]:
    """Return the first, by `order`, of all that are about the same, in the order of their first."""
    first: dict[Hashable, T] = {}
    for one in found:
        key = about(one)
        if key not in first or order(one) < order(first[key]):
            first[key] = one
    return list(first.values())


def best(rows: Iterable[Row]) -> list[Row]:
    """Return the row that won of every (op, kernel, problem, regime)."""
    groups = _groups(rows, lambda row: (row.kernel, *about(row)))
    return [_first(group) for group in groups]


def winners(rows: Iterable[Row]) -> list[Winner]:
    """Return the winner of every (op, problem, regime), in the order of their first rows."""
    return [_winner(group) for group in _groups(rows, about)]


def about(row: Row) -> tuple[Hashable, ...]:
    """Return what the rows that compete with a row have in common."""
    return row.op, problem_key(row.problem), row.regime


def standings(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the best row of every kernel, of one problem after the other, the winner first."""
    for group in _groups(best(rows), about):
        left, order = list(group), []
        while left:
            order.append(_first(left))
            left = [row for row in left if row is not order[-1]]
        yield order


def compare_rows(a: Row, b: Row) -> Verdict:
    """Return the verdict on two rows of one problem, a against b.

    Rows of one final compare round by round. Nothing is said of a row of a final and one of none,
    of two finals, and of two boards: too much changes from one moment to another.
    """
    ratio = even_us(a) / even_us(b)
    if a.stage != b.stage or a.board != b.board:
        return undecided(ratio)
    a_final, a_rounds = rounds_of(a)
    b_final, b_rounds = rounds_of(b)
    if a_final != b_final:
        return undecided(ratio)
    if a_rounds and b_rounds:
        return compare_rounds(a_rounds, b_rounds, a_mhz=a.round_mhz, b_mhz=b.round_mhz)
    return compare(a.samples, b.samples)


def rounds_of(row: Row) -> tuple[Hashable, Rounds]:
    """Return the final that a row was in and its rounds; of a row of none, nothing.

    Files from before rounds were kept have finals of four, and a run had one for each problem.
    """
    if row.rounds:
        return row.contest, row.rounds
    each, rest = divmod(len(row.samples), EARLIER_ROUNDS)
    if row.stage != FINAL or not row.run or rest or each < 2:
        return "", ()
    samples = row.samples
    return row.run, [samples[i : i + each] for i in range(0, len(samples), each)]


def even_us(row: Row) -> float:
    """Return a row's time as the board would have taken it that all others are compared with."""
    return row.us / (row.board_factor or 1.0)


def _groups(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> list[list[Row]]:
    groups: dict[Hashable, list[Row]] = {}
    for row in filter(counts, rows):
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def _first(group: Sequence[Row]) -> Row:
    """Return the row that wins of those on one problem."""
    finals: dict[Hashable, list[Row]] = {}
    for row in _still_in(_comparable(group)):
        # a row without rounds stands for itself; the four of earlier finals are too few for more
        finals.setdefault(row.contest or id(row), []).append(row)
    firsts = [_first_of_final(rows) for rows in finals.values()]
    return min(firsts, key=lambda row: (row.stage != FINAL, even_us(row), _modesty(row)))


def _comparable(group: Sequence[Row]) -> list[Row]:
    """Return the rows of the board, or of the boards that were compared, of the newest final."""
    newest = max(group, key=lambda row: (row.stage == FINAL, row.run, row.board))
    return [row for row in group if _field(row) == _field(newest)]


def _still_in(rows: Sequence[Row]) -> list[Row]:
    """Return rows less those that were left out when their kernel met in a newer final.

    What the board took for them then is not what it took when the others met again.
    """
    last: dict[Hashable, str] = {}
    for row in rows:
        if row.contest:
            last[row.board, row.kernel] = max(row.run, last.get((row.board, row.kernel), ""))
    return [row for row in rows if not row.contest or row.run == last[row.board, row.kernel]]


def _field(row: Row) -> str | None:
    return row.board if row.board_factor is None else None


def _first_of_final(rows: Sequence[Row]) -> Row:
    most = max(len(row.rounds) for row in rows)
    # those with fewer were left behind
    last = [row for row in rows if len(row.rounds) == most]
    first = last[ahead([row.rounds for row in last])]
    equals = [row for row in last if row is first or compare_rows(row, first).name == "SAME"]
    return min(equals, key=_modesty)


def _modesty(row: Row) -> tuple[float, float, str]:
    """Return a sort key, what needs least of a SM first."""
    unknown = math.inf
    registers = unknown if row.registers is None else row.registers
    smem_bytes = unknown if row.smem_bytes is None else row.smem_bytes
    return registers, smem_bytes, as_text(row.config)


def _winner(group: Sequence[Row]) -> Winner:
    found = Winner(_first(best(group)))
    others = [row for row in _comparable(group) if row is not found.row]
    verdicts = {id(row): compare_rows(row, found.row) for row in others}
    for row in others:
        verdict = verdicts[id(row)]
        if not verdict.may_be_faster() and verdict.ratio <= 1 + TIE:
            found.ties.append(row)
    for row in others:
        verdict = verdicts[id(row)]
        if not verdict.may_be_faster() or verdict.ratio > NEAR:
            continue
        # it may have lost to one that the winner equals
        if all(compare_rows(row, tie).may_be_faster() for tie in found.ties):
            found.undecided.append(row)
    return found
