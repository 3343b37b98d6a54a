"""The exhaustive search: build everything, then check and time what fits, one problem at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba.compile import Binary, blocks_per_sm
from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.errors import BuildError
from ferrum_numba.launch import lacking
from ferrum_numba.results import Row, median_interval
from ferrum_numba.results.row import FINAL, MEASURED
from ferrum_numba.tune.exclusive import compute_processes, exclusive
from ferrum_numba.tune.memory import Memory
from ferrum_numba.tune.model import bound_us
from ferrum_numba.tune.space import (
    Binaries,
    Progress,
    build_space,
    concerns,
    does_not_fit,
    feasible,
    silent,
)
from ferrum_numba.tune.worker import RUN_TIMEOUT_S, Candidate, Measurer, Outcome, Worker

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu
    from ferrum_numba.measure import Policy

FINALISTS = 3
SEED = 0
# recorded ceilings are another run's: a board may be that much faster
RECORDED_SLACK = 1.05


@dataclass(frozen=True)
class SearchTask:
    """What to search.

    limit:     most configs a kernel and problem, half of them the likeliest; None for all
    untrusted: why no row of this run may be believed, if there is a reason
    """

    kernels: Sequence[Kernel]
    problems: Sequence[Problem]
    gpu: Gpu
    policy: Policy
    store_path: Path
    limit: int | None = None
    regime: str = "cold"
    untrusted: str = ""


def tune(
    kernels: Sequence[Kernel],
    problems: Sequence[Problem],
    gpu: Gpu,
    *,
    policy: Policy,
    store_path: str | Path,
    limit: int | None = None,
    regime: str = "cold",
    timeout_s: float = RUN_TIMEOUT_S,
    progress: Progress = silent,
) -> list[Row]:
    """Check and time every config on the GPU; return and store a row for each.

    Rows that the store has of the same program, policy and GPU are not measured again. What was
    measured is stored after each problem, and when the search is interrupted.

    Args:
        limit:     most configs a kernel and problem, half of them the likeliest; None for all
        timeout_s: for checking and timing one config, before its process is ended

    Raises:
        DeviceError: no GPU, or another process is measuring on it.
        StoreError:  the file at `store_path` is no result file.
    """
    # what opens a GPU is loaded where a GPU is opened
    from ferrum_numba.tune.measurer import GpuMeasurer

    with exclusive(gpu):
        others = compute_processes(gpu.uuid)
        untrusted = f"{others} other processes computed on the GPU" if others else ""
        task = SearchTask(
            kernels, problems, gpu, policy, Path(store_path), limit, regime, untrusted
        )
        with Worker(partial(GpuMeasurer, policy), timeout_s) as worker:
            return search(task, worker, progress)


def search(
    task: SearchTask,
    measurer: Measurer,
    progress: Progress = silent,
    *,
    memory: Memory | None = None,
    binaries: Binaries | None = None,
) -> list[Row]:
    """Search with a given measurer; `tune` says the rest.

    Args:
        memory:   where to keep the rows, for whoever gives it to write; the task's store if None
        binaries: every program of the space; compiled if None
    """
    if memory is not None:
        return _search(task, measurer, progress, memory, binaries)
    with closing(Memory(task)) as own:
        try:
            return _search(task, measurer, progress, own, binaries)
        finally:
            # what was measured is in the store; the file is for everybody else
            own.write()


def programs(task: SearchTask) -> list[tuple[Kernel, Config]]:
    """Return the configs whose programs a task needs, one for each problem."""
    return [(kernel, config) for kernel, _, configs in _space(task) for config in configs]


def _space(task: SearchTask) -> list[tuple[Kernel, Problem, list[Config]]]:
    return [
        (kernel, problem, feasible(kernel, problem, task.gpu, task.limit)[0])
        for kernel in task.kernels
        for problem in task.problems
        if concerns(kernel, problem)
    ]


def _search(
    task: SearchTask,
    measurer: Measurer,
    progress: Progress,
    memory: Memory,
    binaries: Binaries | None,
) -> list[Row]:
    space = _space(task)
    pairs = [(kernel, config) for kernel, _, configs in space for config in configs]
    if binaries is None:
        binaries = build_space(pairs, task.gpu.arch, progress)
    # the library has no version of its own to ask: the PTX it writes says which toolkit's it is
    memory.environment["versions"]["nvvm"] = _nvvm(binaries)
    run = _Run(task, measurer, memory, binaries, progress, len(pairs))
    configs = {(kernel.name, problem): found for kernel, problem, found in space}
    found: list[Row] = []
    for problem in task.problems:
        wanted = [
            (k, configs[k.name, problem]) for k in task.kernels if (k.name, problem) in configs
        ]
        found += run.problem(problem, wanted)
    return found


@dataclass
class _Run:
    """One search under way."""

    task: SearchTask
    measurer: Measurer
    store: Memory
    binaries: Binaries
    progress: Progress
    total: int
    done: int = field(default=0, init=False)

    def problem(
        self, problem: Problem, wanted: Sequence[tuple[Kernel, Sequence[Config]]]
    ) -> list[Row]:
        """Measure every config of a problem, then its best in turn; store the rows.

        What is measured is stored at once, what else is known of the problem at its end.
        """
        rows: list[Row] = []
        try:
            for row in self._rows(problem, wanted):
                rows.append(row)
            rows = self._final(rows, problem)
        finally:
            self.store.add(rows)
        return rows

    def _rows(
        self, problem: Problem, wanted: Sequence[tuple[Kernel, Sequence[Config]]]
    ) -> Iterator[Row]:
        for kernel, configs in wanted:
            # a kernel is compared with itself: a slower design still gets its best time in full
            best_us: float | None = None
            refusal = kernel.refuses(problem)
            if refusal:
                yield self._blank(kernel, None, problem, "refused", refusal)
            for config in configs:
                self.done += 1
                self.progress(self.done, self.total, f"{kernel.name} {problem}")
                row = self._row(kernel, config, problem, best_us)
                if row.status == MEASURED:
                    best_us = min(best_us or row.us, row.us)
                yield row

    def _row(self, kernel: Kernel, config: Config, problem: Problem, best_us: float | None) -> Row:
        binary = self.binaries[kernel.name, config]
        if isinstance(binary, BuildError):
            return self._blank(kernel, config, problem, "build failed", str(binary))
        misfit = does_not_fit((kernel, config, problem), binary, self.task.gpu)
        reason = lacking(kernel) or misfit or ""
        row = self._blank(kernel, config, problem, "pruned", reason)
        row = replace(row, **_resources(binary, self.task.gpu))
        if reason:
            return row
        known = self.store.known(row)
        if known:
            return known
        candidate = Candidate(kernel, config, problem, binary, self.task.regime)
        row = self._filled(row, self.measurer.run(candidate, best_us))
        self.store.add([row])
        return row

    def _blank(
        self, kernel: Kernel, config: Config | None, problem: Problem, status: str, reason: str
    ) -> Row:
        """Return a row of everything that is known without measuring."""
        work = kernel.op.work(problem)
        return Row(
            kernel.name, kernel.op.name, describe(problem),
            {} if config is None else describe(config), self.task.gpu.arch, self.task.regime,
            flops=work.flops, bytes=work.bytes, bound_us=bound_us(work, self.task.gpu),
            status=status, reason=reason, seed=SEED, run=self.store.run,
            untrusted=self.task.untrusted,
        )  # fmt: skip

    def _filled(self, row: Row, outcome: Outcome) -> Row:
        row = replace(
            row, status=outcome.status, reason=outcome.reason,
            rel_error=_number(outcome.rel_error), max_error=_number(outcome.max_error),
            ok=outcome.status in (MEASURED, "slow"), stage="full",
        )  # fmt: skip
        return self._timed(row, outcome) if outcome.us else row

    def _timed(self, row: Row, outcome: Outcome) -> Row:
        """Return a row with the times of an outcome, and what was seen of the board meanwhile."""
        row = replace(_with_times(row, outcome.us), more={**row.more, **outcome.extra})
        slack = RECORDED_SLACK if self.task.gpu.source == "recorded" else 1.0
        # what no weights were rotated for may be served by L2
        if not outcome.rotated or row.us * slack >= row.bound_us:
            return row
        reason = (
            f"{row.us:.4g} us is less than the {row.bound_us:.4g} us that {row.bytes} bytes and "
            f"{row.flops} FLOPs need on {self.task.gpu.name}: the work is overstated or the "
            "weights were not cold"
        )
        return replace(row, ok=False, status="wrong", reason=reason)

    def _final(self, rows: Sequence[Row], problem: Problem) -> list[Row]:
        """Return the rows, the best of them timed in turn: a drift of the clocks touches all."""
        timed = _finalists(rows)
        if len(timed) < 2 or all(rows[i].stage == FINAL for i in timed):
            return list(rows)
        candidates = [self._candidate(rows[i], problem) for i in timed]
        outcomes = self.measurer.final(candidates)
        found = list(rows)
        for i, outcome in zip(timed, outcomes or (), strict=False):
            found[i] = replace(self._timed(rows[i], outcome), stage=FINAL, run=self.store.run)
        return found

    def _candidate(self, row: Row, problem: Problem) -> Candidate:
        kernel = next(kernel for kernel in self.task.kernels if kernel.name == row.kernel)
        config = kernel.config(**row.config)
        binary = self.binaries[kernel.name, config]
        assert isinstance(binary, Binary), "a row was measured with it"
        return Candidate(kernel, config, problem, binary, self.task.regime)


def _finalists(rows: Sequence[Row]) -> list[int]:
    """Return the places of the best rows, and of the best of every kernel: a table shows them."""
    heats = [i for i, row in enumerate(rows) if row.status == MEASURED]
    heats.sort(key=lambda i: rows[i].us)
    leaders = {rows[i].kernel: i for i in reversed(heats)}
    return list(dict.fromkeys([*heats[:FINALISTS], *leaders.values()]))


def _nvvm(binaries: Binaries) -> str | None:
    texts = (binary.ptx for binary in binaries.values() if isinstance(binary, Binary))
    found = (re.search(r"Cuda compilation tools, (.+)", text) for text in texts)
    return next((match[1] for match in found if match), None)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _resources(binary: Binary, gpu: Gpu) -> dict[str, Any]:
    return {
        "registers": binary.registers,
        "spill_bytes": binary.spill_bytes,
        "smem_bytes": binary.smem_bytes,
        "blocks_per_sm": blocks_per_sm(binary, gpu),
        "source_hash": binary.fingerprint,
    }


def _with_times(row: Row, us: Sequence[float]) -> Row:
    """Return a row with its times and what follows from them."""
    assert row.bytes is not None
    assert row.flops is not None
    median, low, high = median_interval(us)
    return replace(
        row, us=median, us_low=low, us_high=high, samples=tuple(us),
        gbps=row.bytes / median / 1e3, tflops=row.flops / median / 1e6,
        fraction=row.bound_us / median,
    )  # fmt: skip
