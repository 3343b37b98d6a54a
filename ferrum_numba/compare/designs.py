"""Designs and configs of this tree against each other, in one measuring process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ferrum_numba.compare.built import of_binary
from ferrum_numba.compare.live import Trial, against, tried
from ferrum_numba.compile import Binary, Job, build_many
from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.errors import ProblemError
from ferrum_numba.gpu import Gpu
from ferrum_numba.measure import Policy
from ferrum_numba.tune.exclusive import exclusive
from ferrum_numba.tune.measurer import GpuMeasurer
from ferrum_numba.tune.worker import Candidate, Measurer, Worker

Key = tuple[Kernel, Config]


@dataclass(frozen=True)
class Design:
    """A kernel, and the config it runs a problem with."""

    kernel: Kernel
    config_of: Callable[[Problem], Config]


def compare_designs(
    old: Design,
    new: Design,
    problems: Sequence[Problem],
    gpu: Gpu,
    policy: Policy,
    run: str,
    timeout_s: float,
) -> Iterator[Trial]:
    """Yield the trial of each problem as it is decided.

    Args:
        run:       the date that names this run
        timeout_s: for checking and timing one of them, before its process is ended

    Raises:
        DeviceError: no GPU, or another process is measuring on it.
        BuildError: one of them does not compile.
    """
    with exclusive(gpu), Worker(partial(GpuMeasurer, policy), timeout_s) as worker:
        yield from trials(worker, old, new, problems, gpu, policy, run)


def trials(
    measurer: Measurer,
    old: Design,
    new: Design,
    problems: Sequence[Problem],
    gpu: Gpu,
    policy: Policy,
    run: str,
) -> Iterator[Trial]:
    """Yield the trials that a measurer makes; `compare_designs` says the rest."""
    chosen = {p: [_checked(design, p, gpu) for design in (old, new)] for p in problems}
    binaries = _compiled({key for keys in chosen.values() for key in keys}, gpu.arch)
    for problem, keys in chosen.items():
        first, second = (Candidate(*key, problem, binaries[key]) for key in keys)
        alone = (measurer.run(first, None), measurer.run(second, None))
        good = all(one.status == "measured" for one in alone)
        taken = against(measurer, [first, second], policy) if good else []
        built = tuple(of_binary(*key, binaries[key]) for key in keys)
        yield tried(old.kernel.op, problem, (built[0], built[1]), alone, taken, gpu, run)


def _checked(design: Design, problem: Problem, gpu: Gpu) -> Key:
    config = design.config_of(problem)
    reason = design.kernel.misfit(config, problem, gpu)
    if reason:
        raise ProblemError(f"{design.kernel.name} cannot run {problem} with {config}: {reason}")
    return design.kernel, config


def _compiled(keys: set[Key], arch: str) -> dict[Key, Binary]:
    jobs = {key: Job(*key, arch) for key in keys}
    built = dict(build_many(list(jobs.values())))
    found: dict[Key, Binary] = {}
    for key, job in jobs.items():
        binary = built[job]
        if not isinstance(binary, Binary):
            raise binary
        found[key] = binary
    return found
