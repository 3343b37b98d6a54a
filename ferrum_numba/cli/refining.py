"""A report that begins with what is known and is written anew as rows come."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba import gpu, shipped
from ferrum_numba.cli.bench import ceilings
from ferrum_numba.cli.kept import Kept, is_of_ceilings
from ferrum_numba.cli.output import make_folder, say
from ferrum_numba.cli.progress import Progress, progress
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tune import WRONG, tuned
from ferrum_numba.contract import Kernel, Op, Problem, describe
from ferrum_numba.errors import StoreError

if TYPE_CHECKING:
    from ferrum_numba.report import Document, Sources, Writer
    from ferrum_numba.results import CheckRow, Planned, ResultFile, Row
    from ferrum_numba.results.targets import Reached, Target

# between two versions of a report, while it is measured
EVERY_S = 60.0
# for the plan of the first page, which is to be there within a minute
PLAN_S = 30.0


class _LateError(Exception):
    """The time is over."""


@dataclass
class Refining:
    """A report in the making.

    problems:      that are planned or measured
    measured_here: recorded results are shown beside those of the store, until they are measured
    """

    session: Session
    problems: Sequence[Problem]
    measured_here: bool
    plan: Sequence[Planned] = ()
    checks: Sequence[CheckRow] = ()
    _written: float = field(default=0.0, init=False)

    def document(self) -> Document:
        """Return the report of what is known now.

        Raises:
            StoreError: a result file is damaged, of another GPU, or contradicts itself.
        """
        from ferrum_numba.report import document

        return document(self._sources())

    def reached(self) -> list[Reached]:
        """Return what became of each target, of what is known now."""
        from ferrum_numba.report import reached

        return reached(self._sources())

    def write(self) -> list[Path]:
        """Write what is known now over what was written before; a reader never sees a part."""
        paths = self._writer.write(self.document())
        self._written = time.monotonic()
        return paths

    def write_if_due(self) -> None:
        """Write it if the last time is a minute ago."""
        if time.monotonic() - self._written > EVERY_S:
            self.write()

    def watching(self, bar: Progress, op: Op) -> Progress:
        """Return a bar that writes the report whenever it is due, with an Op's rows so far."""

        def report(done: int, total: int, text: str = "") -> None:
            bar(done, total, text)
            if time.monotonic() - self._written > EVERY_S:
                self._write_if_possible(op)

        return report

    def _write_if_possible(self, op: Op) -> None:
        """Write the report, or say why not: what is being measured is worth more than a page."""
        from ferrum_numba.results.store import NAME, Store

        path = self.session.store_path(self.session.gpu.key, op.name)
        try:
            if (path.parent / NAME).exists():
                with Store(path.parent / NAME) as store:
                    store.write_file(path, (op.name,))
            self.write()
        except StoreError as error:
            self._written = time.monotonic()
            say(f"the report waits: {error}")

    @cached_property
    def _writer(self) -> Writer:
        from ferrum_numba.report import Writer

        return Writer(self.session.args.out)

    def _sources(self) -> Sources:
        from ferrum_numba.report import Sources, checked_results

        session, args = self.session, self.session.args
        files, kept = self._files()
        return Sources(
            list(files.values()), kept, self.plan, self.checks, session.peers,
            asdict(session.gpu) if self.plan else None, self._asked(), self._defaults(files),
            (args.compare, checked_results(args.compare)) if args.compare else None,
            frozenset(k.op.name for k in session.kernels if self.measured_here), self._targets,
        )  # fmt: skip

    @cached_property
    def _targets(self) -> tuple[str, list[Target]] | None:
        from ferrum_numba.results.targets import load_targets

        given = self.session.args.targets
        if not given:
            return None
        path = shipped.targets_path() if given is True else Path(given)
        return path.name if given is True else str(given), load_targets(path)

    def _files(self) -> tuple[dict[str, ResultFile], list[ResultFile]]:
        """Return results by file name, and ceilings; the store's before those that ship."""
        from ferrum_numba.report import checked_results
        from ferrum_numba.results import merge

        session, key = self.session, self.session.gpu.key
        ops = {kernel.op.name for kernel in session.ceilings}
        known = {kernel.op.name for kernel in session.kernels}
        found: dict[str, ResultFile] = {}
        kept: list[ResultFile] = []
        for path in session.result_paths(key, both=self.measured_here):
            file = checked_results(path, key, path.stem if path.stem in known else None)
            if is_of_ceilings(path) or (ops and {row.op for row in file.rows} <= ops):
                kept.append(file)
            elif path.stem in found:
                found[path.stem] = merge(found[path.stem], file)
            else:
                found[path.stem] = file
        return found, kept

    def _asked(self) -> Any:
        from ferrum_numba.report import Asked
        from ferrum_numba.results.row import problem_key

        args = self.session.args
        problems = self.problems if args.problem or args.m else ()
        keys = frozenset(problem_key(describe(problem)) for problem in problems)
        return Asked(frozenset(args.kernel), keys)

    def _defaults(self, files: Mapping[str, ResultFile]) -> dict[Any, Mapping[str, Any]]:
        """Return each kernel's default config on every problem that it was measured on."""
        kernels = {kernel.name: kernel for kernel in self.session.kernels}
        found = {}
        for row in (row for file in files.values() for row in file.rows):
            kernel = kernels.get(row.kernel)
            if kernel is not None and kernel.op.name == row.op:
                key, config = self._default(kernel, row)
                found[row.kernel, key] = config
        return {about: config for about, config in found.items() if config}

    def _default(self, kernel: Kernel, row: Row) -> tuple[Any, Mapping[str, Any]]:
        from ferrum_numba.results.row import problem_key

        key = problem_key(row.problem)
        if (kernel.name, key) not in self._known:
            self._known[kernel.name, key] = _default_of(kernel, row.problem, self.session.gpu)
        return key, self._known[kernel.name, key]

    @cached_property
    def _known(self) -> dict[Any, Mapping[str, Any]]:
        return {}


