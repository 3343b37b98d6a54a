"""One search under way: the heats of a problem and its final, and what becomes of their rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from ferrum_numba.compile import Binary
from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.errors import BuildError
from ferrum_numba.launch import lacking
from ferrum_numba.results import Row, rank
from ferrum_numba.results.row import problem_key
from ferrum_numba.results.winners import counts
from ferrum_numba.tune.budget import Deadline
from ferrum_numba.tune.finals import contest, due, finalists
from ferrum_numba.tune.heats import Entry, Heats
from ferrum_numba.tune.memory import Memory
from ferrum_numba.tune.model import estimate_us
from ferrum_numba.tune.rows import RowMaker
from ferrum_numba.tune.searchers import make_searcher, settled
from ferrum_numba.tune.space import Binaries, Progress, does_not_fit
from ferrum_numba.tune.worker import Ahead, Candidate, Measurer

if TYPE_CHECKING:
    from ferrum_numba.tune.search import SearchTask

# of a problem's time what the heats may take; the rest is for the final, which decides
HEATS_SHARE = 0.4
# of a final with a deadline, at least
MOST_ROUNDS = 256
# problems whose operands are made while another is measured
AHEAD = 16
# what takes so much longer than the best of the heats is in no final, unless it must be
FAR = 2.0


class Run:
    """Measures one problem after the other."""

    def __init__(
        self,
        task: SearchTask,
        measurer: Measurer,
        memory: Memory,
        binaries: Binaries,
        progress: Progress,
        space: Sequence[tuple[Kernel, Problem, Sequence[Config]]],
    ) -> None:
        """Set what is searched.

        Args:
            space: configs of each kernel on each problem
        """
        self.task, self.measurer, self.memory = task, measurer, memory
        self.binaries, self._progress = binaries, progress
        self._space = {(kernel.name, problem): configs for kernel, problem, configs in space}
        self._total = sum(len(configs) for _, _, configs in space)
        self._done = 0
        self._make = RowMaker(task.gpu, task.regime, memory.run, task.untrusted, task.factors)
        self._incumbents = _incumbents([*task.earlier, *memory.rows()], task.regime)

    def problem(
        self, problem: Problem, deadline: Deadline, later: Sequence[Problem] = ()
    ) -> list[Row]:
        """Measure configs of a problem, then its best in turn; store the rows.

        What is measured is stored at once, what else is known of the problem at its end.

        Args:
            deadline: of this problem
            later:    those after it, to be made ready for
        """
        kernels = [k for k in self.task.kernels if (k.name, problem) in self._space]
        refused = [
            self._make.blank(kernel, None, problem, "refused", reason)
            for kernel in kernels
            if (reason := kernel.refuses(problem))
        ]
        entries = [self._entry(kernel, problem) for kernel in kernels]
        self._expect([problem, *later[:AHEAD]], entries)
        rows: list[Row] = []
        try:
            heats = Heats(
                problem, entries, self._heat, deadline.share(HEATS_SHARE).passed,
                self._good_enough_us(kernels, problem),
            )  # fmt: skip
            heats.run()
            rows = self._final(refused + _in_order(entries), entries, problem, deadline)
        finally:
            self.memory.add(rows or refused + _in_order(entries))
            self._pass_over(problem, entries)
        return rows

    def _entry(self, kernel: Kernel, problem: Problem) -> Entry:
        """Return a kernel's configs in their order, with rows of those that cannot run."""
        rows, runs = {}, []
        for config in self._space[kernel.name, problem]:
            row = self._before(kernel, config, problem)
            if row.reason:
                rows[config] = row
                self._step(kernel, problem)
            else:
                runs.append(config)
        first = self._first(kernel, problem, runs)
        name = settled(self.task.searcher, len(runs))
        expected = {config: self._expected_us(kernel, config, problem) for config in runs}
        if name != "exhaustive":
            runs = sorted(runs, key=lambda config: expected[config])
        likeliest_us = min(expected.values(), default=math.inf)
        space = self._space[kernel.name, problem]
        return Entry(kernel, space, runs, first, make_searcher(name, runs), likeliest_us, rows)

    def _first(self, kernel: Kernel, problem: Problem, runs: Sequence[Config]) -> list[Config]:
        """Return the default and the incumbent, where they are in the space."""
        if not runs:
            return []
        incumbent = self._incumbents.get((kernel.name, problem_key(describe(problem))))
        wanted = [kernel.default(problem, self.task.gpu), _config(kernel, incumbent)]
        return [config for config in dict.fromkeys(wanted) if config in runs]

    def _expected_us(self, kernel: Kernel, config: Config, problem: Problem) -> float:
        known = self.task.estimates.get((kernel.name, problem, config))
        binary = self.binaries[kernel.name, config]
        assert isinstance(binary, Binary), "what did not compile does not run"
        return known or estimate_us(kernel, config, problem, self.task.gpu, binary)

    def _before(self, kernel: Kernel, config: Config, problem: Problem) -> Row:
        """Return what is known of a candidate before it is measured, with a reason if it cannot."""
        binary = self.binaries[kernel.name, config]
        if isinstance(binary, BuildError):
            return self._make.blank(kernel, config, problem, "build failed", str(binary))
        misfit = does_not_fit((kernel, config, problem), binary, self.task.gpu)
        reason = lacking(kernel) or misfit or ""
        row = self._make.blank(kernel, config, problem, "pruned", reason)
        return self._make.built(row, binary)

    def _heat(self, kernel: Kernel, config: Config, problem: Problem, best_us: float | None) -> Row:
        self._step(kernel, problem)
        row = self._before(kernel, config, problem)
        known = self.memory.known(row)
        if known:
            return known
        with self.task.held.doing("heats"):
            outcome = self.measurer.run(self._candidate(kernel, config, problem), best_us)
        self.task.held.add("heats", outcome.extra)
        row = self._make.heat(row, outcome, self._roof_us(kernel, problem))
        self.memory.add([row])
        return row

    def _final(
        self, rows: list[Row], entries: Sequence[Entry], problem: Problem, deadline: Deadline
    ) -> list[Row]:
        """Return the rows, the best of them timed in turn: a drift of the clocks touches all."""
        timed = self._finalists(rows, entries)
        if len(timed) < 2 or not (self.task.again or due(rows, timed)):
            return rows
        kernels = {entry.kernel.name: entry.kernel for entry in entries}
        candidates = []
        for i in timed:
            kernel = kernels[rows[i].kernel]
            candidates.append(self._candidate(kernel, kernel.config(**rows[i].config), problem))
        policy = self.task.policy
        if not math.isinf(deadline.at):
            # there is time that is nobody else's: it goes into evidence
            policy = replace(policy, most_rounds=max(policy.most_rounds, MOST_ROUNDS))
        with self.task.held.doing("finals"):
            outcomes = contest(self.measurer, candidates, policy, deadline.passed)
        found = list(rows)
        for i, one, outcome in zip(timed, candidates, outcomes, strict=False):
            self.task.held.add("finals", outcome.extra)
            found[i] = self._make.final(rows[i], outcome, self._roof_us(one.kernel, problem))
        return found

    def _finalists(self, rows: Sequence[Row], entries: Sequence[Entry]) -> list[int]:
        """Return who meets: the best, and of the leading kernel the default and the incumbent."""
        leading = min(entries, key=lambda entry: entry.best_us or math.inf, default=None)
        if leading is None or leading.best_us is None:
            return []
        always = {leading.rows[config].key for config in leading.first if config in leading.rows}
        most_us = FAR * leading.best_us
        return [
            i for i in finalists(rows, always) if rows[i].us <= most_us or rows[i].key in always
        ]

    def _candidate(self, kernel: Kernel, config: Config, problem: Problem) -> Candidate:
        binary = self.binaries[kernel.name, config]
        assert isinstance(binary, Binary), "what did not compile is not measured"
        return Candidate(kernel, config, problem, binary, self.task.regime)

    def _expect(self, problems: Sequence[Problem], entries: Sequence[Entry]) -> None:
        """Have the operands of problems made while another is measured."""
        if not isinstance(self.measurer, Ahead):
            return
        for problem in problems:
            kernels = [k for k in self.task.kernels if self._space.get((k.name, problem))]
            if any(self._unknown(kernel, problem) for kernel in kernels):
                self.measurer.expect(kernels, problem)
        # a GPU that is not held yet is not held for this
        with self.task.held.doing("waiting") if self.task.held.held_s else nullcontext():
            self.measurer.ready(problems[0])

    def _unknown(self, kernel: Kernel, problem: Problem) -> bool:
        """Tell whether the store lacks the row of a kernel's likeliest config."""
        config = self._space[kernel.name, problem][0]
        row = self._before(kernel, config, problem)
        return not row.reason and self.memory.known(row) is None

    def _good_enough_us(self, kernels: Sequence[Kernel], problem: Problem) -> float:
        if self.task.within is None or not kernels:
            return 0.0
        return self._roof_us(kernels[0], problem) * (1 + self.task.within)

    def _roof_us(self, kernel: Kernel, problem: Problem) -> float:
        """Return what the board's measured ceilings leave for a problem; 0 where there are none."""
        return self.task.roof_us(kernel, problem) if self.task.roof_us else 0.0

    def _step(self, kernel: Kernel, problem: Problem) -> None:
        self._done += 1
        self._progress(self._done, self._total, f"{kernel.name} {problem}")

    def _pass_over(self, problem: Problem, entries: Sequence[Entry]) -> None:
        """Count what was not measured as done with."""
        left = sum(len(entry.configs) - entry.num_timed for entry in entries)
        if left > 0:
            self._done += left
            self._progress(self._done, self._total, str(problem))


def _in_order(entries: Sequence[Entry]) -> list[Row]:
    return [e.rows[config] for e in entries for config in e.space if config in e.rows]


def _incumbents(rows: Sequence[Row], regime: str) -> dict[tuple[str, object], Mapping[str, object]]:
    """Return the config that was the best of each kernel on each problem, whatever its age."""
    best: dict[tuple[str, object], Row] = {}
    for row in rows:
        place = (row.kernel, problem_key(row.problem))
        if counts(row) and row.regime == regime:
            best[place] = min(best.get(place, row), row, key=rank)
    return {place: row.config for place, row in best.items()}


def _config(kernel: Kernel, fields: Mapping[str, object] | None) -> Config | None:
    """Return a stored config, None where the kernel no longer has such a one."""
    try:
        return None if fields is None else kernel.config(**fields)
    except (TypeError, ValueError):
        return None
