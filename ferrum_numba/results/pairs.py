"""Two result files against each other, problem by problem: the old one's winner, the new one's.

Two files are two moments, and often two boards. Between moments the same program differs by a few
per cent, whatever its samples say, so a difference below that is none. Rows of one final, and of
boards that a yardstick compares, are told apart more finely: see `winners`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from ferrum_numba import shown
from ferrum_numba.errors import StoreError
from ferrum_numba.results.display import of_pairs
from ferrum_numba.results.file import ResultFile, load
from ferrum_numba.results.row import Row, problem_key
from ferrum_numba.results.statistics import Verdict, compare, coverage, undecided
from ferrum_numba.results.winners import best, compare_rows, counts, rounds_of, winners

Part = Literal["problem", "kernel"]
# what the same program differs by from one run to the next on one board, and on another of its
# model: DRAM read is 4.49 TB/s on one H200 and 4.35 on another
MOMENTS = 0.03
BOARDS = 0.05
# of the median of a row's samples from its `us`: files keep six digits
ROUNDING = 1e-4
SAME = Verdict("SAME", 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Pair(shown.Shown):
    """What was, and what is, of one problem in one regime.

    kernel:  whose rows they are, where each kernel has a pair of its own; else empty
    old, new: the rows that won; None where no row counts
    verdict: of the time of the new against that of the old
    why:     the reason where the samples are not it
    """

    op: str
    problem: Mapping[str, Any]
    regime: str
    old: Row | None
    new: Row | None
    verdict: Verdict
    why: str = ""
    kernel: str = ""

    def parts(self) -> Iterable[shown.Part]:
        """Return it as a line of a comparison."""
        return [of_pairs([self])]


@dataclass(frozen=True, repr=False)
class Compared(shown.Shown):
    """Two result files, paired.

    only_old, only_new: how many problems only one of them has
    """

    pairs: list[Pair]
    only_old: int
    only_new: int

    @property
    def slower(self) -> list[Pair]:
        """The pairs whose problem got slower."""
        return [pair for pair in self.pairs if pair.verdict.name == "SLOWER"]

    def parts(self) -> Iterable[shown.Part]:
        """Return a line a problem."""
        return [of_pairs(self.pairs)]

    def __repr__(self) -> str:
        return str(self)


def load_measured(path: str | Path) -> ResultFile:
    """Read a result file that something can be told from.

    Raises:
        StoreError: missing, damaged, of another schema, without rows, or a row's samples contradict
                    its time.
    """
    if Path(path).is_file() and not Path(path).stat().st_size:
        raise StoreError(f"{path}: is empty")
    file = load(path)
    if not file.rows:
        raise StoreError(f"{path}: has no rows")
    for i, row in enumerate(file.rows):
        reason = contradiction(row)
        if reason:
            raise StoreError(f"{path}: row {i}: {reason}")
    if not any(counts(row) for row in file.rows):
        told = ", ".join(f"{n} {status}" for status, n in Counter(map(_state, file.rows)).items())
        raise StoreError(f"{path}: none of its rows counts as measured: {told}")
    return file


def contradiction(row: Row) -> str | None:
    """Return how a row's samples contradict its median or its interval, or None."""
    if not row.samples or math.isnan(row.us):
        return None
    medians = [median(row.samples)]
    if row.rounds:
        medians.append(median(median(one) for one in row.rounds))
    if all(abs(found / row.us - 1) > ROUNDING for found in medians):
        return f"us is {row.us:.6g}, but the median of its samples is {medians[-1]:.6g}"
    low, high = row.us_low, row.us_high
    if low > row.us * (1 + ROUNDING) or high < row.us * (1 - ROUNDING):
        return f"us is {row.us:.6g}, but its interval is {low:.6g} to {high:.6g}"
    return None


def pair_files(old: ResultFile, new: ResultFile, part: Part = "problem") -> Compared:
    """Pair what won every problem that both files have, or what won it of every kernel.

    What won in the old file and has no row in the new one that is right and trusted got slower.

    Raises:
        StoreError: the files are of other GPUs, of other Ops, or have no problem in common.
    """
    _comparable(old, new)
    olds, news = _won(old.rows, part), _won(new.rows, part)
    tried = {_key(row, part) for row in new.rows if not row.peer}
    pairs = [
        _pair(olds[key], news.get(key), _failure(new.rows, key, part), part)
        for key in olds
        if key in tried
    ]
    if not pairs:
        raise StoreError(f"the files have no {part} in common, in one regime")
    return Compared(pairs, len(olds.keys() - tried), len(news.keys() - olds.keys()))


def verdict_of(new: Row, old: Row) -> Verdict:
    """Return the verdict on a row of another file, the new against the old."""
    if (new.samples, new.run, new.board) == (old.samples, old.run, old.board):
        return SAME
    final, _ = rounds_of(new)
    if final and final == rounds_of(old)[0] and new.board == old.board:
        return compare_rows(new, old)
    a, b = _independent(new), _independent(old)
    # of so few that none of them need enclose the median, their whole range counts
    confidence = min(0.95, 2 * coverage(min(len(a), len(b)), 1) - 1)
    if confidence < 0:
        return undecided(a[0] / b[0])
    compared = new.board_factor is not None and old.board_factor is not None
    tie = MOMENTS if compared or new.board == old.board else BOARDS
    return compare(a, b, tie, confidence)


def _independent(row: Row) -> list[float]:
    """Return a row's observations, as the board would take them that others are compared with."""
    found = [median(one) for one in row.rounds] or row.samples
    return [us / (row.board_factor or 1.0) for us in found]


def _comparable(old: ResultFile, new: ResultFile) -> None:
    gpus = [str(file.environment["gpu"]) for file in (old, new)]
    if gpus[0] != gpus[1]:
        raise StoreError(f"one file is of {gpus[0]}, the other of {gpus[1]}: another GPU")
    ops = [sorted({row.op for row in file.rows}) for file in (old, new)]
    if not set(ops[0]) & set(ops[1]):
        raise StoreError(
            f"one file is of {', '.join(ops[0])}, the other of {', '.join(ops[1])}: another Op"
        )


def _key(row: Row, part: Part) -> tuple[Any, ...]:
    about = row.op, problem_key(row.problem), row.regime
    return (*about, row.kernel) if part == "kernel" else about


def _won(rows: Iterable[Row], part: Part) -> dict[tuple[Any, ...], Row]:
    found = best(rows) if part == "kernel" else [winner.row for winner in winners(rows)]
    return {_key(row, part): row for row in found}


def _pair(old: Row, new: Row | None, failure: str, part: Part) -> Pair:
    verdict = Verdict("SLOWER", math.inf, math.inf, math.inf)
    if new is not None:
        verdict, failure = verdict_of(new, old), ""
    kernel = old.kernel if part == "kernel" else ""
    return Pair(old.op, old.problem, old.regime, old, new, verdict, failure, kernel)


def _failure(rows: Iterable[Row], key: tuple[Any, ...], part: Part) -> str:
    """Return what became of the rows of a problem, of which none counts."""
    seen = Counter(_state(row) for row in rows if not row.peer and _key(row, part) == key)
    return "no row that counts: " + ", ".join(f"{count} {state}" for state, count in seen.items())


def _state(row: Row) -> str:
    if row.peer:
        return "of a peer"
    return "untrusted" if row.untrusted else row.status
