"""How often the comparison says that a program differs from itself: A against A, many times.

    python -m ferrum_numba.perf.compare_aa --pairs 200

prints how many pairs got each verdict, and a line for each that is not SAME. The goal is SAME in
99 of 100. `together` times one program on the same operands twice; `apart` gives the second
operands of its own, so what the place of a weight in memory does counts as a difference too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ferrum_numba.cli.names import select_kernels
from ferrum_numba.compare.live import against, verdict_between
from ferrum_numba.compile import build
from ferrum_numba.contract import Config, Kernel, Launch, Problem, Program
from ferrum_numba.errors import FerrumError
from ferrum_numba.gpu import Gpu, live
from ferrum_numba.kernels import KERNELS
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.choice import shipped_decisions
from ferrum_numba.measure import Policy
from ferrum_numba.results import Verdict, choose
from ferrum_numba.tune.exclusive import exclusive
from ferrum_numba.tune.measurer import GpuMeasurer
from ferrum_numba.tune.worker import Candidate

GOAL = 0.99
# decode, a batch and prefill, of a small and of a large weight
PROBLEMS = tuple(
    W4A16Problem(M, N, K, 128) for K, N in ((4096, 4096), (8192, 8192)) for M in (1, 16, 64, 256)
)
HOW = ("together", "apart")


class Again(Kernel):
    """A kernel under another name, so that it gets operands of its own."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.name, self.op, self.config = f"{kernel.name}_again", kernel.op, kernel.config
        self.summary = kernel.summary

    @property
    def made_by(self) -> Kernel:
        """The kernel itself."""
        return self.kernel

    def configs(self, gpu: Gpu) -> Sequence[Config]:
        """Return the kernel's space."""
        return self.kernel.configs(gpu)

    def refuses(self, problem: Problem) -> str | None:
        """Return why the kernel cannot run the problem."""
        return self.kernel.refuses(problem)

    def build(self, config: Config, arch: str) -> Program:
        """Return the kernel's program."""
        return self.kernel.build(config, arch)

    def prepare(self, problem: Problem, inputs: Any) -> dict[str, Any]:
        """Return the kernel's operands."""
        return self.kernel.prepare(problem, inputs)

    def launch(self, config: Config, problem: Problem, gpu: Gpu) -> Launch:
        """Return the kernel's launch."""
        return self.kernel.launch(config, problem, gpu)


class Told(NamedTuple):
    """A pair's verdict, of so many rounds."""

    problem: W4A16Problem
    verdict: Verdict
    rounds: int
    seconds: float


def pairs(
    measurer: Any, kernels: Sequence[Kernel], gpu: Gpu, policy: Policy, count: int, how: str
) -> Iterator[Told]:
    """Yield so many pairs, spread over the problems, each of a contest of its own."""
    decisions = shipped_decisions(gpu)
    for i, problem in enumerate(PROBLEMS):
        choice = choose(decisions, problem, kernels, gpu)
        binary = build(choice.kernel, choice.config, gpu.arch)
        first = Candidate(choice.kernel, choice.config, problem, binary)
        again = Again(choice.kernel) if how == "apart" else choice.kernel
        second = Candidate(again, choice.config, problem, binary)
        for kernel in dict.fromkeys((choice.kernel, again)):
            measurer.open(kernel, problem)
        for _ in range(count // len(PROBLEMS) + (i < count % len(PROBLEMS))):
            began = time.perf_counter()
            a, b = against(measurer, [first, second], policy)
            verdict = verdict_between(a, b)
            yield Told(problem, verdict, len(a.rounds), time.perf_counter() - began)


def told(found: Sequence[Told], how: str) -> str:
    """Return a line of what came of all pairs, and a line of each that is not the same."""
    counts = Counter(one.verdict.name for one in found)
    seconds = sum(one.seconds for one in found)
    rounds = sorted(one.rounds for one in found)
    lines = [
        f"{how}: {counts['SAME']} of {len(found)} SAME ({counts['SAME'] / len(found):.1%}), "
        f"{counts['UNDECIDED']} UNDECIDED, {counts['FASTER'] + counts['SLOWER']} apart; rounds: "
        f"median {rounds[len(rounds) // 2]}, most {rounds[-1]}; {seconds:.0f} s"
    ]
    for one in found:
        if one.verdict.name != "SAME":
            verdict = one.verdict
            lines.append(
                f"  {one.problem}: {verdict.name} {verdict.ratio:.4f} "
                f"({verdict.low:.4f} to {verdict.high:.4f}) after {one.rounds} rounds"
            )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Compare, print; 1 where fewer are the same than is the goal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=200, metavar="N")
    parser.add_argument("--how", choices=HOW, action="append", help="may be given again; both")
    parser.add_argument("--kernel", action="append", default=[], metavar="NAME")
    args = parser.parse_args(words)
    facts = live()
    kernels = [k for k in select_kernels(KERNELS, args.kernel) if not k.needs_cublas]
    short = 0
    with exclusive(facts):
        for how in args.how or HOW:
            policy = Policy()
            found = list(pairs(GpuMeasurer(policy), kernels, facts, policy, args.pairs, how))
            print(told(found, how), flush=True)
            short += sum(one.verdict.name == "SAME" for one in found) < GOAL * len(found)
    return int(short > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FerrumError as error:
        print(f"compare_aa: {error}", file=sys.stderr)
        sys.exit(2)
