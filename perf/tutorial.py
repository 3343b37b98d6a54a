"""The tutorial's steps on this GPU: checked, tuned where there is a space, timed in turn by pairs.

    python -m ferrum_numba.perf.tutorial --out docs/tutorial/results/h200/ladder.json

takes some minutes on an H200. Each step is timed against the one before it, round by round in turn
until it is decided which is faster, on one board, as `ferrum-numba compare` does; of the kernels
that ship, `marlin` against what layers run for the same sizes. What tuning found is kept in a
folder beside the file (`--store`): the same command goes on where it was stopped. Then
`python -m ferrum_numba.perf.tutorial_table` writes the pages.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

from ferrum_numba import results
from ferrum_numba.compare.designs import Design, trials
from ferrum_numba.compare.live import Trial
from ferrum_numba.contract import Kernel, Problem
from ferrum_numba.errors import FerrumError, MismatchError
from ferrum_numba.gpu import Gpu, live
from ferrum_numba.kernels import KERNELS
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.choice import shipped_decisions
from ferrum_numba.measure import Policy
from ferrum_numba.perf.tutorial_table import BASELINE, EXPERTS, RESULTS, TUTORIAL, problems
from ferrum_numba.results import Decision, ResultFile, Row, choose, decide
from ferrum_numba.tune.worker import Measurer

COMMAND = "python -m ferrum_numba.perf.tutorial"
TIMEOUT_S = 120.0
Trials = Callable[[Design, Design, Sequence[Problem]], Iterable[Trial]]


def ladder() -> tuple[Kernel, ...]:
    """Return the tutorial's kernels, in the order of its steps."""
    if str(TUTORIAL) not in sys.path:
        sys.path.append(str(TUTORIAL))
    found: tuple[Kernel, ...] = importlib.import_module("ladder.kernels").KERNELS
    return found


def problems_of(kernel: Kernel) -> list[Problem]:
    """Return the problems that a step is timed on."""
    sizes: Iterable[dict[str, int]] = problems()
    if set(vars(kernel.op.tests[0])) != {"M", "N", "K"}:
        sizes = EXPERTS
    return [kernel.op.problem(**one) for one in sizes]


def contest(
    kernels: Sequence[Kernel], decisions: Sequence[Decision], gpu: Gpu, compared: Trials
) -> Iterator[Row]:
    """Yield the row of every step and problem: of its trial against the step before it.

    Args:
        decisions: of the tunes of those steps that have a space
        compared:  the trials of two designs
    """
    *steps, experts = kernels
    for i, (old, new) in enumerate(pairwise(steps)):
        before, after = _tuned(old, decisions, gpu), _tuned(new, decisions, gpu)
        yield from _rows(compared(before, after, problems_of(new)), both=i == 0)
    default = Design(experts, lambda problem: experts.default(problem, gpu))
    yield from _rows(compared(default, _tuned(experts, decisions, gpu), problems_of(experts)))


def shipped(gpu: Gpu, compared: Trials) -> Iterator[Row]:
    """Yield the rows of `marlin` and of what layers run, on the same sizes."""
    decisions = shipped_decisions(gpu)
    baseline = next(kernel for kernel in KERNELS if kernel.name == BASELINE)
    for sizes in problems():
        problem = W4A16Problem(sizes["M"], sizes["N"], sizes["K"])
        fastest = choose(decisions, problem, KERNELS, gpu).kernel
        two = _tuned(baseline, decisions, gpu), _tuned(fastest, decisions, gpu)
        yield from _rows(compared(two[0], two[1], [problem]), both=True)


def _tuned(kernel: Kernel, decisions: Sequence[Decision], gpu: Gpu) -> Design:
    return Design(kernel, lambda problem: choose(decisions, problem, [kernel], gpu).config)


def _rows(found: Iterable[Trial], *, both: bool = False) -> Iterator[Row]:
    for trial in found:
        for row in (trial.pair.old, trial.pair.new) if both else (trial.pair.new,):
            if row is None or not (row.ok and row.samples):
                raise MismatchError(f"{trial.pair.problem}: {trial.pair.why or row}")
            yield row


def tune_steps(
    kernels: Sequence[Kernel], gpu: Gpu, store: Path, limit: int | None
) -> list[Decision]:
    """Tune the steps that have a space, each by itself, and return what was decided."""
    from ferrum_numba.tune import tune

    store.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for kernel in kernels:
        if len(kernel.configs(gpu)) > 1:
            print(f"tune {kernel.name}", file=sys.stderr)
            rows += tune(
                [kernel], problems_of(kernel), gpu, policy=Policy(),
                store_path=store / f"{kernel.name}.json", limit=limit, timeout_s=TIMEOUT_S,
            )  # fmt: skip
    return decide(rows)


def main(words: Sequence[str] | None = None) -> None:
    """Tune, time and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--store", type=Path, metavar="DIR", help="FILE without .json by default")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N configs a step and M")
    args = parser.parse_args(words)
    gpu, policy, kernels = live(), Policy(), ladder()
    decisions = tune_steps(kernels, gpu, args.store or args.out.with_suffix(""), args.limit)
    environment = results.environment(gpu, policy, sys.argv)
    environment["command"] = " ".join((COMMAND, *(words or sys.argv[1:])))
    rows: list[Row] = []
    with _measurer(gpu, policy) as measurer:

        def compared(old: Design, new: Design, given: Sequence[Problem]) -> Iterable[Trial]:
            return trials(measurer, old, new, given, gpu, policy, environment["date"])

        for row in (*contest(kernels, decisions, gpu, compared), *shipped(gpu, compared)):
            print(f"{row.kernel} {row.problem}: {row.us:.2f} us", file=sys.stderr)
            rows.append(row)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results.save(args.out, ResultFile(environment, rows))
    print(f"written: {args.out}, {len(rows)} rows")


@contextmanager
def _measurer(gpu: Gpu, policy: Policy) -> Iterator[Measurer]:
    from ferrum_numba.tune.exclusive import exclusive
    from ferrum_numba.tune.measurer import GpuMeasurer
    from ferrum_numba.tune.worker import Worker

    with exclusive(gpu), Worker(partial(GpuMeasurer, policy), TIMEOUT_S) as worker:
        yield worker


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"tutorial: {error}", file=sys.stderr)
        sys.exit(2)
