"""Recorded landscapes, searched again without a GPU: what each way of searching would have found.

A landscape is what was measured of one kernel on one problem. Nothing is known of its other
configs, so a searcher chooses among those that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from ferrum_numba.compile import Binary
from ferrum_numba.contract import Config, Kernel, Launch, Problem, Program, describe
from ferrum_numba.measure import Policy
from ferrum_numba.results import Row
from ferrum_numba.results.row import FINAL, MEASURED, problem_key
from ferrum_numba.results.winners import rounds_of
from ferrum_numba.tune.expected import heat_s
from ferrum_numba.tune.model import ranked
from ferrum_numba.tune.search import SearchTask, search
from ferrum_numba.tune.searchers import make_searcher
from ferrum_numba.tune.space import Binaries
from ferrum_numba.tune.worker import Candidate, Outcome

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

# the searcher that measures nothing else
DEFAULT = "default"
# landscapes of fewer configs say nothing of a search
FEWEST = 3
# a difference that does not matter
TIE = 0.01
# threads of a block where a config does not say
USUAL_THREADS = 128


@dataclass(frozen=True)
class Landscape:
    """What was measured of a kernel on a problem.

    us: the time of each config, in the order of the kernel's space
    """

    kernel: Kernel
    problem: Problem
    us: Mapping[Config, float]

    @property
    def best_us(self) -> float:
        """The least time."""
        return min(self.us.values())

    @property
    def about(self) -> dict[str, Any]:
        """The problem's fields by name."""
        return describe(self.problem)


@dataclass(frozen=True)
class Found:
    """What a way of searching finds of the optimum, over landscapes of one kernel.

    searcher, kernel: their names; searcher "default" measures nothing but the default
    budget:     measurements for each problem, the default's among them; 0 for no limit
    landscapes: how many there are
    measured:   the mean number of measurements
    gpu_s:      about how long a GPU would be held for them, a problem
    mean, worst: by what part the best that was found is slower than the best there is
    within_1:   the part of the landscapes where that is no more than 1 %
    """

    searcher: str
    kernel: str
    budget: int
    landscapes: int
    measured: float
    gpu_s: float
    mean: float
    worst: float
    within_1: float


def landscapes(rows: Iterable[Row], kernels: Sequence[Kernel], gpu: Gpu) -> list[Landscape]:
    """Return what rows say of kernels, of configs that the kernels still have, in cold time.

    Of a config that was measured more than once, and in finals, the last counts.
    """
    named = {kernel.name: kernel for kernel in kernels}
    found: dict[tuple[str, Any], dict[Config, float]] = {}
    places: dict[tuple[str, Any], tuple[Kernel, Problem]] = {}
    for row in rows:
        kernel = named.get(row.kernel)
        if kernel is None or row.peer or row.regime != "cold" or not row.ok or math.isnan(row.us):
            continue
        read = stored_candidate(kernel, row)
        if read is not None:
            key = (kernel.name, problem_key(describe(read[0])))
            places[key] = (kernel, read[0])
            found.setdefault(key, {})[read[1]] = row.us
    every = []
    for key, (kernel, problem) in places.items():
        us = {c: found[key][c] for c in kernel.fitting(problem, gpu) if c in found[key]}
        if len(us) >= FEWEST:
            every.append(Landscape(kernel, problem, us))
    return every


def stored_candidate(kernel: Kernel, row: Row) -> tuple[Problem, Config] | None:
    """Return the problem and config of a row; None where the kernel has no such fields any more.

    Nor where a field is not of its kind.
    """
    try:
        found = kernel.op.problem(**row.problem), kernel.config(**row.config)
    except (TypeError, ValueError):
        return None
    return found if all(map(_of_their_kinds, found)) else None


def _of_their_kinds(about: Problem | Config) -> bool:
    """Return whether the fields of plain kinds are of these."""
    kinds = get_type_hints(type(about)).items()
    return all(type(getattr(about, n)) is kind for n, kind in kinds if kind in (int, bool, str))


