"""The distinct programs of an export, each under its own symbol, and how they are built."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ferrum_numba.compile import Binary, Job, build_many
from ferrum_numba.contract import Config, Kernel, Launch, Parameter, Problem
from ferrum_numba.errors import BuildError
from ferrum_numba.export.symbols import symbol
from ferrum_numba.gpu import Gpu
from ferrum_numba.linear.stages import Stage

Progress = Callable[[int, int], None]


@dataclass
class Exported:
    """A program of an export.

    symbol:       its entry
    config:       the first one that asked for it; others differ only in how they are launched
    parameters:   in order
    launch:       of the first problem that asked for it
    stages:       by what they are launched with
    tuned:        some row that was measured runs it
    """

    symbol: str
    kernel: Kernel
    config: Config
    parameters: tuple[Parameter, ...]
    launch: Launch
    stages: dict[tuple[Config, Problem], Stage] = field(default_factory=dict)
    tuned: bool = False


class Programs:
    """What is to be built, by symbol, in the order in which it was asked for."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.by_symbol: dict[str, Exported] = {}

    def __iter__(self) -> Iterator[Exported]:
        return iter(self.by_symbol.values())

    def add(self, stage: Stage, *, tuned: bool = False) -> Exported:
        """Return the program of a stage, which may be there already."""
        kernel, config = stage.kernel, stage.config
        name = symbol(kernel, config)
        if name not in self.by_symbol:
            parameters = kernel.build(config, self.gpu.arch).parameters
            launch = stage.launch(self.gpu)
            self.by_symbol[name] = Exported(name, kernel, config, parameters, launch)
        found = self.by_symbol[name]
        found.stages.setdefault((config, stage.problem), stage)
        found.tuned = found.tuned or tuned
        return found

    def build(self, progress: Progress | None = None) -> dict[str, Binary]:
        """Compile them all, in processes or from the cache.

        Raises:
            BuildError: one does not compile.
        """
        jobs = [_job(one, self.gpu.arch) for one in self]
        outcomes = {}
        for job, outcome in build_many(jobs, progress=progress):
            if isinstance(outcome, BuildError):
                raise outcome
            outcomes[job.kernel.name] = outcome
        return outcomes

    def build_for_later(self) -> dict[str, Binary]:
        """Compile those that later architectures can run: by symbol, the others left out.

        `sm_90a` has instructions that no later GPU need have; the PTX of a program without them is
        `sm_90`'s, which every later driver compiles.
        """
        arch = self.gpu.arch.rstrip("af")
        jobs = [_job(one, arch) for one in self]
        outcomes = build_many(jobs)
        return {job.kernel.name: made for job, made in outcomes if isinstance(made, Binary)}


def _job(one: Exported, arch: str) -> Job:
    """Return the job that builds a program under its own symbol."""
    kernel = copy.copy(one.kernel)
    # an entry is named after its kernel
    kernel.name = one.symbol
    return Job(kernel, one.config, arch)
