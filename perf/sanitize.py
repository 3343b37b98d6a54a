"""compute-sanitizer over every kernel: memcheck, racecheck, synccheck and initcheck.

    python -m ferrum_numba.perf.sanitize                      # on a GPU; `make sanitize`
    python -m ferrum_numba.perf.sanitize decode --tools racecheck --configs 4
    python -m ferrum_numba.perf.sanitize --out DIR            # compiles alone, needs no GPU
    python -m ferrum_numba.perf.sanitize --programs DIR

Each tool runs one process for a kernel, which checks its configs on the Op's own tests: all of
their edges with the default, and some problems with configs from all over the space. A tool makes a
kernel 10 to 100 times slower, so the problems are the small ones. Exit status 1: a tool found
something, or a result was wrong under it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ferrum_numba import check, gpu
from ferrum_numba.cli.progress import progress
from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.errors import FerrumError
from ferrum_numba.kernels import KERNELS, MOE, TOOLS
from ferrum_numba.perf.kept_programs import compile_into, program
from ferrum_numba.tune.space import build_space

TOOLS_OF_IT = ("memcheck", "racecheck", "synccheck", "initcheck")
EVERY = (*KERNELS, *TOOLS, *MOE)
# of a problem larger than that no tool comes to an end
MOST_FLOPS = 2e9
# processes at once; a tool's own host side is what takes long
PROCESSES = 8
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
CHECKED = re.compile(r"^(\d+) checks passed$", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """What one tool says of one kernel.

    errors: errors or hazards; None where the tool did not come to its summary
    checks: results that were right under it
    """

    tool: str
    kernel: str
    errors: int | None
    checks: int
    seconds: float
    output: str

    @property
    def clean(self) -> bool:
        """Whether it found nothing, and something was checked."""
        return self.errors == 0 and self.checks > 0

    def __str__(self) -> str:
        """Return it as a line."""
        errors = "no summary" if self.errors is None else f"{self.errors} errors"
        return (
            f"{self.tool:10} {self.kernel:16} {errors}, {self.checks} checks, {self.seconds:.0f} s"
        )


def cases(kernel: Kernel, facts: gpu.Gpu, most: int) -> Iterator[tuple[Config, Problem]]:
    """Yield the default on all the Op's small tests, and so many configs of the space on some."""
    problems = [
        problem
        for problem in kernel.op.tests
        if kernel.refuses(problem) is None and kernel.op.work(problem).flops <= MOST_FLOPS
    ]
    for number, problem in enumerate(problems):
        yield kernel.default(problem, facts), problem
        if number % 4 == 0:
            space = list(kernel.fitting(problem, facts))[1:]
            yield from ((config, problem) for config in space[:: max(1, len(space) // most)])


def child(name: str, most: int, folder: str) -> int:
    """Check one kernel in this process; runs under a tool."""
    from ferrum_numba.launch import Device

    device = Device.open()
    (kernel,) = (kernel for kernel in EVERY if kernel.name == name)
    passed = 0
    for config, problem in cases(kernel, device.gpu, most):
        binary = program(folder, kernel, config, device.gpu.arch)
        found = check.on_gpu(kernel, config, problem, device, binary=binary)
        if not found.ok:
            print(f"wrong: {kernel.name} {config} {problem}: {found.reason}")
            return 1
        passed += 1
    print(f"{passed} checks passed")
    return 0


def sanitized(tool: str, kernel: str, most: int, timeout_s: float, folder: str) -> Found:
    """Run one kernel's checks under a tool."""
    command = [
        "compute-sanitizer", "--tool", tool, "--print-limit", "20",
        # what the driver answers on purpose, such as to a question about a pointer, is no error
        *(("--report-api-errors", "no") if tool == "memcheck" else ()),
        sys.executable, "-m", "ferrum_numba.perf.sanitize", kernel, "--child",
        "--configs", str(most), *(("--programs", folder) if folder else ()),
    ]  # fmt: skip
    began = time.monotonic()
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        output = ran.stdout + ran.stderr
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode(errors="replace")
    return _found(tool, kernel, output, time.monotonic() - began)


def _found(tool: str, kernel: str, output: str, seconds: float) -> Found:
    counts = [int(a or b) for a, b in SUMMARY.findall(output)]
    passed = CHECKED.search(output)
    checks = int(passed[1]) if passed else 0
    return Found(tool, kernel, sum(counts) if counts else None, checks, seconds, output)


def _chosen(names: Sequence[str], facts: gpu.Gpu) -> list[Kernel]:
    return [k for k in EVERY if k.runs_on(facts) and (not names or k.name in names)]


def _pairs(kernels: Sequence[Kernel], facts: gpu.Gpu, most: int) -> Iterator[tuple[Kernel, Config]]:
    for kernel in kernels:
        yield from ((kernel, config) for config, _ in cases(kernel, facts, most))


def main(words: Sequence[str] | None = None) -> int:
    """Run the tools, print a line each, and what they found at the end."""
    parser = argparse.ArgumentParser(prog="sanitize", description=__doc__.split("\n")[0])
    parser.add_argument("kernels", nargs="*", metavar="KERNEL")
    parser.add_argument("--tools", default=",".join(TOOLS_OF_IT))
    parser.add_argument("--configs", type=int, default=2, help="of the space, besides the default")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="of one process")
    parser.add_argument("--gpu", default="h200", help="for --out, where there is none")
    parser.add_argument("--out", type=Path, metavar="DIR", help="compile alone, into this folder")
    parser.add_argument("--programs", default="", metavar="DIR", help="what --out made")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    tools, names = args.tools.split(","), [kernel.name for kernel in EVERY]
    for given, known in ((tools, TOOLS_OF_IT), (args.kernels, names)):
        unknown = [one for one in given if one not in known]
        if unknown:
            raise FerrumError(f"{unknown[0]!r} is none of {', '.join(known)}")
    if args.child:
        return child(args.kernels[0], args.configs, args.programs)
    if args.out:
        facts = gpu.find(args.gpu)
        pairs = _pairs(_chosen(args.kernels, facts), facts, args.configs)
        count = compile_into(args.out, pairs, facts.arch)
        print(f"{count} programs are in {args.out}")
        return 0
    if shutil.which("compute-sanitizer") is None:
        raise FerrumError("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit")
    facts = gpu.live()
    chosen = _chosen(args.kernels, facts)
    if not args.programs:
        # once, and not under a tool
        with progress("programs") as bar:
            build_space(_pairs(chosen, facts, args.configs), facts.arch, bar)
    bad = []
    with ThreadPoolExecutor(PROCESSES) as pool:
        jobs = [
            pool.submit(sanitized, tool, kernel.name, args.configs, args.timeout, args.programs)
            for tool in tools
            for kernel in chosen
        ]
        for job in jobs:
            found = job.result()
            print(found, flush=True)
            if not found.clean:
                bad.append(found)
    for found in bad:
        print(f"\n{found}\n{found.output[-4000:]}")
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FerrumError as error:
        print(f"sanitize: {error}", file=sys.stderr)
        sys.exit(2)
