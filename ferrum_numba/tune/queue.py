"""The problems that several boards share: who measures which, and how far all are."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ferrum_numba.contract import Problem
from ferrum_numba.results import Row
from ferrum_numba.tune.budget import Deadline
from ferrum_numba.tune.model import bound_us
from ferrum_numba.tune.space import Progress

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu
    from ferrum_numba.tune.search import Space

# between two looks at the clock while a board has nothing to do
LOOK_S = 0.5


class Stopped(Exception):
    """The work was told to stop."""


class Queue:
    """Problems, each measured by one board; for several threads.

    A board marks the problem that it will take next, whose operands are made meanwhile; where
    nothing else is left, another takes that one too.
    """

    def __init__(self, problems: Iterable[Problem], deadline: Deadline) -> None:
        self._waiting = list(problems)
        self._deadline = deadline
        self._count = len(self._waiting)
        self._taken: dict[str, Problem] = {}
        self._marked: dict[str, Problem] = {}
        self._changed = threading.Condition()
        self.found: dict[Problem, list[Row]] = {}
        self.stopped = False

    @property
    def left(self) -> int:
        """How many problems are not measured yet."""
        return self._count - len(self.found)

    @property
    def finished(self) -> bool:
        """Whether all are measured, or the time is up for those that nobody is at."""
        return not self.left or (self._deadline.passed() and not self._taken)

    def take(self, board: str) -> Problem | None:
        """Return a board's next problem; None when it has no more to do."""
        with self._changed:
            # what another board is at comes back if that board is lost
            while not (self._waiting or self._over()):
                self._changed.wait(LOOK_S)
            if self._over():
                return None
            problem = self._next(board)
            self._waiting.remove(problem)
            self._taken[board] = problem
            return problem

    def ahead(self, board: str) -> list[Problem]:
        """Return what the board will take next, as far as it can be told."""
        with self._changed:
            self._marked.pop(board, None)
            if not self._waiting:
                return []
            self._marked[board] = self._next(board)
            return [self._marked[board]]

    def done(self, problem: Problem, rows: Sequence[Row]) -> None:
        """Keep the rows of a problem."""
        with self._changed:
            self.found[problem] = list(rows)
            self._taken = {board: one for board, one in self._taken.items() if one != problem}
            self._changed.notify_all()

    def leave(self, board: str) -> None:
        """Let a board go; what it was at is the next that another takes."""
        with self._changed:
            self._marked.pop(board, None)
            problem = self._taken.pop(board, None)
            if problem is not None:
                self._waiting.insert(0, problem)
            self._changed.notify_all()

    def share(self) -> Deadline:
        """Return the deadline of a problem that was taken: its part of what is left."""
        with self._changed:
            boards = max(1, len(self._taken))
            return self._deadline.share(min(1.0, boards / max(1, self.left)))

    def wait(self, seconds: float) -> None:
        """Wait until a problem is measured or a board leaves, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def stop(self) -> None:
        """Give out no more; `Tally` stops the boards at their next candidate."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def _over(self) -> bool:
        return self.stopped or not self.left or self._deadline.passed()

    def _next(self, board: str) -> Problem:
        mine = self._marked.get(board)
        if mine in self._waiting:
            return mine
        theirs = [one for other, one in self._marked.items() if other != board]
        free = (problem for problem in self._waiting if problem not in theirs)
        return next(free, self._waiting[0])


class Tally:
    """How far the boards are together."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._progress = total, progress
        self._done = 0
        self._lock = threading.Lock()

    def of(self, queue: Queue) -> Progress:
        """Return a progress for one board, which counts from 0; raises Stopped after a stop."""
        last = 0

        def report(done: int, _: int, text: str) -> None:
            nonlocal last
            if queue.stopped:
                raise Stopped
            with self._lock:
                self._done = min(self._total, self._done + done - last)
                last = done
                self._progress(self._done, self._total, text)

        return report


def longest_first(space: Space, gpu: Gpu) -> list[Problem]:
    """Return the problems of a space, those first whose measuring takes the longest."""
    counts: dict[Problem, int] = {}
    longest_us: dict[Problem, float] = {}
    for kernel, problem, configs in space:
        counts[problem] = counts.get(problem, 0) + len(configs)
        us = bound_us(kernel.op.work(problem), gpu)
        longest_us[problem] = max(longest_us.get(problem, 0.0), us)
    return sorted(counts, key=lambda problem: counts[problem] * longest_us[problem], reverse=True)