def search_landscape(
    landscape: Landscape, searcher: str, gpu: Gpu, budget: int = 0
) -> list[Config]:
    """Return the configs that a searcher measures, the default first; `budget` as in `Found`."""
    kernel, problem = landscape.kernel, landscape.problem
    default = kernel.default(problem, gpu)
    configs = list(landscape.us)
    order = configs if searcher == "exhaustive" else ranked(kernel, configs, problem, gpu)
    measured = [default] if default in landscape.us else []
    if searcher == DEFAULT:
        return measured
    search = make_searcher(searcher, order)
    for config in measured:
        search.tell(config, landscape.us[config])
    while asked := search.ask():
        for config in asked:
            if budget and len(measured) >= budget:
                return measured
            measured.append(config)
            search.tell(config, landscape.us[config])
    return measured


def judge(
    every: Sequence[Landscape], searchers: Sequence[str], budgets: Sequence[int], gpu: Gpu
) -> list[Found]:
    """Return what each searcher finds within each budget, by kernel."""
    found = []
    for name in dict.fromkeys(one.kernel.name for one in every):
        of_kernel = [one for one in every if one.kernel.name == name]
        for searcher in searchers:
            for budget in (1,) if searcher == DEFAULT else budgets:
                found.append(_found(of_kernel, name, searcher, budget, gpu))
    # where no default was ever measured there is nothing to say of it
    return [one for one in found if one.landscapes]


def _found(every: Sequence[Landscape], kernel: str, searcher: str, budget: int, gpu: Gpu) -> Found:
    counts, seconds, losses = [], [], []
    for one in every:
        times = [one.us[config] for config in search_landscape(one, searcher, gpu, budget)]
        counts.append(len(times))
        seconds.append(sum(map(heat_s, times)))
        if times:
            losses.append(min(times) / one.best_us - 1)
    lost = np.array(losses or [math.nan])
    return Found(
        searcher, kernel, budget, len(losses), float(np.mean(counts)), float(np.mean(seconds)),
        float(lost.mean()), float(lost.max()), float((lost <= TIE).mean()),
    )  # fmt: skip


class ReplayMeasurer:
    """Answers a search from recorded rows, the same every time; a GPU there is none.

    In a round it gives what was recorded of that round. A row that was never in a final gives its
    samples again and again.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        """Remember the rows that were measured, by what they are about."""
        self._rows = {row.key: row for row in rows if row.samples}
        self.asked: list[tuple[str, ...]] = []

    def run(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """Return what was recorded of a candidate alone."""
        row = self._rows.get(_key(candidate))
        if row is None:
            return Outcome("failed", "nothing was recorded of it")
        self.asked.append(row.key)
        return Outcome(
            row.status, row.reason, row.samples, rel_error=row.rel_error,
            max_error=row.max_error, extra={"busy_us": sum(row.samples)},
        )  # fmt: skip

    def round(self, candidates: Sequence[Candidate], turn: int, samples: int) -> list[Outcome]:
        """Return what was recorded of candidates in a round."""
        return [self._in_round(self._rows[_key(c)], turn, samples) for c in candidates]

    def _in_round(self, row: Row, turn: int, samples: int) -> Outcome:
        rounds = rounds_of(row)[1]
        if row.stage == FINAL and rounds:
            place = turn % len(rounds)
            mhz = row.round_mhz[place] if row.round_mhz else None
            return Outcome(MEASURED, us=tuple(rounds[place]), extra={"clock_mhz": [mhz, mhz]})
        taken = [row.samples[(turn * samples + i) % len(row.samples)] for i in range(samples)]
        return Outcome(MEASURED, us=tuple(taken))


def _key(candidate: Candidate) -> tuple[str, ...]:
    kernel = candidate.kernel
    row = Row(
        kernel.name, kernel.op.name, describe(candidate.problem), describe(candidate.config),
        regime=candidate.regime,
    )  # fmt: skip
    return row.key


class Recorded(Kernel):
    """A kernel whose space is what was recorded of it."""

    def __init__(self, kernel: Kernel, us: Mapping[Problem, Sequence[Config]]) -> None:
        self.kernel, self.recorded = kernel, us
        self.name, self.op, self.config = kernel.name, kernel.op, kernel.config
        self.summary = kernel.summary

    @property
    def made_by(self) -> Kernel:
        """The kernel itself."""
        return self.kernel

    def configs(self, gpu: Gpu) -> Sequence[Config]:
        """Return all that was recorded, on whatever problem."""
        return list(dict.fromkeys(c for configs in self.recorded.values() for c in configs))

    def refuses(self, problem: Problem) -> str | None:
        """Return why the kernel cannot run the problem."""
        return self.kernel.refuses(problem)

    def misfit(self, config: Config, problem: Problem, gpu: Gpu) -> str | None:
        """Refuse what was not recorded on this problem."""
        if config not in self.recorded.get(problem, ()):
            return "it was not recorded on this problem"
        return self.kernel.misfit(config, problem, gpu)

    def default(self, problem: Problem, gpu: Gpu) -> Config:
        """Return the kernel's default, recorded or not."""
        return self.kernel.default(problem, gpu)

    def estimate_us(self, config: Config, problem: Problem, gpu: Gpu) -> float | None:
        """Return the kernel's own estimate."""
        return self.kernel.estimate_us(config, problem, gpu)

    def build(self, config: Config, arch: str) -> Program:
        """Return the kernel's program."""
        return self.kernel.build(config, arch)

    def prepare(self, problem: Problem, inputs: Any) -> dict[str, Any]:
        """Return the kernel's operands."""
        return self.kernel.prepare(problem, inputs)

    def launch(self, config: Config, problem: Problem, gpu: Gpu) -> Launch:
        """Return the kernel's launch."""
        return self.kernel.launch(config, problem, gpu)


