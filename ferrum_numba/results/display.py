"""Results as a notebook shows them: one small HTML table, with no style of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ferrum_numba.results.winners import Winner, winners

if TYPE_CHECKING:
    from ferrum_numba.results.row import Row

COLUMNS = (
    "problem", "kernel", "config", "regime", "µs [low, high]", "GB/s", "TFLOP/s", "% of bound",
    "ties",
)  # fmt: skip


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
    title = f"{environment.get('gpu', '')}, {environment.get('date', '')}: {len(rows)} rows"
    return table(title, COLUMNS, map(_cells, found))


def _cells(winner: Winner) -> tuple[str, ...]:
    row = winner.row
    return (
        _words(row.problem),
        row.kernel,
        _words(row.config),
        row.regime,
        f"{_number(row.us)} [{_number(row.us_low)}, {_number(row.us_high)}]",
        _number(row.gbps),
        _number(row.tflops),
        _number(100 * row.fraction),
        str(len(winner.ties) + len(winner.undecided)),
    )


def _words(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""
