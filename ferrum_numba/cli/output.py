"""What a command prints and writes: JSON on stdout, words for people on stderr, files."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from ferrum_numba.errors import StoreError
from ferrum_numba.shown import printable
from ferrum_numba.words import counted

Row = Mapping[str, Any]


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


def print_remarks(of: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Print what is likely not meant in kernels, (name, remarks), each remark once a kernel."""
    for name, remark in dict.fromkeys((name, one) for name, remarks in of for one in remarks):
        print(f"remark: {name}: {remark}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
