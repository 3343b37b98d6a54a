"""Results as a notebook shows them: one small HTML table, with no style of its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ferrum_numba.results.winners import Winner, winners
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.results.pairs import Pair
    from ferrum_numba.results.row import Row
    from ferrum_numba.results.statistics import Verdict

COLUMNS = (
    "problem", "kernel", "config", "regime", "µs [low, high]", "GB/s", "TFLOP/s", "% of bound",
    "ties",
)  # fmt: skip

PAIR_COLUMNS = ("problem", "regime", "old", "new", "old µs", "new µs", "new / old", "verdict", "")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as HTML; every cell is text."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def winners_table(environment: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the winner of every problem as HTML."""
    found = winners(rows)
    count = counted(len(rows), "row")
    title = f"{environment.get('gpu', '')}, {environment.get('date', '')}: {count}"
    return table(title, COLUMNS, map(_cells, found))


def row_table(row: Row) -> str:
    """Return a row as HTML, a line a fact that is known."""
    status = f"{row.status}: {row.reason}" if row.reason else row.status
    facts = {
        "problem": _words(row.problem),
        "config": _words(row.config),
        "regime": row.regime,
        "µs [low, high]": _time(row),
        "GB/s": _number(row.gbps),
        "TFLOP/s": _number(row.tflops),
        "% of bound": _number(100 * row.fraction),
        "registers": "" if row.registers is None else str(row.registers),
        "shared memory, bytes": "" if row.smem_bytes is None else str(row.smem_bytes),
        "relative error": _number(row.rel_error),
        "status": status,
        "untrusted": row.untrusted,
        "run": row.run,
    }
    return table(f"{row.kernel}, {row.op}", ("", ""), [(n, v) for n, v in facts.items() if v])


def verdict_words(verdict: Verdict) -> str:
    """Return a verdict with its ratio and interval as HTML."""
    low, high = _number(verdict.low), _number(verdict.high) or "∞"
    return f"<strong>{verdict.name}</strong> {_number(verdict.ratio) or '?'} [{low}, {high}]"


def pairs_table(pairs: Sequence[Pair]) -> str:
    """Return a comparison as HTML, a line a problem, with how many of each verdict."""
    counts = Counter(pair.verdict.name for pair in pairs)
    title = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return table(f"{title}, of the new against the old", PAIR_COLUMNS, map(_of_pair, pairs))


def _of_pair(pair: Pair) -> tuple[str, ...]:
    old, new, verdict = pair.old, pair.new, pair.verdict
    return (
        _words(pair.problem), pair.regime, old.kernel if old else "", new.kernel if new else "",
        _time(old) if old else "", _time(new) if new else "",
        f"{_number(verdict.ratio)} [{_number(verdict.low)}, {_number(verdict.high)}]",
        verdict.name, pair.why,
    )  # fmt: skip


def _time(row: Row) -> str:
    if not math.isfinite(row.us):
        return ""
    return f"{_number(row.us)} [{_number(row.us_low)}, {_number(row.us_high)}]"


def _cells(winner: Winner) -> tuple[str, ...]:
    row = winner.row
    return (
        _words(row.problem),
        row.kernel,
        _words(row.config),
        row.regime,
        _time(row),
        _number(row.gbps),
        _number(row.tflops),
        _number(100 * row.fraction),
        str(len(winner.ties) + len(winner.undecided)),
    )


def _words(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""