def _default_of(kernel: Kernel, problem: Mapping[str, Any], facts: gpu.Gpu) -> Mapping[str, Any]:
    """Return a kernel's default; nothing for a problem of before, or that it no longer runs."""
    try:
        found = kernel.op.problem(**problem)
        return {} if kernel.refuses(found) else describe(kernel.default(found, facts))
    except (TypeError, ValueError):
        return {}


def measure(refining: Refining) -> int:
    """Measure into the store, the report following; 1 where a candidate is wrong."""
    session = refining.session
    make_folder(session.store / session.gpu.key)
    refining.write()
    say(f"what is known is in {session.args.out}; it is refined as rows come")
    try:
        refining.plan = _quick_plan(refining)
        refining.write()
        _measure_ceilings(refining)
        files = [file for _, file in tuned(session, refining.problems, watch=refining.watching)]
    except KeyboardInterrupt:
        refining.write()
        raise
    return WRONG if any(row.status == "wrong" for file in files for row in file.rows) else 0


def _quick_plan(refining: Refining) -> list[Planned]:
    """Return the likeliest config of each kernel and problem, compiled; nothing if it takes long.

    What was compiled is kept, and is found the next time.
    """
    from ferrum_numba.tune import plan

    session, end = refining.session, time.monotonic() + PLAN_S

    def in_time(done: int, total: int, text: str = "") -> None:
        bar(done, total, text)
        if time.monotonic() > end:
            raise _LateError

    try:
        with progress("plan") as bar:
            rows = plan(session.kernels, refining.problems, session.gpu, limit=1, progress=in_time)
    except _LateError:
        say(f"the plan is left out: it takes more than {PLAN_S:.0f} s")
        return []
    return [row for row in rows if row.registers is not None]


def _measure_ceilings(refining: Refining) -> None:
    """Measure the board's ceilings but those of the last day: all in a burst, then sustained."""
    kept = Kept.of(refining.session)
    for op, kernels in kept.ops:
        if refining.session.args.ceilings or not kept.fresh(op):
            kept.merge(ceilings(replace(refining.session, ceilings=tuple(kernels))))
            refining.write_if_due()
    for op, kernels in kept.ops:
        kept.sustain(op, kernels)
        refining.write_if_due()
    refining.write()