def recorded_kernels(every: Sequence[Landscape]) -> list[Kernel]:
    """Return the kernels of landscapes, with what was recorded as their spaces."""
    spaces: dict[str, dict[Problem, list[Config]]] = {}
    kernels = {one.kernel.name: one.kernel for one in every}
    for one in every:
        spaces.setdefault(one.kernel.name, {})[one.problem] = list(one.us)
    return [Recorded(kernels[name], spaces[name]) for name in spaces]


def recorded_binaries(rows: Iterable[Row], kernels: Sequence[Kernel]) -> Binaries:
    """Return programs without code: what rows say that these need of a GPU.

    A row of another tool does not say; what was measured did fit.
    """
    named = {kernel.name: kernel for kernel in kernels}
    found: Binaries = {}
    for row in rows:
        kernel = named.get(row.kernel)
        read = stored_candidate(kernel, row) if kernel else None
        if read is None or not row.samples:
            continue
        threads = getattr(read[1], "num_threads", USUAL_THREADS)
        found[row.kernel, read[1]] = Binary(
            cubin=b"", ptx="", entry=row.kernel, arch=row.arch, registers=row.registers or 0,
            spill_bytes=row.spill_bytes or 0, stack_bytes=0, static_smem_bytes=0,
            smem_bytes=row.smem_bytes or 0, num_threads=threads, cluster=(1, 1, 1), parameters=(),
            fingerprint=row.source_hash, build_s=0.0,
        )  # fmt: skip
    return found


def replay_search(
    every: Sequence[Landscape],
    rows: Sequence[Row],
    gpu: Gpu,
    measurer: ReplayMeasurer,
    store_path: Path,
    **how: Any,
) -> list[Row]:
    """Search in landscapes as on a GPU, heats, final and all, and return the rows.

    Args:
        store_path: where the search keeps what it finds
        how:        fields of `SearchTask`, such as `searcher`
    """
    kernels = recorded_kernels(every)
    problems = list(dict.fromkeys(one.problem for one in every))
    task = SearchTask(kernels, problems, gpu, Policy(), store_path, **how)
    return search(task, measurer, binaries=recorded_binaries(rows, kernels))
