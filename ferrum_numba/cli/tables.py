"""Tables for people, as wide as the terminal."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from ferrum_numba.cli.names import in_words
from ferrum_numba.shown import printable

Row = Mapping[str, Any]
# of a table on a pipe
NARROW = 80


def print_table(
    rows: Iterable[Row], columns: Sequence[str], title: str = "", folded: Sequence[str] = ()
) -> None:
    """Print rows under these keys; numbers to the right, in three significant digits.

    It is as wide as the terminal, as COLUMNS says, or on a pipe 80 characters. Words and numbers
    are not cut in two: columns give way that have several words, then the columns' names, at
    each _, and columns in which nothing stands are left out. What does not fit then is wider.

    folded: the columns that give way; those of several words if none is named
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    listed = list(rows)
    cells = {column: [cell(row.get(column)) for row in listed] for column in columns}
    cells = {column: texts for column, texts in cells.items() if any(texts) or not listed}
    give_way = {c for c, texts in cells.items() if c in folded or (not folded and _worded(texts))}
    names, needed = _names(cells, give_way, table_width())
    table = Table(title=title or None, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for column in cells:
        numeric = any(isinstance(row.get(column), int | float) for row in listed)
        table.add_column(
            names[column], justify="right" if numeric else "left", overflow="fold",
            no_wrap=column not in give_way,
        )  # fmt: skip
    for line in zip(*cells.values(), strict=True):
        table.add_row(*map(Text, line))
    Console(width=max(needed, table_width())).print(table)


def _worded(texts: Iterable[str]) -> bool:
    return any(" " in text for text in texts)


def _names(
    cells: Mapping[str, Sequence[str]], give_way: Set[str], width: int
) -> tuple[dict[str, str], int]:
    """Return what columns are called, and how wide they are at least together.

    They are called so in several lines where they would be too wide in one.
    """

    def least(names: Mapping[str, str]) -> int:
        # a space on either side of each, and of all
        return 2 + sum(2 + max(map(len, (*names[c].split("\n"), *parts[c]))) for c in cells)

    parts = {
        column: [part for text in texts for part in text.split()] if column in give_way else texts
        for column, texts in cells.items()
    }
    whole = {column: column for column in cells}
    broken = {column: column.replace("_", "\n") for column in cells}
    names = whole if least(whole) <= width else broken
    return names, least(names)


def table_width() -> int:
    """Return the width of what is made to fit: what COLUMNS says, else the terminal's, else 80.

    A width of 0, as of a terminal that nobody told its size, says nothing.
    """
    columns = os.environ.get("COLUMNS", "")
    if sys.stdout.isatty() or (columns.isdecimal() and int(columns)):
        return shutil.get_terminal_size((NARROW, 0)).columns
    return NARROW


def cell(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return printable(in_words(value))
    return printable(str(value))
