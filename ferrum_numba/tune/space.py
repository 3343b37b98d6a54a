"""Which candidates there are: what fits a problem, what builds, and what the GPU can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from math import prod
from typing import TYPE_CHECKING, Any

from ferrum_numba.compile import Binary, Job, blocks_per_sm, build_many, program_fingerprint
from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.errors import BuildError
from ferrum_numba.gpu import refuses_launch

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ferrum_numba.gpu import Gpu

# (done, of how many, what is being done)
Progress = Callable[[int, int, str], None]
# every program of a space, by kernel name and config
Binaries = dict[tuple[str, Any], Binary | BuildError]


def silent(done: int, total: int, text: str) -> None:
    """Report nothing."""


def feasible(
    kernel: Kernel, problem: Problem, gpu: Gpu, limit: int | None = None
) -> tuple[list[Config], list[tuple[Config, str]]]:
    """Return the configs that can run a problem, specialised, and the others with the reason.

    limit: at most so many that can: half are the likeliest, which differ in the fewest fields from
           the kernel's default, that one first; the others lie evenly over the rest
    """
    refusal = kernel.refuses(problem)
    good, bad = [], []
    for config in kernel.configs(gpu):
        reason = refusal
        if reason is None:
            config, reason = _specialised(kernel, config, problem, gpu)
        if reason is None:
            good.append(config)
        else:
            bad.append((config, reason))
    if limit is not None and len(good) > limit:
        good = _likely(good, limit, kernel.default(problem, gpu))
    return good, bad


def _specialised(
    kernel: Kernel, config: Config, problem: Problem, gpu: Gpu
) -> tuple[Config, str | None]:
    try:
        config = kernel.specialise(config, problem)
        reason = kernel.misfit(config, problem, gpu)
        if reason is None:
            # only what fits must have a launch
            kernel.launch(config, problem, gpu)
        return config, reason
    except Exception as error:
        # a config that its own kernel trips over is a row with the reason, like any that cannot run
        return config, f"{type(error).__name__}: {error}"


def concerns(kernel: Kernel, problem: Problem) -> bool:
    """Tell whether a problem is one of the kernel's Op."""
    return isinstance(problem, kernel.op.problem)


def _likely(good: list[Config], limit: int, default: Config) -> list[Config]:
    """Return at most `limit` configs: half like the default, the rest from all over the others."""
    wanted = asdict(default)

    def unlikeness(config: Config) -> int:
        return sum(wanted[name] != value for name, value in asdict(config).items())

    likely = sorted(good, key=unlikeness)[: (limit + 1) // 2]
    rest, count = [config for config in good if config not in likely], limit // 2
    return likely + [rest[i * len(rest) // count] for i in range(count)]


def build_space(
    pairs: Iterable[tuple[Kernel, Config]],
    arch: str,
    progress: Progress = silent,
    *,
    executor: Executor | None = None,
) -> Binaries:
    """Compile every program once; needs no GPU.

    Configs that differ only in how they are launched share a program.

    executor: what compiles; None for all processors of this machine
    """
    unique = {(kernel.name, config): kernel for kernel, config in pairs}
    jobs = [Job(kernel, config, arch) for (_, config), kernel in unique.items()]
    first = by_program(jobs, progress)

    def report(done: int, total: int) -> None:
        progress(done, total, "compile")

    built = build_many(list(first), progress=report, executor=executor)
    return {(job.kernel.name, job.config): binary for one, binary in built for job in first[one]}


def by_program(jobs: Sequence[Job], progress: Progress = silent) -> dict[Job, list[Job]]:
    """Return the jobs of each program, by the first of them."""
    twins: dict[object, list[Job]] = {}
    for done, job in enumerate(jobs):
        progress(done, len(jobs), "look at programs")
        known = program_of(job.kernel, job.config, job.arch)
        twins.setdefault(known or object(), []).append(job)
    return {group[0]: group for group in twins.values()}


def program_of(kernel: Kernel, config: Config, arch: str) -> str | None:
    """Return the fingerprint of a config's program; None where nothing can be told before it."""
    try:
        return program_fingerprint(kernel, config, arch)
    except Exception:
        # whatever a candidate does wrong, it does again where it is built, and is told of there
        return None


def does_not_fit(candidate: tuple[Kernel, Config, Problem], binary: Binary, gpu: Gpu) -> str | None:
    """Return why the GPU cannot hold a launch, or None."""
    kernel, config, problem = candidate
    launch = kernel.launch(config, problem, gpu)
    refusal = refuses_launch(launch.grid, binary.num_threads)
    if refusal is not None:
        return refusal
    lacking = gpu.lacks_smem(binary.smem_bytes + binary.static_smem_bytes)
    if lacking is not None:
        return lacking
    resident = blocks_per_sm(binary, gpu)
    if not resident:
        return (
            f"{binary.registers} registers x {binary.num_threads} threads do not fit a SM of "
            f"{gpu.name} ({gpu.registers_per_sm} registers)"
        )
    places, blocks = resident * gpu.num_sms, prod(launch.grid)
    if launch.co_resident and blocks > places:
        return f"its {blocks} blocks wait for each other and {gpu.name} holds {places} at once"
    return None
