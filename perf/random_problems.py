"""Random problems on every GEMM design and its configs, against the references in float64.

    python -m ferrum_numba.perf.random_problems --count 20000 --seed 7       # on a GPU
    python -m ferrum_numba.perf.random_problems --count 20000 --seed 7 --out DIR   # compiles alone
    python -m ferrum_numba.perf.random_problems --count 20000 --seed 7 --programs DIR

Problem, kernel and config of a case follow from the seed and its number, so any case can be had
again: `--only NUMBER`. Each runs twice on a poisoned output between guard zones, as in `check`. A
case that fails is made smaller as long as it fails, and printed as it stands in a test.
`--on interpreter` needs no GPU, and draws small problems. Exit status 1: a case failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from ferrum_numba import check, gpu
from ferrum_numba.cli.progress import progress
from ferrum_numba.contract import Config, Kernel
from ferrum_numba.errors import ContextError, FerrumError
from ferrum_numba.gpu import Gpu
from ferrum_numba.launch import Device
from ferrum_numba.perf.kept_programs import compile_into, program
from ferrum_numba.perf.random_cases import DESIGNS, LARGE, SMALL, Case, draw, shrink
from ferrum_numba.tune.space import build_space

# cases that a process is given at once
CHUNK = 20
# programs of a kernel on a problem of one kind
CONFIGS = 3
# failures that are made smaller
MOST_SHRUNK = 5


@dataclass(frozen=True)
class Draw:
    """Which cases, and where they run.

    designs: names of kernels
    """

    seed: int
    designs: tuple[str, ...]
    configs: int
    large: bool
    gpu: Gpu
    programs: str = ""

    def case(self, number: int) -> Case:
        """Return one of them."""
        kernels = [kernel for kernel in DESIGNS if kernel.name in self.designs]
        sizes = LARGE if self.large else SMALL
        return draw(self.seed, number, self.gpu, kernels, sizes, self.configs)


@dataclass(frozen=True)
class Failure:
    """A case that failed, and why."""

    number: int
    reason: str


@cache
def _device() -> Device:
    return Device.open()


def on_gpu(which: Draw, case: Case) -> str:
    """Return what is wrong with a case on this process's GPU, or nothing.

    Raises:
        ContextError: the kernel took the CUDA context with it.
    """
    device = _device()
    binary = program(which.programs, case.kernel, case.config, device.gpu.arch)
    found = check.on_gpu(case.kernel, case.config, case.problem, device, binary=binary)
    return "" if found.ok else found.reason or "wrong"


def on_interpreter(which: Draw, case: Case) -> str:
    """Return what is wrong with a case by the interpreter, or nothing."""
    found = check.on_interpreter(
        case.kernel, case.config, case.problem, arch=which.gpu.arch, gpu=which.gpu
    )
    return "" if found.ok else found.reason or "wrong"


Judge = Callable[[Draw, Case], str]


def judged(which: Draw, judge: Judge, numbers: Sequence[int]) -> tuple[list[Failure], Counter[str]]:
    """Check some cases; return those that fail, and how many were checked of each kernel."""
    failures, counts = [], Counter[str]()
    for number in numbers:
        case = which.case(number)
        counts[case.kernel.name] += 1
        try:
            reason = judge(which, case)
        except ContextError as error:
            print(f"case {number} ended its process: {error}\n{case}", file=sys.stderr, flush=True)
            # the GPU is lost to this process, and what it was about to check with it
            os._exit(1)
        if reason:
            failures.append(Failure(number, reason))
    return failures, counts


def run(
    which: Draw, judge: Judge, numbers: Sequence[int], processes: int
) -> tuple[list[Failure], Counter[str]]:
    """Check cases in processes of their own; return what `judged` does.

    Raises:
        FerrumError: a case took its process with it; standard error says which.
    """
    chunks = [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]
    failures: list[Failure] = []
    counts = Counter[str]()
    context = get_context("spawn")
    with progress("cases") as bar, ProcessPoolExecutor(processes, context) as pool:
        waiting = [pool.submit(judged, which, judge, chunk) for chunk in chunks]
        try:
            for one in as_completed(waiting):
                found, some = one.result()
                failures += found
                counts += some
                bar(counts.total(), len(numbers))
        except BrokenProcessPool as error:
            raise FerrumError("a case took its process with it") from error
    return sorted(failures, key=lambda failure: failure.number), counts


def pairs_of(which: Draw, numbers: Iterable[int]) -> Iterator[tuple[Kernel, Config]]:
    """Yield the kernel and config of each case."""
    for number in numbers:
        case = which.case(number)
        yield case.kernel, case.config


def report(which: Draw, judge: Judge, failures: Sequence[Failure]) -> None:
    """Print failures, the first of them made smaller."""
    for failure in failures:
        case = which.case(failure.number)
        print(f"case {failure.number}: {case}\n    {failure.reason}")
    # a program that no case had is compiled
    compiling = replace(which, programs="")

    def fails(case: Case) -> bool:
        return bool(judge(compiling, case))

    for failure in failures[:MOST_SHRUNK]:
        small = shrink(which.case(failure.number), which.gpu, fails)
        print(f"case {failure.number}, made smaller: {small}\n    {judge(compiling, small)}")


def main(words: Sequence[str] | None = None) -> int:
    """Draw, compile, check, report."""
    parser = argparse.ArgumentParser(prog="random_problems", description=__doc__.split("\n")[0])
    parser.add_argument("designs", nargs="*", metavar="KERNEL", default=[])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER")
    parser.add_argument("--configs", type=int, default=CONFIGS)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument("--on", choices=("gpu", "interpreter"), default="gpu")
    parser.add_argument("--gpu", default="h200", help="whose configs, where there is none")
    parser.add_argument("--out", type=Path, metavar="DIR", help="compile alone, into this folder")
    parser.add_argument("--programs", default="", metavar="DIR", help="what --out made")
    args = parser.parse_args(words)
    facts = gpu.live() if args.on == "gpu" and not args.out else gpu.find(args.gpu)
    apart = {kernel.name for kernel in DESIGNS if args.on == "interpreter" and kernel.needs_cublas}
    names = [k.name for k in DESIGNS if k.runs_on(facts) and k.name not in apart]
    unknown = set(args.designs) - set(names)
    if unknown:
        raise FerrumError(f"no design {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    which = Draw(
        args.seed, tuple(args.designs or names), args.configs, args.on == "gpu", facts,
        args.programs,
    )  # fmt: skip
    numbers = range(args.count) if args.only is None else [args.only]
    if args.out:
        count = compile_into(args.out, pairs_of(which, numbers), facts.arch)
        print(f"{count} programs are in {args.out}")
        return 0
    judge = on_gpu if args.on == "gpu" else on_interpreter
    if args.on == "gpu" and not args.programs:
        with progress("programs") as bar:
            build_space(pairs_of(which, numbers), facts.arch, bar)
    began = time.monotonic()
    failures, counts = run(which, judge, numbers, args.processes)
    each = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    print(
        f"{counts.total()} cases of seed {args.seed} in {time.monotonic() - began:.0f} s, "
        f"{len(failures)} failed ({each})"
    )
    report(which, judge, failures)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FerrumError as error:
        print(f"random_problems: {error}", file=sys.stderr)
        sys.exit(2)
