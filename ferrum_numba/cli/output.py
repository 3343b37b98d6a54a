"""What a command prints: tables for people, JSON for programs, progress on stderr."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ferrum_numba.cli.names import in_words
from ferrum_numba.errors import StoreError

Row = Mapping[str, Any]
# a table on a pipe is for grep: no line is folded or cut at 80 columns
PIPE_WIDTH = 240


class Progress(Protocol):
    """Called with what is done, how much there is in all, and what is being done."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show it."""
        ...


def say(text: str) -> None:
    """Print one line for people on stderr, where it never mixes with JSON."""
    print(text, file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """Return a number of things, in words whose plural is an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def make_folder(path: str | Path) -> None:
    """Make a folder and write into it, before the work whose results go there.

    Raises:
        StoreError: it cannot be made or written.
    """
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Make what the system refuses a mistake that names the path."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error


def print_json(value: Any) -> None:
    """Print machine-readable output on stdout; NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(_plain(value), indent=1, allow_nan=False))


def as_json(rows: Iterable[Any]) -> list[dict[str, Any]]:
    """Return result rows as their file has them."""
    return [row.to_json() for row in rows]


def print_table(rows: Iterable[Row], columns: Sequence[str], title: str = "") -> None:
    """Print rows under these keys; numbers to the right, in three significant digits."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    listed = list(rows)
    table = Table(title=title or None, title_justify="left", box=SIMPLE)
    for column in columns:
        numeric = any(isinstance(row.get(column), int | float) for row in listed)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        table.add_row(*(Text(cell(row.get(column))) for column in columns))
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(table)


def cell(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return in_words(value)
    return str(value)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Show a bar on stderr while something long runs; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    looks = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*looks, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def report(done: int, total: int, text: str = "") -> None:
            bar.update(task, completed=done, total=total, description=f"{title} {text}".strip())

        yield report


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
