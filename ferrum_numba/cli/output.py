"""What a command prints: tables for people, JSON for programs, progress on stderr."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from ferrum_numba.cli.names import in_words
from ferrum_numba.errors import StoreError
from ferrum_numba.shown import printable
from ferrum_numba.words import counted

Row = Mapping[str, Any]
# of a table on a pipe
NARROW = 80
# on a pipe, when progress is said first; then after twice as long each time, up to every minute
FIRST_S, SAY_S = 10.0, 60.0


class Progress(Protocol):
    """Called with what is done, how much there is in all, and what is being done."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show it."""
        ...


def say(text: str) -> None:
    """Print a line for people on stderr, where it never mixes with JSON, if it is open."""
    if sys.stderr is not None:
        # who has no room for the error has none for an error about it
        with suppress(OSError, ValueError):
            print(printable(text), file=sys.stderr, flush=True)


class Printed:
    """Standard output that says in a sentence why it fails, but for a reader who has enough."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write as a text stream does."""
        if self._stream is None:
            raise StoreError("nothing can be printed: stdout is closed")
        with self._said():
            return self._stream.write(text)

    def flush(self) -> None:
        """Flush as a text stream does."""
        if self._stream is not None:
            with self._said():
                self._stream.flush()

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StoreError(f"stdout cannot be written: {error.strerror}") from error


@contextmanager
def printing() -> Iterator[None]:
    """Print through `Printed`; what could not be printed is dropped at the end of the process."""
    before = sys.stdout
    sys.stdout = cast(TextIO, Printed(before))
    try:
        yield
        sys.stdout.flush()
    except (StoreError, BrokenPipeError):
        drop_output(before)
        raise
    finally:
        sys.stdout = before


@contextmanager
def printed_beside() -> Iterator[None]:
    """Let what others print, in Python or on a GPU, go to stderr, and not into the output."""
    sys.stdout.flush()
    try:
        out, err = 1, sys.stderr.fileno()
        kept = os.dup(out)
    except (OSError, ValueError, AttributeError):
        # no files of the system's, as in a notebook
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        os.dup2(err, out)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, out)
        os.close(kept)


def drop_output(stream: TextIO | None) -> None:
    """Send what Python would still flush at exit nowhere."""
    # of a stream that is none of the system's, nothing is flushed
    with suppress(OSError, ValueError, AttributeError):
        cast(TextIO, stream).flush()
        return
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), cast(TextIO, stream).fileno())


def say_rows(number: int, path: str | Path) -> None:
    """Say how many rows a file has now."""
    say(f"{counted(number, 'row')} {'is' if number == 1 else 'are'} in {path}")


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


def print_remarks(of: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Print what is likely not meant in kernels, (name, remarks), each remark once a kernel."""
    for name, remark in dict.fromkeys((name, one) for name, remarks in of for one in remarks):
        print(f"remark: {name}: {remark}")


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


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Say on stderr how far something long is, and the minutes that are left.

    A bar on a terminal and in a notebook; elsewhere a line after ten seconds, then at longer and
    longer distances up to a minute.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console, pace = Console(stderr=True), Pace()
    if console.is_jupyter:
        from ferrum_numba.tune import NotebookBar

        yield NotebookBar(title)
        return
    if not console.is_terminal:
        yield _lines(title, pace)
        return
    looks = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    left = TextColumn("{task.fields[left]}")
    with Bar(*looks, TimeElapsedColumn(), left, console=console) as bar:
        task = bar.add_task(title, total=None, left="")

        def report(done: int, total: int, text: str = "") -> None:
            description = f"{title} {text}".strip()
            left = pace.left(done, total)
            bar.update(task, completed=done, total=total, description=description, left=left)

        yield report


class _Said:
    """When progress was said last, whichever it was of; None where there was none yet.

    wait: seconds until it is said next
    """

    last: float | None = None
    wait: float = FIRST_S


def begin() -> None:
    """Begin a command: what an earlier one of this process said counts no more."""
    _Said.last, _Said.wait = None, FIRST_S


def _lines(title: str, pace: Pace) -> Progress:
    """Return a progress that says lines, whose distances go on over several after each other."""
    if _Said.last is None:
        _Said.last = time.monotonic()

    def report(done: int, total: int, text: str = "") -> None:
        left, now = pace.left(done, total), time.monotonic()
        if now - (_Said.last or now) >= _Said.wait and done < total:
            _Said.last, _Said.wait = now, min(2 * _Said.wait, SAY_S)
            say(", ".join(part for part in (f"{title}: {done} of {total}", left, text) if part))

    return report


class Pace:
    """How long the rest takes, if it goes on as it did lately."""

    # what happened before so long ago says little of what comes
    WINDOW_S = 120.0

    def __init__(self) -> None:
        self._total = 0
        self._seen: deque[tuple[float, int]] = deque()

    def left(self, done: int, total: int) -> str:
        """Return the time that is left in words; nothing while it cannot be told."""
        now = time.monotonic()
        if total != self._total or (self._seen and done < self._seen[-1][1]):
            # something else has begun
            self._total = total
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - self.WINDOW_S:
            self._seen.popleft()
        began, before = self._seen[0]
        if done <= before or now <= began:
            return ""
        minutes = (total - done) * (now - began) / (done - before) / 60
        return f"{minutes:.0f} min left" if minutes >= 1 else "less than a minute left"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
