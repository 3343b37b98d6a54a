"""Mutation testing: change the kernels' device code, one place a time; does `check` notice?

    python -m ferrum_numba.perf.mutate                         # some of every GEMM design
    python -m ferrum_numba.perf.mutate --design decode --count 100 --seed 3
    python -m ferrum_numba.perf.mutate --only decode:decode/result.py:17

Each mutant is planted in a copy of the tree and run through what `check` runs by default, the
quickest cases first, and then at the far ends of the largest problems (perf/far_cases.py), until
one fails: killed. One that makes a case take ten times as long loops, and is killed too. One whose
PTX is that of the kernel itself, for the configs of the cases and every value of the space, or that
is listed with a reason (perf/mutants_harmless.py), is no fault: equivalent. The same seed draws the
same mutants. Exit status 1: fewer than 95 % of the others were killed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ferrum_numba.contract import Kernel
from ferrum_numba.kernels import GROUPED, MOE, PACKED, RAW, TOOLS
from ferrum_numba.perf.device_code import functions_of
from ferrum_numba.perf.faults import ROOT, copy_tree
from ferrum_numba.perf.mutants import KINDS, Mutant, mutants_of, sample
from ferrum_numba.perf.mutants_harmless import reason as harmless
from ferrum_numba.perf.mutants_harmless import shortened

GEMMS: tuple[Kernel, ...] = (*PACKED, *RAW, *GROUPED)
DESIGNS = {kernel.name: kernel for kernel in (*GEMMS, *TOOLS, *MOE)}
COUNT, SEED, WANTED = 32, 1, 0.95
# killed because it goes on for ever, or at the largest sizes alone
HOW = ("loops", "far")


class Runner:
    """The process in the copied tree that judges what is planted there."""

    def __init__(self, tree: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-B", "-m", "ferrum_numba.perf.mutant_runner"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree,
            env={"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        self._seconds: dict[str, list[float]] = {}
        self._digests: dict[str, list[str]] = {}

    def ask(self, **request: Any) -> Any:
        """Return the answer to a request."""
        pipes = self._process
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        pipes.stdin.write(json.dumps(request) + "\n")
        pipes.stdin.flush()
        return json.loads(pipes.stdout.readline())

    def measure(self, kernel: str) -> None:
        """Time a design's cases and compile its programs, before anything is planted."""
        self._seconds[kernel] = self.ask(what="time", kernel=kernel)
        self._digests[kernel] = self.ask(what="ptx", kernel=kernel)

    def killed_by(self, kernel: str) -> str | None:
        """Return why the first case of a kernel fails, None where none does."""
        answer = self.ask(what="check", kernel=kernel, seconds=self._seconds[kernel])
        found: str | None = answer.get("killed")
        return found

    def is_equivalent(self, kernel: str) -> bool:
        """Return whether all programs of a kernel have the PTX that they had."""
        known = self._digests[kernel]
        return bool(self.ask(what="ptx", kernel=kernel, known=known) == known)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def mutants_by_file(kernel: Kernel) -> Iterator[Mutant]:
    """Yield all mutants of a design."""
    for file, functions in functions_of(kernel).items():
        mutants = mutants_of(file, (ROOT / "kernels" / file).read_text())
        yield from (mutant for mutant in mutants if mutant.function in functions)


def chosen(args: argparse.Namespace) -> Iterator[tuple[str, Mutant]]:
    """Yield what is asked for: mutants, each with its design."""
    for only in args.only:
        name, file, number = only.split(":")
        yield name, mutants_of(file, (ROOT / "kernels" / file).read_text())[int(number)]
    for name in () if args.only else args.design or [kernel.name for kernel in GEMMS]:
        drawn = sample(list(mutants_by_file(DESIGNS[name])), args.count, f"{args.seed} {name}")
        yield from ((name, mutant) for mutant in drawn)


def judged(runner: Runner, tree: Path, name: str, mutant: Mutant) -> tuple[str, str]:
    """Plant a mutant and take it out again; return what became of it, and why."""
    path = tree / "kernels" / mutant.file
    text = path.read_text()
    path.write_text(mutant.apply(text))
    try:
        reason = runner.killed_by(name)
        if reason is not None:
            return next((how for how in HOW if reason.startswith(how)), "killed"), reason
        why = harmless(mutant, text)
        if why is None and runner.is_equivalent(name):
            why = "the same PTX"
    finally:
        path.write_text(text)
    return ("survived", "") if why is None else ("equivalent", why)


def main(arguments: Sequence[str]) -> int:
    """Run the mutants and print a table; 1 where too many survive."""
    parser = argparse.ArgumentParser(prog="python -m ferrum_numba.perf.mutate")
    parser.add_argument("--design", action="append", choices=sorted(DESIGNS), default=[])
    parser.add_argument("--count", type=int, default=COUNT, help=f"mutants a design; {COUNT}")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", action="append", default=[], metavar="DESIGN:FILE:NUMBER")
    args = parser.parse_args(arguments)
    outcomes: Counter[tuple[str, str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        package = copy_tree(tree)
        runner = Runner(tree)
        measured: set[str] = set()
        for name, mutant in chosen(args):
            if name not in measured:
                runner.measure(name)
                measured.add(name)
            outcome, why = judged(runner, package, name, mutant)
            outcomes[name, mutant.kind, outcome] += 1
            print(
                f"{outcome}: {name}:{mutant.file}:{mutant.number} line {mutant.line}, "
                f"{mutant.kind}: {shortened(mutant.old)} -> {shortened(mutant.new)}"
                + (f"\n    {why.splitlines()[0][:300]}" if why else ""),
                flush=True,
            )
        runner.close()
    return report(outcomes)


def report(outcomes: Counter[tuple[str, str, str]]) -> int:
    """Print two tables in Markdown; return 1 where too many survive."""
    for column, title in ((0, "design"), (1, "kind")):
        print(f"\n| {title} | planted | killed | by loops | far | equivalent | survived |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        names = [
            name for name in (*DESIGNS, *KINDS) if any(key[column] == name for key in outcomes)
        ]
        for name in [*names, ""]:
            of = Counter[str]()
            for key, count in outcomes.items():
                if name in ("", key[column]):
                    of[key[2]] += count
            killed = of["killed"] + of["loops"] + of["far"]
            print(
                f"| {name or 'all'} | {of.total()} | {killed} | {of['loops']} | {of['far']} | "
                f"{of['equivalent']} | {of['survived']} |"
            )
    total = outcomes.total() - sum(n for key, n in outcomes.items() if key[2] == "equivalent")
    survived = sum(n for key, n in outcomes.items() if key[2] == "survived")
    print(f"\n{total - survived} of {total} killed: {1 - survived / max(total, 1):.1%}")
    return 0 if total and survived <= (1 - WANTED) * total else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
