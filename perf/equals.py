"""Finals of equals on this GPU: how often the tuner tells apart what is one and the same program.

    python -m ferrum_numba.perf.equals
    python -m ferrum_numba.perf.equals prefill --m 1024 --finals 100 --out equals.json

Whatever such a final calls slower is an error of the measurement; it should be less than 1 % of
finals. `--out` keeps every round, so that other rules can be tried on them. Figures of boards that
are made up are in docs/tuning.md#evidence.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median

from ferrum_numba import gpu
from ferrum_numba.compile import build
from ferrum_numba.contract import Kernel
from ferrum_numba.errors import DeviceError, FerrumError
from ferrum_numba.kernels import KERNELS
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.measure import Policy
from ferrum_numba.results.statistics import compare_rounds
from ferrum_numba.tune.exclusive import exclusive
from ferrum_numba.tune.finals import contest
from ferrum_numba.tune.worker import Candidate, Measurer, Outcome, Worker

N, K = 4096, 4096
LEVEL = 0.95


@dataclass(frozen=True)
class Figures:
    """What finals of equals came to.

    falsely: share of finals in which one was called slower or faster than the first
    held:    share of pairs of which the interval of 95 % holds a ratio of 1
    rounds:  of a final, on average
    spread:  of the log-ratio of a pair in one round, the median over finals
    seconds: of a final, on average
    """

    falsely: float
    held: float
    rounds: float
    spread: float
    seconds: float

    def __str__(self) -> str:
        """Return the figures as a line."""
        return (
            f"told apart {self.falsely:.1%}, intervals hold {self.held:.1%}, "
            f"{self.rounds:.0f} rounds, spread {self.spread:.2%}, {self.seconds:.2f} s"
        )


def finals(
    measurer: Measurer, candidate: Candidate, equals: int, count: int
) -> Iterator[tuple[float, list[Outcome]]]:
    """Yield so many finals of one candidate against itself, each with its seconds.

    Raises:
        DeviceError: the process that measures was lost.
    """
    for _ in range(count):
        began = time.perf_counter()
        outcomes = contest(measurer, [candidate] * equals, Policy())
        if not outcomes:
            raise DeviceError(f"no final of {candidate.kernel.name} came to its second round")
        yield time.perf_counter() - began, outcomes


def figures(held: Sequence[tuple[float, list[Outcome]]]) -> Figures:
    """Return what finals of equals came to."""
    every = [outcomes for _, outcomes in held]
    pairs = [(one.rounds, final[0].rounds) for final in every for one in final[1:]]
    told = [
        any(compare_rounds(one.rounds, final[0].rounds).name in ("FASTER", "SLOWER")
            for one in final[1:])
        for final in every
    ]  # fmt: skip
    intervals = [compare_rounds(a, b, confidence=LEVEL) for a, b in pairs]
    return Figures(
        falsely=mean(told),
        held=mean(found.low <= 1 <= found.high for found in intervals),
        rounds=mean(len(final[0].rounds) for final in every),
        spread=median(_spread(a, b) for a, b in pairs),
        seconds=mean(seconds for seconds, _ in held),
    )


def _spread(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    """Return how far the ratio of a round is from 1, the middle one of all rounds."""
    return median(
        abs(median(x) / median(y) - 1) for x, y in zip(a, b, strict=False)
    )  # fmt: skip


def kernels(names: Sequence[str]) -> list[Kernel]:
    """Return the kernels of these names; decode and prefill by default.

    Raises:
        DeviceError: there is no such kernel.
    """
    known = {kernel.name: kernel for kernel in KERNELS}
    missing = [name for name in names if name not in known]
    if missing:
        raise DeviceError(f"no kernel is called {missing[0]}; there are {', '.join(known)}")
    return [known[name] for name in names or ("decode", "prefill")]


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    found.add_argument("kernel", nargs="*", help="decode and prefill by default")
    found.add_argument("--m", type=int, nargs="+", default=[1, 16, 256, 2048], metavar="M")
    found.add_argument("--equals", type=int, nargs="+", default=[2, 8], metavar="COUNT")
    found.add_argument("--finals", type=int, default=25, metavar="COUNT")
    found.add_argument("--out", type=Path, metavar="FILE", help="keep all rounds here, as JSON")
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Hold the finals, and print a line for each kernel, M and number of equals."""
    # what opens a GPU is loaded where a GPU is opened
    from ferrum_numba.tune.measurer import GpuMeasurer

    args, kept = parser().parse_args(words), []
    facts = gpu.live()
    with exclusive(facts), Worker(partial(GpuMeasurer, Policy())) as worker:
        for kernel in kernels(args.kernel):
            for m in args.m:
                problem = W4A16Problem(m, N, K)
                if kernel.refuses(problem):
                    continue
                config = kernel.default(problem, facts)
                candidate = Candidate(kernel, config, problem, build(kernel, config, facts.arch))
                for equals in args.equals:
                    held = list(finals(worker, candidate, equals, args.finals))
                    print(f"{kernel.name} M={m}, {equals} equals: {figures(held)}", flush=True)
                    rounds = [[one.rounds for one in outcomes] for _, outcomes in held]
                    kept.append({"kernel": kernel.name, "M": m, "rounds": rounds})
    if args.out:
        args.out.write_text(json.dumps(kept), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"equals: {error}", file=sys.stderr)
        sys.exit(2)
