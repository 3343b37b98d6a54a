"""What a search remembers: the store beside its result file, and the run that it adds to it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ferrum_numba import results
from ferrum_numba.measure import read_clocks
from ferrum_numba.results import Row, same
from ferrum_numba.results.identity import identity, one_yardstick
from ferrum_numba.results.store import NAME, Store

if TYPE_CHECKING:
    from ferrum_numba.tune.search import SearchTask


class Memory:
    """One run's view of the store of a task."""

    def __init__(self, task: SearchTask, environment: Mapping[str, Any] | None = None) -> None:
        """Open the store, take in what the result file has, and begin a run.

        Args:
            environment: where it measures, if that is not this process' machine

        Raises:
            StoreError: the store cannot be opened, or the file is no result file.
        """
        self.path = task.store_path
        self.ops = _ops(task)
        clocks = asdict(read_clocks(task.gpu.uuid)) if environment is None else {}
        now = environment or results.environment(task.gpu, task.policy, sys.argv, clocks=clocks)
        untrusted = {"untrusted": task.untrusted} if task.untrusted else {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._store = Store(self.path.parent / NAME)
        self._store.read_file(self.path)
        # of this run; what is found out before the first row is added may be added to it
        self.environment = self._store.begin({**now, **untrusted})

    @property
    def run(self) -> str:
        """The date that names this run."""
        date: str = self.environment["date"]
        return date

    def reference(self) -> Mapping[str, Any]:
        """Return the first run on such a GPU that timed this run's yardstick; this one at last."""
        here = identity("", self.environment)
        runs = self._store.runs()
        alike = (run for run in runs if one_yardstick(run, self.environment))
        return next((run for run in alike if same(identity("", run), here)), self.environment)

    def known(self, wanted: Row) -> Row | None:
        """Return the stored row of the same program, measured the same way on such a GPU."""
        return self._store.known(wanted, self.environment)

    def rows(self) -> list[Row]:
        """Return all that is stored of the task's Ops, of any run."""
        return [row for op in self.ops for row in self._store.rows(op)]

    def add(self, rows: Sequence[Row]) -> None:
        """Commit rows, in place of older ones."""
        if rows:
            self._store.add(rows, self.environment)

    def write(self) -> None:
        """Write the result file."""
        self._store.write_file(self.path, self.ops)

    def close(self) -> None:
        """Close the store."""
        self._store.close()


def write_file(task: SearchTask) -> None:
    """Write a task's result file from its store.

    Raises:
        StoreError: it cannot be written.
    """
    with Store(task.store_path.parent / NAME) as store:
        store.write_file(task.store_path, _ops(task))


def _ops(task: SearchTask) -> tuple[str, ...]:
    return tuple(dict.fromkeys(kernel.op.name for kernel in task.kernels))
