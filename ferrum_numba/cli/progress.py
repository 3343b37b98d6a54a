"""How far something long is: a bar on a terminal and in a notebook, else a line now and then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ferrum_numba.cli.output import say

# on a pipe, when progress is said first; then after twice as long each time, up to every minute
FIRST_S, SAY_S = 10.0, 60.0


class Progress(Protocol):
    """Called with what is done, how much there is in all, and what is being done."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show it."""
        ...


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
