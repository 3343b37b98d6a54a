"""Compile a whole space for a GPU that need not be there, and say what would be worth measuring."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ferrum_numba.arguments import lacks_scalar
from ferrum_numba.compile import Binary, blocks_per_sm
from ferrum_numba.compile.remarks import count_doubles
from ferrum_numba.compile.sass import nvdisasm
from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.errors import BuildError
from ferrum_numba.results import Candidates, Planned
from ferrum_numba.results.display import Usual
from ferrum_numba.shown import usual_fields, words
from ferrum_numba.tune import planned
from ferrum_numba.tune.expected import expected_s
from ferrum_numba.tune.model import bound_us, estimate_us
from ferrum_numba.tune.space import (
    Binaries,
    Progress,
    build_space,
    concerns,
    does_not_fit,
    feasible,
    silent,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ferrum_numba.gpu import Gpu


# of a planned row: it would be measured
RUNS = ("ok", "spills")


@dataclass(frozen=True)
class _Candidate:
    kernel: Kernel
    problem: Problem
    config: Config
    misfit: str


def plan(
    kernels: Sequence[Kernel],
    problems: Sequence[Problem],
    gpu: Gpu,
    arch: str | None = None,
    *,
    limit: int | None = None,
    progress: Progress = silent,
    counted: bool = False,
) -> Candidates:
    """Return a row for every kernel, problem and config; needs no GPU.

    Args:
        gpu:     the GPU to plan for: its limits, its bandwidth
        arch:    architecture to compile for, that of the GPU if None
        limit:   most configs a kernel and problem, half of them the likeliest; None for all
        counted: count the instructions of each program, a third of a second each, with nvdisasm
    """
    arch = arch or gpu.arch
    candidates = _candidates(kernels, problems, gpu, limit)
    binaries = build_space(_wanted(candidates), arch, progress)
    if counted:
        _count(binaries, progress)
    return Candidates(_rows(candidates, binaries, gpu, arch, counted), _usual(candidates, gpu))


def plan_into(
    folder: str | Path,
    kernels: Sequence[Kernel],
    problems: Sequence[Problem],
    gpu: Gpu,
    *,
    limit: int | None = None,
    progress: Progress = silent,
    executor: Executor | None = None,
) -> list[Planned]:
    """Plan as `plan` does, and keep it as a folder that `tune` takes, with its programs.

    Programs that the folder has are not compiled again.

    Args:
        executor: what compiles; None for processes of this machine

    Raises:
        StoreError: the folder cannot be written.
    """
    # what a program is made by is asked of the compiler, which a reader of plans may lack
    from ferrum_numba.compile.toolchain import cuda_version
    from ferrum_numba.compile.versions import versions

    root = Path(folder)
    candidates = _candidates(kernels, problems, gpu, limit)
    binaries, names = planned.build_into(
        root / planned.PROGRAMS, _wanted(candidates), gpu.arch, progress, executor
    )
    rows = _rows(candidates, binaries, gpu, gpu.arch)
    files = [
        names.get((c.kernel.name, c.config)) if row.status in RUNS else None
        for c, row in zip(candidates, rows, strict=True)
    ]
    facts = {
        "cuda": list(cuda_version()),
        "toolchain": versions(),
        "expected_s": expected_s(rows),
    }
    planned.write(root, kernels, gpu, rows, files, facts=facts)
    return rows


def _usual(candidates: Sequence[_Candidate], gpu: Gpu) -> Usual:
    """Return the default config of each kernel on each problem that it can run."""
    able = {(c.kernel.name, c.problem): c.kernel for c in candidates if not c.misfit}
    return Usual(
        {
            (name, words(describe(problem))): describe(kernel.default(problem, gpu))
            for (name, problem), kernel in able.items()
        },
        {kernel.name: usual_fields(kernel.op.problem) for kernel in able.values()},
    )


def _wanted(candidates: Sequence[_Candidate]) -> list[tuple[Kernel, Config]]:
    return [(c.kernel, c.config) for c in candidates if not c.misfit]


def _count(binaries: Binaries, progress: Progress) -> None:
    """Count the instructions of every program, on all processors; a binary keeps what was found."""
    built = list({id(one): one for one in binaries.values() if isinstance(one, Binary)}.values())
    if nvdisasm() is None:
        return
    # nvdisasm is a process of its own
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for done, _ in enumerate(threads.map(lambda binary: binary.sass, built), start=1):
            progress(done, len(built), "count instructions")


def _rows(
    candidates: Sequence[_Candidate],
    binaries: Binaries,
    gpu: Gpu,
    arch: str,
    counted: bool = False,
) -> list[Planned]:
    found = ((c, binaries.get((c.kernel.name, c.config))) for c in candidates)
    return [_row(candidate, binary, gpu, arch, counted) for candidate, binary in found]


def _candidates(
    kernels: Sequence[Kernel], problems: Sequence[Problem], gpu: Gpu, limit: int | None
) -> list[_Candidate]:
    found = []
    for kernel in kernels:
        for problem in problems:
            if not concerns(kernel, problem):
                continue
            good, bad = feasible(kernel, problem, gpu, limit)
            found += [_Candidate(kernel, problem, config, "") for config in good]
            found += [_Candidate(kernel, problem, config, reason) for config, reason in bad]
    return found


def _row(
    candidate: _Candidate, binary: Binary | BuildError | None, gpu: Gpu, arch: str, counted: bool
) -> Planned:
    work = candidate.kernel.op.work(candidate.problem)
    status, reason = _verdict(candidate, binary, gpu)
    built = binary if isinstance(binary, Binary) and not candidate.misfit else None
    return Planned(
        kernel=candidate.kernel.name,
        op=candidate.kernel.op.name,
        problem=describe(candidate.problem),
        config=describe(candidate.config),
        arch=arch,
        registers=built.registers if built else None,
        spill_bytes=built.spill_bytes if built else None,
        smem_bytes=built.smem_bytes if built else None,
        blocks_per_sm=blocks_per_sm(built, gpu) if built else None,
        flops=work.flops,
        bytes=work.bytes,
        bound_us=bound_us(work, gpu),
        status=status,
        reason=reason,
        estimate_us=_estimate_us(candidate, built, gpu) if built and status in RUNS else None,
        remarks=built.remarks if built else (),
        stack_bytes=built.stack_bytes if built else None,
        fp64=count_doubles(built.ptx) if built else None,
        sass=built.sass if built and counted else None,
    )


def _estimate_us(candidate: _Candidate, binary: Binary, gpu: Gpu) -> float:
    kernel, config, problem = candidate.kernel, candidate.config, candidate.problem
    own = kernel.estimate_us(config, problem, gpu)
    # counting instructions takes longer than a small build
    return own or estimate_us(kernel, config, problem, gpu, binary, binary.sass)


def _verdict(
    candidate: _Candidate, binary: Binary | BuildError | None, gpu: Gpu
) -> tuple[str, str]:
    if candidate.misfit:
        return "does not fit", candidate.misfit
    if not isinstance(binary, Binary):
        return "build failed", str(binary)
    launch = candidate.kernel.launch(candidate.config, candidate.problem, gpu)
    lacking = lacks_scalar(binary.parameters, launch.scalars)
    if lacking:
        return "build failed", lacking
    misfit = does_not_fit((candidate.kernel, candidate.config, candidate.problem), binary, gpu)
    if misfit:
        return "does not fit", misfit
    if binary.spill_bytes:
        return "spills", f"{binary.spill_bytes} bytes a thread go to memory and back"
    return "ok", ""
