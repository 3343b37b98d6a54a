"""The exhaustive search: build everything, then check and time what fits, one problem at a time."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba import results
from ferrum_numba.compile import Binary, blocks_per_sm
from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.errors import BuildError
from ferrum_numba.launch import lacking
from ferrum_numba.measure import median_interval, read_clocks
from ferrum_numba.results import ResultFile, Row
from ferrum_numba.tune.exclusive import compute_processes, exclusive
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
class Task:
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
        task = Task(kernels, problems, gpu, policy, Path(store_path), limit, regime, untrusted)
        with Worker(partial(GpuMeasurer, policy), timeout_s) as worker:
            return search(task, worker, progress)


def search(task: Task, measurer: Measurer, progress: Progress = silent) -> list[Row]:
    """Search with a given measurer; `tune` says the rest."""
    store = _Store(task)
    configs = {
        (kernel.name, problem): feasible(kernel, problem, task.gpu, task.limit)[0]
        for kernel in task.kernels
        for problem in task.problems
        if concerns(kernel, problem)
    }
    pairs = [
        (k, c) for k in task.kernels for p in task.problems for c in configs.get((k.name, p), ())
    ]
    binaries = build_space(pairs, task.gpu.arch, progress)
    # the library has no version of its own to ask: the PTX it writes says which toolkit's it is
    store.file.environment["versions"]["nvvm"] = _nvvm(binaries)
    run = _Run(task, measurer, store, binaries, progress, len(pairs))
    found: list[Row] = []
    for problem in task.problems:
        wanted = [
            (k, configs[k.name, problem]) for k in task.kernels if (k.name, problem) in configs
        ]
        found += run.problem(problem, wanted)
    return found


class _Store:
    """The result file of a task: what is in it already, and how new rows get there."""

    def __init__(self, task: Task) -> None:
        self.path = task.store_path
        clocks = asdict(read_clocks(task.gpu.uuid))
        now = results.environment(task.gpu, task.policy, sys.argv, clocks=clocks)
        self.file = ResultFile(now)
        if task.untrusted:
            self.file.environment["untrusted"] = task.untrusted
        if self.path.exists():
            self.file = results.merge(results.load(self.path), self.file)
        self._usable = {results.key(row): row for row in self.file.rows if self._same_run(row)}

    @property
    def run(self) -> str:
        """The date that names this run."""
        date: str = self.file.environment["date"]
        return date

    def known(self, wanted: Row) -> Row | None:
        """Return the stored row of the same program, measured the same way on the same GPU."""
        row = self._usable.get(results.key(wanted))
        return row if row and row["source_hash"] == wanted["source_hash"] else None

    def add(self, rows: Sequence[Row]) -> None:
        """Put rows into the file, in place of older ones."""
        if rows:
            new = ResultFile(self.file.environment, list(rows))
            self.file = results.merge(self.file, new)
            results.save(self.path, self.file)

    def _same_run(self, row: Row) -> bool:
        if row.get("untrusted"):
            return False
        then, now = self.file.environment_of(row), self.file.environment
        return then["uuid"] == now["uuid"] and results.same(then["policy"], now["policy"])


@dataclass
class _Run:
    """One search under way."""

    task: Task
    measurer: Measurer
    store: _Store
    binaries: Binaries
    progress: Progress
    total: int
    done: int = field(default=0, init=False)

    def problem(
        self, problem: Problem, wanted: Sequence[tuple[Kernel, Sequence[Config]]]
    ) -> list[Row]:
        """Measure every config of a problem, then its best in turn; store the rows."""
        rows: list[Row] = []
        try:
            for row in self._rows(problem, wanted):
                rows.append(row)
            self._final(rows, problem)
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
                if row["status"] == "measured":
                    best_us = min(best_us or row["us"], row["us"])
                yield row

    def _row(self, kernel: Kernel, config: Config, problem: Problem, best_us: float | None) -> Row:
        binary = self.binaries[kernel.name, config]
        if isinstance(binary, BuildError):
            return self._blank(kernel, config, problem, "build failed", str(binary))
        row = self._blank(kernel, config, problem, "pruned", "")
        row.update(_resources(binary, self.task.gpu))
        misfit = does_not_fit((kernel, config, problem), binary, self.task.gpu)
        row["reason"] = lacking(kernel) or misfit or ""
        if row["reason"]:
            return row
        known = self.store.known(row)
        if known:
            return known
        candidate = Candidate(kernel, config, problem, binary, self.task.regime)
        self._fill(row, self.measurer.run(candidate, best_us))
        return row

    def _blank(
        self, kernel: Kernel, config: Config | None, problem: Problem, status: str, reason: str
    ) -> Row:
        """Return a row of everything that is known without measuring."""
        work = kernel.op.work(problem)
        return {
            "kernel": kernel.name, "op": kernel.op.name, "problem": describe(problem),
            "config": {} if config is None else describe(config), "arch": self.task.gpu.arch,
            "regime": self.task.regime, "us": None, "us_low": None, "us_high": None, "samples": [],
            "gbps": None, "tflops": None, "flops": work.flops, "bytes": work.bytes,
            "bound_us": bound_us(work, self.task.gpu), "fraction": None, "rel_error": None,
            "max_error": None, "ok": False, "status": status, "reason": reason, "registers": None,
            "spill_bytes": None, "smem_bytes": None, "blocks_per_sm": None, "source_hash": "",
            "seed": SEED, "stage": "", "run": self.store.run, "untrusted": self.task.untrusted,
        }  # fmt: skip

    def _fill(self, row: Row, outcome: Outcome) -> None:
        row.update(
            status=outcome.status, reason=outcome.reason,
            rel_error=outcome.rel_error, max_error=outcome.max_error,
            ok=outcome.status in ("measured", "slow"), stage="full",
        )  # fmt: skip
        if outcome.us:
            self._fill_time(row, outcome)

    def _fill_time(self, row: Row, outcome: Outcome) -> None:
        _time(row, outcome.us)
        row.update(outcome.extra)
        slack = RECORDED_SLACK if self.task.gpu.source == "recorded" else 1.0
        # what no weights were rotated for may be served by L2
        if outcome.rotated and row["us"] * slack < row["bound_us"]:
            row.update(ok=False, status="wrong", reason=(
                f"{row['us']:.4g} us is less than the {row['bound_us']:.4g} us that {row['bytes']} "
                f"bytes and {row['flops']} FLOPs need on {self.task.gpu.name}: the work is "
                "overstated or the weights were not cold"
            ))  # fmt: skip

    def _final(self, rows: Sequence[Row], problem: Problem) -> None:
        """Time the best rows in turn, so that a drift of the clocks touches all alike."""
        heats = sorted((row for row in rows if row["status"] == "measured"), key=_us)
        # and the best of every kernel, which its column in a table will show
        leaders = {row["kernel"]: row for row in reversed(heats)}
        timed = heats[:FINALISTS]
        timed += [row for row in leaders.values() if all(row is not one for one in timed)]
        if len(timed) < 2 or all(row.get("stage") == "final" for row in timed):
            return
        kernels = {kernel.name: kernel for kernel in self.task.kernels}
        candidates = []
        for row in timed:
            kernel = kernels[row["kernel"]]
            config = kernel.config(**row["config"])
            binary = self.binaries[kernel.name, config]
            assert isinstance(binary, Binary), "a row was measured with it"
            candidates.append(Candidate(kernel, config, problem, binary, self.task.regime))
        outcomes = self.measurer.final(candidates)
        for row, outcome in zip(timed, outcomes or (), strict=False):
            self._fill_time(row, outcome)
            row.update(stage="final", run=self.store.run)


def _nvvm(binaries: Binaries) -> str | None:
    texts = (binary.ptx for binary in binaries.values() if isinstance(binary, Binary))
    found = (re.search(r"Cuda compilation tools, (.+)", text) for text in texts)
    return next((match[1] for match in found if match), None)


def _us(row: Row) -> float:
    us: float = row["us"]
    return us


def _resources(binary: Binary, gpu: Gpu) -> dict[str, Any]:
    return {
        "registers": binary.registers,
        "spill_bytes": binary.spill_bytes,
        "smem_bytes": binary.smem_bytes,
        "blocks_per_sm": blocks_per_sm(binary, gpu),
        "source_hash": binary.fingerprint,
    }


def _time(row: Row, us: Sequence[float]) -> None:
    """Fill in a row's times and what follows from them."""
    median, low, high = median_interval(us)
    row.update(
        us=median, us_low=low, us_high=high, samples=list(us),
        gbps=row["bytes"] / median / 1e3, tflops=row["flops"] / median / 1e6,
        fraction=row["bound_us"] / median,
    )  # fmt: skip
