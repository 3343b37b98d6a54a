"""The search: build everything, then check and time what is worth it, one problem at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba.compile import Binary
from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.results import Row
from ferrum_numba.tune.budget import NEVER, Deadline
from ferrum_numba.tune.exclusive import compute_processes, exclusive, others_on
from ferrum_numba.tune.held import Held
from ferrum_numba.tune.memory import Memory
from ferrum_numba.tune.run import Run
from ferrum_numba.tune.searchers import make_searcher
from ferrum_numba.tune.space import Binaries, Progress, build_space, concerns, feasible, silent
from ferrum_numba.tune.worker import RUN_TIMEOUT_S, Measurer, Worker

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ferrum_numba.gpu import Gpu
    from ferrum_numba.measure import Policy
    from ferrum_numba.tune.planned import Plan

# configs of each kernel on each problem, the likeliest first
Space = list[tuple[Kernel, Problem, list[Config]]]


@dataclass(frozen=True)
class SearchTask:
    """What to search, and how.

    limit:     most configs a kernel and problem, half of them the likeliest; None for all
    untrusted: why no row of this run may be believed, if there is a reason
    searcher:  one of `searchers.NAMES`
    budget_s:  seconds in which to be done once everything is compiled; None for no limit
    deadline:  when to be done, for who shares a budget between searches; problems that were not
               begun until then are left
    roof_us:   problem -> the time that this board needs at least, by its measured ceilings
    within:    stop at a problem when its best is within this part of the roof; None for never
    estimates: what candidates are expected to take, where a plan says; else the model is asked
    earlier:   rows of other stores: their best is an incumbent, as the best of the own store is
    held:      the account of the GPU's time, which the search keeps
    executor:  what compiles; None for processes of this machine
    again:     hold every final anew, also where nothing is newer than the last
    factors:   what the board takes over what the first board of its model took, for problems that
               are bound by "memory" or "tensor"; empty where no yardstick was timed
    """

    kernels: Sequence[Kernel]
    problems: Sequence[Problem]
    gpu: Gpu
    policy: Policy
    store_path: Path
    limit: int | None = None
    regime: str = "cold"
    untrusted: str = ""
    searcher: str = "auto"
    budget_s: float | None = None
    deadline: Deadline = NEVER
    roof_us: Callable[[Kernel, Problem], float] | None = None
    within: float | None = None
    estimates: Mapping[tuple[str, Problem, Config], float] = field(default_factory=dict)
    earlier: Sequence[Row] = ()
    held: Held = field(default_factory=Held)
    executor: Executor | None = None
    factors: Mapping[str, float] = field(default_factory=dict)
    again: bool = False

    def __post_init__(self) -> None:
        """Refuse a searcher that is not there, before anything is compiled.

        Raises:
            ConfigError: no such searcher, or it is not installed.
        """
        make_searcher(self.searcher, ())

    def due(self) -> Deadline:
        """Return the deadline of what begins to measure now."""
        return self.deadline if self.budget_s is None else Deadline.after(self.budget_s)


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
    plan: Plan | None = None,
    **how: Any,
) -> list[Row]:
    """Check and time configs on the GPU; return and store a row for each.

    Rows that the store has of the same program, policy and GPU are not measured again. What was
    measured is stored at once, and kept when the search is interrupted.

    Args:
        limit:     most configs a kernel and problem, half of them the likeliest; None for all
        timeout_s: for checking and timing one config, before its process is ended
        plan:      programs to take; without it they are compiled
        how:       further fields of `SearchTask`

    Raises:
        DeviceError: no GPU, or another process is measuring on it.
        StoreError:  the file at `store_path` is no result file, or the plan is not for this GPU.
        ConfigError: no such searcher.
    """
    # what opens a GPU is loaded where a GPU is opened
    from ferrum_numba.tune.measurer import GpuMeasurer

    binaries = None
    if plan is not None:
        plan.refuse(gpu)
        binaries, how = plan.binaries, {"estimates": plan.estimates, **how}
    with exclusive(gpu):
        untrusted = others_on(compute_processes(gpu.uuid))
        task = SearchTask(
            kernels, problems, gpu, policy, Path(store_path), limit, regime, untrusted, **how
        )
        with Worker(partial(GpuMeasurer, policy), timeout_s) as worker:
            return search(task, worker, progress, binaries=binaries)


def search(
    task: SearchTask,
    measurer: Measurer,
    progress: Progress = silent,
    *,
    binaries: Binaries | None = None,
) -> list[Row]:
    """Search with a given measurer; `tune` says the rest.

    Args:
        binaries: the programs that there are: no other config is tried; compiled if None
    """
    with closing(Memory(task)) as memory:
        try:
            return _search(task, measurer, progress, memory, binaries)
        finally:
            # what was measured is in the store; the file is for everybody else
            memory.write()


def space_of(task: SearchTask) -> Space:
    """Return the configs of each kernel on each problem."""
    return [
        (kernel, problem, feasible(kernel, problem, task.gpu, task.limit)[0])
        for kernel in task.kernels
        for problem in task.problems
        if concerns(kernel, problem)
    ]


def programs_of(task: SearchTask, space: Space, progress: Progress = silent) -> Binaries:
    """Return every program of a space, by kernel name and config."""
    pairs = [(kernel, config) for kernel, _, configs in space for config in configs]
    return build_space(pairs, task.gpu.arch, progress, executor=task.executor)


def begin(
    task: SearchTask,
    measurer: Measurer,
    memory: Memory,
    binaries: Binaries,
    space: Space,
    progress: Progress = silent,
) -> Run:
    """Return what measures one problem after the other, of a space the configs with a program."""
    there = [(k, p, [c for c in found if (k.name, c) in binaries]) for k, p, found in space]
    # the library has no version of its own to ask: the PTX it writes says which toolkit's it is
    memory.environment["versions"]["nvvm"] = _nvvm(binaries)
    return Run(task, measurer, memory, binaries, progress, there)


def _search(
    task: SearchTask,
    measurer: Measurer,
    progress: Progress,
    memory: Memory,
    binaries: Binaries | None,
) -> list[Row]:
    space = space_of(task)
    if binaries is None:
        binaries = programs_of(task, space, progress)
    run = begin(task, measurer, memory, binaries, space, progress)
    found: list[Row] = []
    deadline = task.due()
    for place, problem in enumerate(task.problems):
        if deadline.passed():
            break
        # what a problem does not use is for those after it
        left = len(task.problems) - place
        found += run.problem(problem, deadline.share(1 / left), task.problems[place + 1 :])
    return found


def _nvvm(binaries: Binaries) -> str | None:
    texts = (binary.ptx for binary in binaries.values() if isinstance(binary, Binary))
    found = (re.search(r"Cuda compilation tools, (.+)", text) for text in texts)
    return next((match[1] for match in found if match), None)
