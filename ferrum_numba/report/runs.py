"""The runs that results come from: numbered by date, each on a board that has a letter."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ferrum_numba.results import ResultFile

# so many are named one by one
FEW = 3


@dataclass(frozen=True)
class Run:
    """One run of the tuner or the ceilings.

    number: by date, from 1; board: its letter, by the date of its first run
    rows:   results that are of it, and which Ops'
    """

    number: int
    board: str
    environment: Mapping[str, Any]
    rows: int
    ops: tuple[str, ...]

    @property
    def date(self) -> str:
        """Return when it began, to the minute."""
        return str(self.environment.get("date", ""))[:16].replace("T", " ")

    @property
    def commit(self) -> str:
        """Return the commit, short; `+` where the checkout was changed."""
        commit = str(self.environment.get("commit") or "unknown")[:7]
        return commit + ("+" if self.environment.get("dirty") else "")


def runs_of(files: Iterable[ResultFile]) -> dict[str, Run]:
    """Return the runs that rows of some files come from, by their date, the earliest first."""
    environments: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    ops: dict[str, set[str]] = {}
    for file in files:
        for row in file.rows:
            environment = file.environment_of(row)
            date = str(environment["date"])
            environments[date] = environment
            counts[date] = counts.get(date, 0) + 1
            ops.setdefault(date, set()).add(row.op)
    letters: dict[str, str] = {}
    found = {}
    for number, date in enumerate(sorted(environments), 1):
        environment = environments[date]
        board = letters.setdefault(str(environment.get("uuid", "")), _letters(len(letters)))
        found[date] = Run(number, board, environment, counts[date], tuple(sorted(ops[date])))
    return found


def _letters(index: int) -> str:
    """Return A to Z, then AA."""
    high, low = divmod(index, 26)
    return (_letters(high - 1) if high else "") + string.ascii_uppercase[low]


def named(dates: Iterable[str], runs: Mapping[str, Run]) -> str:
    """Return which board, date and commit numbers are of; of many the ends, and where all are."""
    found = [runs[date] for date in sorted(set(dates)) if date in runs]
    if not found:
        return ""
    if len(found) <= FEW:
        each = [f"run {r.number}: board {r.board}, {r.date}, commit {r.commit}" for r in found]
        return "; ".join(each)
    boards = sorted({run.board for run in found}, key=lambda name: (len(name), name))
    first, last = found[0], found[-1]
    return (
        f"{len(found)} runs, {numbers(found)}, on {_boards(boards)}: {first.date[:10]}, commit "
        f"{first.commit}, to {last.date[:10]}, commit {last.commit} (see Provenance)"
    )


def _boards(names: Sequence[str]) -> str:
    return f"board {names[0]}" if len(names) == 1 else f"boards {', '.join(names)}"


def numbers(found: Iterable[Run]) -> str:
    """Return run numbers, consecutive ones as a range."""
    spans: list[list[int]] = []
    for number in sorted(run.number for run in found):
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ", ".join("-".join(map(str, span)) for span in spans)
