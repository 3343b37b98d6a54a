"""Who won: the one rule, for dispatch, report, tables and the command line alike.

A row counts if it was measured in full, is correct, is of a kernel of this house, and nothing says
not to trust it. Of rows that count, those of a final come before any other, and then the faster
first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ferrum_numba.results.row import FINAL, MEASURED, Row, problem_key
from ferrum_numba.results.statistics import compare

# what is slower than the winner by more than this cannot be its equal
NEAR = 1.1


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
    """The fastest row of a problem, and the rows that cannot be told from it.

    ties:      as fast as the winner, within the tie band
    undecided: the samples do not say
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


def first_of_each(found: Iterable[T], about: Callable[[T], Hashable]) -> list[T]:
    """Return the first by `rank` of all that are about the same, in the order of their first."""
    first: dict[Hashable, T] = {}
    for one in found:
        key = about(one)
        if key not in first or rank(one) < rank(first[key]):
            first[key] = one
    return list(first.values())


def best(rows: Iterable[Row]) -> list[Row]:
    """Return the row that won of every (op, kernel, problem, regime)."""
    return first_of_each(filter(counts, rows), lambda row: (row.kernel, _contest(row)))


def winners(rows: Iterable[Row]) -> list[Winner]:
    """Return the winner of every (op, problem, regime), in the order of their first rows."""
    groups: dict[Any, list[Row]] = {}
    for row in filter(counts, rows):
        groups.setdefault(_contest(row), []).append(row)
    return [_winner(min(group, key=rank), group) for group in groups.values()]


def _contest(row: Row) -> Hashable:
    return row.op, problem_key(row.problem), row.regime


def _winner(first: Row, group: Iterable[Row]) -> Winner:
    found = Winner(first)
    for row in group:
        if row is first or row.us > NEAR * first.us:
            continue
        verdict = compare(first.samples, row.samples)
        if verdict.name == "SAME":
            found.ties.append(row)
        elif verdict.name == "UNDECIDED":
            found.undecided.append(row)
    return found
