"""How long programs take to compile: CPU seconds by phase, for every design; needs no GPU.

    python -m ferrum_numba.perf.compile_time [KERNEL ...] [--against FOLDER]

builds the programs that kernels run by default, without a cache, one at a time in one process, and
prints the median of each kernel. `--against` names a folder that holds another version, as
`pip install --no-deps --target FOLDER` leaves it: both are built in turn, program by program, so
what else the machine does falls on both. `--out` keeps the times as a JSON file.

front end: numba, from Python to LLVM's text; nvvm: to PTX or LTO-IR; link: to a cubin.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ferrum_numba.errors import FerrumError
from ferrum_numba.gpu import find
from ferrum_numba.kernels import KERNELS, TOOLS
from ferrum_numba.perf.host_rows import save

WORKER = Path(__file__).with_name("compile_worker.py")
COMMAND = "python -m ferrum_numba.perf.compile_time"
PHASES = ("nvvm", "link", "sass")


@dataclass(frozen=True)
class Built:
    """One program's build: CPU seconds, of these by phase, and what came out.

    version: "this", or "other" for the one it is compared with
    """

    version: str
    kernel: str
    problem: str
    cpu_s: float
    phases: dict[str, float]
    peak_mb: float
    registers: int
    spill_bytes: int

    @property
    def front_end_s(self) -> float:
        """CPU seconds outside of NVVM, the linker and the disassembler."""
        return self.cpu_s - sum(self.phases.values())


class Worker:
    """A process that builds programs of one version."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        hello = self._answer()
        # (kernel, problem), in the order of their numbers
        self.programs = [tuple(name.split(" ", 1)) for name in hello["names"]]
        self.import_s: float = hello["import_s"]
        self.first_s: float = hello["first_s"]

    def build(self, version: str, number: int) -> Built:
        """Build a program."""
        assert self._process.stdin is not None, "it was made with a pipe"
        print(number, file=self._process.stdin, flush=True)
        return Built(version, *self.programs[number], **self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "it was made with a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a version's worker ended; its words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def worker(gpu: str, folder: Path | None = None) -> Iterator[Worker]:
    """Start a worker, of the version in a folder or of this one, and end it."""
    path = [str(folder)] if folder else []
    path += filter(None, [os.environ.get("PYTHONPATH")])
    command = [sys.executable, str(WORKER), gpu]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Worker(process)
        finally:
            process.kill()


def compare(
    this: Worker, other: Worker | None, names: Sequence[str], each: int | None = None
) -> Iterator[Built]:
    """Build programs, in turn with the other version's of the same kernel and problem.

    names: of the kernels wanted, all if empty
    each:  so many programs of a kernel at most
    """
    built = Counter[str]()
    for number, program in enumerate(this.programs):
        if (names and program[0] not in names) or built[program[0]] == each:
            continue
        built[program[0]] += 1
        yield this.build("this", number)
        if other and program in other.programs:
            yield other.build("other", other.programs.index(program))


def table(built: Sequence[Built]) -> list[str]:
    """Return a line a kernel: medians of CPU seconds, by phase, and against the other version."""
    lines = [
        "| kernel | programs | CPU s | front end | nvvm | link | other | this / other |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    kernels = dict.fromkeys(one.kernel for one in built)
    for kernel in kernels:
        mine = [one for one in built if one.kernel == kernel and one.version == "this"]
        theirs = [one for one in built if one.kernel == kernel and one.version == "other"]
        values = [
            median(one.cpu_s for one in mine),
            median(one.front_end_s for one in mine),
            *(median(one.phases[phase] for one in mine) for phase in PHASES[:2]),
        ]
        cells = [kernel, str(len(mine)), *(f"{value:.2f}" for value in values)]
        cells += [f"{median(one.cpu_s for one in theirs):.2f}"] if theirs else [""]
        cells += [f"{median(ratios(mine + theirs)):.3f}"] if theirs else [""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ratios(built: Sequence[Built]) -> list[float]:
    """Return this version's CPU seconds over the other's, for every program both built."""
    other = {(one.kernel, one.problem): one for one in built if one.version == "other"}
    mine = [one for one in built if one.version == "this"]
    pairs = [(one, other.get((one.kernel, one.problem))) for one in mine]
    return [one.cpu_s / against.cpu_s for one, against in pairs if against]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of the module's docstring."""
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help="only these; all by default")
    parser.add_argument("--gpu", default="h200", help="what to compile for")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="holds another version")
    parser.add_argument("--each", type=int, metavar="N", help="so many programs of a kernel")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the times")
    args = parser.parse_args(arguments)
    if args.against and not (args.against / "ferrum_numba").is_dir():
        parser.error(f"{args.against} holds no ferrum_numba")
    if args.each is not None and args.each < 1:
        parser.error(f"--each must be at least 1; got {args.each}")
    unknown = [name for name in args.kernels if name not in {k.name for k in (*KERNELS, *TOOLS)}]
    if unknown:
        parser.error(f"no kernel is called {unknown[0]}")
    try:
        find(args.gpu)
    except FerrumError as error:
        parser.error(str(error))
    built: list[Built] = []
    with worker(args.gpu) as this:
        starts = [f"this: {this.import_s:.2f} s to import, {this.first_s:.2f} s the first build"]
        if args.against:
            with worker(args.gpu, args.against) as other:
                starts.append(f"other: {other.import_s:.2f} s, {other.first_s:.2f} s")
                built += _shown(compare(this, other, args.kernels, args.each))
        else:
            built += _shown(compare(this, None, args.kernels, args.each))
    print("\n".join((*starts, *table(built))))
    for version in ("this", "other"):
        peaks = [one.peak_mb for one in built if one.version == version]
        if peaks:
            print(f"{version}: {max(peaks):.0f} MB at most after {len(peaks)} programs")
    if found := ratios(built):
        print(f"this / other: median {median(found):.3f}, {min(found):.3f} to {max(found):.3f}")
    if args.out:
        try:
            words = arguments if arguments is not None else sys.argv[1:]
            save(args.out, COMMAND, words, map(asdict, built), compiled_for=args.gpu)
        except FerrumError as error:
            parser.error(str(error))
    return 0


def _shown(built: Iterator[Built]) -> Iterator[Built]:
    """Show what was built as it is built, where somebody looks on."""
    for one in built:
        if sys.stderr.isatty():
            print(f"{one.version} {one.kernel} {one.cpu_s:.2f} s", file=sys.stderr)
        yield one


if __name__ == "__main__":
    sys.exit(main())
