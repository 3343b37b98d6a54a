"""What one call of the command line works on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ferrum_numba import gpu
from ferrum_numba.cli import names
from ferrum_numba.cli.output import say
from ferrum_numba.contract import Kernel, Problem
from ferrum_numba.errors import ProblemError, StoreError

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu
    from ferrum_numba.results import ResultFile

T = TypeVar("T")
# the GPU this house was tuned on: what is planned for where none is named and none is there
TUNED_GPU = "h200"
# problems that were chosen for the user, of which so many are named
MOST_CHOSEN = 3


@dataclass
class Session:
    """The arguments of a command, and what was handed in with them.

    recorded:  folder of results that ship with the kernels, <gpu>/<op>.json
    peers:     tables of others' times, for the report
    tools:     kernels that are worked on only where they are named
    stopped:   Ctrl-C came; what was done until then is kept
    stopped_at: where that was, if somebody knows: a line of a kernel's source
    rows_kept: results that outlive this call
    to_come:   in words, what would have come after them; nothing where it is not known
    kept:      what one of them is
    whole:     the result is there at the end or not at all
    goes_on:   the same command goes on where this one was stopped
    open:      what is closed at the end of the command
    """

    args: argparse.Namespace
    handed_in: tuple[Kernel, ...]
    problem_sets: Mapping[str, Sequence[Problem]]
    ceilings: tuple[Kernel, ...] = ()
    recorded: Path | None = None
    peers: Sequence[Mapping[str, Any]] = ()
    tools: tuple[Kernel, ...] = ()
    stopped: bool = False
    stopped_at: str = ""
    rows_kept: int = 0
    to_come: str = ""
    kept: str = "row"
    whole: bool = False
    goes_on: bool = False
    open: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels that the user named, or all but tools; `--kernels` adds the user's own."""
        module = self.args.kernels
        added = names.import_kernels(module) if module else ()
        names.refuse_twins(module, added, (*self.handed_in, *self.tools, *self.ceilings))
        return names.select_kernels((*self.handed_in, *added), self.args.kernel, self.tools)

    def kernel(self, name: str) -> Kernel:
        """Return one of the kernels or ceilings that this call works on."""
        return next(k for k in (*self.kernels, *self.ceilings) if k.name == name)

    def runnable(self) -> list[Kernel]:
        """Return the kernels that find here what they need beside a GPU; say what others lack."""
        from ferrum_numba.launch import lacking

        found = []
        for kernel in self.kernels:
            reason = lacking(kernel)
            if reason is None:
                found.append(kernel)
            else:
                say(f"{kernel.name} is left out: it {reason}")
        return found

    @cached_property
    def gpu(self) -> Gpu:
        """The GPU to plan for: the one named, else the one at hand, else the H200."""
        if getattr(self.args, "gpu", None):
            return gpu.find(self.args.gpu)
        return gpu.live() if gpu.driver_present() else gpu.find(TUNED_GPU)

    @cached_property
    def store(self) -> Path:
        """Folder of result files: perf/results in a checkout, else ./results."""
        if self.args.store:
            return Path(self.args.store)
        checkout = Path("perf/results")
        return checkout if checkout.is_dir() else Path("results")

    def need_store(self) -> None:
        """Refuse a store that was named and is not there, where it is read.

        Raises:
            StoreError: there is no such folder.
        """
        named = self.args.store
        if named and not os.path.lexists(named):
            raise StoreError(f"--store {named}: no such folder of results is here")

    def store_path(self, key: str, op: str) -> Path:
        """Return the result file of an Op on a GPU."""
        return self.store / key / f"{op}.json"

    def measured(self, key: str) -> list[ResultFile]:
        """Return the stored results of a GPU, or else those that ship with the kernels.

        Raises:
            StoreError: the store is no folder, or cannot be read.
        """
        from ferrum_numba import results

        return [results.load(path) for path in self.result_paths(key)]

    def result_paths(self, key: str, *, both: bool = False) -> list[Path]:
        """Return the result files of a GPU in the store, or else those that ship; ceilings last.

        both: those that ship and then the store's, which are newer

        Raises:
            StoreError: the store is no folder, or cannot be read.
        """
        try:
            with suppress(FileNotFoundError):
                os.scandir(self.store).close()
        except OSError as error:
            raise StoreError(f"{self.store} cannot be read: {error.strerror}") from error
        kept, shipped = (self._files(folder, key) for folder in (self.store, self.recorded))
        if not both:
            return kept or shipped
        theirs = {path.resolve() for path in kept}
        return [*(path for path in shipped if path.resolve() not in theirs), *kept]

    @staticmethod
    def _files(folder: Path | None, key: str) -> list[Path]:
        if folder is None:
            return []
        own = folder / key
        return [*sorted(own.glob("*.json")), *sorted((own / "ceilings").glob("*.json"))]

    def problems(self, rows: Sequence[int] = ()) -> list[Problem]:
        """Return the problems that the user named, or those of the first set for these kernels.

        rows: the M to take from that set where the user named neither problems nor M; all if empty

        Raises:
            ProblemError: a name or size that no Op has, or no kernel can run any of them.
        """
        named, m = self.args.problem, self.args.m
        if named:
            ops = [kernel.op for kernel in self.kernels]
            found = names.find_problems(named, self.problem_sets, ops)
        else:
            found = self._usual_problems()
        if m:
            found = names.with_rows(found, m)
        elif not named and rows:
            found = [p for p in found if getattr(p, "M", rows[0]) in rows] or found
        self._refuse(found)
        return found

    def _usual_problems(self) -> list[Problem]:
        """Return the first set that these kernels know, or the tests of their Ops."""
        kinds = tuple(kernel.op.problem for kernel in self.kernels)
        for problems in self.problem_sets.values():
            if any(isinstance(problem, kinds) for problem in problems):
                return list(problems)
        return list(dict.fromkeys(p for kernel in self.kernels for p in kernel.op.tests))

    def say_chosen(self, problems: Sequence[Problem]) -> None:
        """Say that these are an Op's small tests, taken where no problem was named."""
        tests = {problem for kernel in self.kernels for problem in kernel.op.tests}
        if self.args.problem or self.args.m or not tests.issuperset(problems):
            return
        some = "; ".join(map(names.short, problems[:MOST_CHOSEN]))
        more = len(problems) - MOST_CHOSEN
        some += f" and {more} more" if more > 0 else ""
        form = names.form(type(problems[0]))
        say(
            f"no problem was named, so a test of the Op's is taken: {some}; name one of your size "
            f"by --problem {form}"
        )

    def readable(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return rows for a table: of a problem and a config, only what is not at its default.

        The default of a config is what the kernel runs an untuned problem with.
        """
        kernels = {kernel.name: kernel for kernel in (*self.kernels, *self.ceilings)}
        usual: dict[tuple[str, str], Mapping[str, Any]] = {}
        found = []
        for row in rows:
            kernel, about = kernels[row["kernel"]], (row["kernel"], str(row["problem"]))
            if about not in usual:
                usual[about] = names.default_of(kernel, row["problem"], self.gpu)
            problem = names.brief(row["problem"], kernel.op.problem)
            config = names.unlike(row["config"], usual[about])
            found.append({**row, "problem": problem, "config": config})
        return found

    def keep(self, items: Iterable[T], keep: Callable[[T], None]) -> None:
        """Hand over item by item until the end, or until Ctrl-C."""
        try:
            for item in items:
                keep(item)
        except KeyboardInterrupt as error:
            self.stop(error)

    def stop(self, error: KeyboardInterrupt) -> None:
        """Note that Ctrl-C came, and where."""
        self.stopped, self.stopped_at = True, str(error)

    def _refuse(self, problems: Sequence[Problem]) -> None:
        refusals = []
        for kernel in self.kernels:
            for problem in problems:
                if isinstance(problem, kernel.op.problem):
                    reason = kernel.refuses(problem)
                    if reason is None:
                        return
                    named = reason.startswith(kernel.name)
                    refusals.append(reason if named else f"{kernel.name}: {reason}")
        if not refusals:
            wanted = ", ".join(sorted({kernel.op.name for kernel in self.kernels}))
            raise ProblemError(f"{problems[0]} is no problem of {wanted}")
        raise ProblemError("; ".join(dict.fromkeys(refusals)))
