"""`ferrum-numba check`: kernels against their reference, on the GPU or by the interpreter."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import count
from typing import TYPE_CHECKING

from ferrum_numba import gpu
from ferrum_numba.cases import Case, cases_of
from ferrum_numba.cli import names, options
from ferrum_numba.cli.output import Progress, print_json, print_remarks, print_table, progress, say
from ferrum_numba.cli.session import TUNED_GPU, Session
from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.errors import ContextError, ProblemError
from ferrum_numba.results.unmeasured import CheckRow

if TYPE_CHECKING:
    from ferrum_numba.check import Checked
    from ferrum_numba.gpu import Gpu

HELP = "kernels against their reference: on the GPU, or by the interpreter"
FAILED = 1
# one case in so many runs twice on the interpreter: in another order, on the same workspace
TWICE_IN = 4
COLUMNS = (
    "kernel", "problem", "config", "num_sms", "how", "status", "rel_error", "max_error", "seconds",
)  # fmt: skip
Check = Callable[[Case], "Checked"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to check, and where."""
    options.add_kernels(parser)
    options.add_problems(parser)
    parser.add_argument(
        "--configs", default="default", metavar="default|all|FIELDS",
        help="which configs: the default one, all, or the default with fields changed: num_warps=8",
    )  # fmt: skip
    parser.add_argument(
        "--on", choices=("gpu", "interpreter", "auto"), default="auto", help="where to run"
    )
    options.add_arch(parser, "what the interpreter builds for, such as sm_80")
    parser.add_argument(
        "--orders", type=int, metavar="N",
        help="the interpreter runs each case in N orders of warps and blocks, 1 to 8, and wants "
        "equal bits; by default one case in four in two of them",
    )  # fmt: skip
    options.add_effort(parser, "checks a kernel")


def run(session: Session) -> int:
    """Check, print a row for each case; 1 where one fails."""
    args = session.args
    on_gpu = args.on == "gpu" or (args.on == "auto" and gpu.driver_present())
    if on_gpu:
        facts, check = _on_gpu()
    else:
        facts, check = gpu.find(TUNED_GPU), on_interpreter(args.arch, args.orders)
    kernels = session.runnable() if on_gpu else session.kernels
    cases = [case for kernel in kernels for case in _cases(session, kernel, facts)]
    if not cases:
        raise ProblemError(_why_none(kernels, facts))
    rows: list[CheckRow] = []
    with progress("check") as bar:
        if on_gpu and len(cases) > 1:
            _build(cases, facts.arch, bar)
        session.keep(checked(cases, check, bar), rows.append)
    session.rows_kept = len(rows)
    _print(session, rows)
    return FAILED if any(not row.ok for row in rows) else 0


def checked(cases: Sequence[Case], check: Check, bar: Progress) -> Iterator[CheckRow]:
    """Yield a row for each case as it is done; a lost GPU ends it."""
    for done, case in enumerate(cases):
        bar(done, len(cases))
        kernel = case.kernel
        about = (kernel.name, kernel.op.name, describe(case.problem), describe(case.config))
        try:
            found = check(case)
        except ContextError as error:
            yield CheckRow(*about, ok=False, reason=str(error))
            return
        yield CheckRow(*about, **asdict(found), num_sms=case.gpu.num_sms)
        bar(done + 1, len(cases))


def _build(cases: Sequence[Case], arch: str, bar: Progress) -> None:
    """Compile into the cache, on all processors; what does not compile says so in its check."""
    from ferrum_numba.tune.space import build_space

    build_space(((case.kernel, case.config) for case in cases), arch, bar)


def _on_gpu() -> tuple[Gpu, Check]:
    # the first thing that happens, so that a missing GPU is said before any work
    from ferrum_numba import launch
    from ferrum_numba.check import on_gpu

    device = launch.Device.open()

    def one(case: Case) -> Checked:
        return on_gpu(*case[:3], replace(device, gpu=case.gpu))

    return device.gpu, one


def on_interpreter(arch: str | None, orders: int | None = None) -> Check:
    """Return the check by the interpreter, for an architecture.

    orders: in which every case runs; None: one in four in two of them, the others in one
    """
    from ferrum_numba import check

    arch = arch or gpu.find(TUNED_GPU).arch
    if orders is not None and not 1 <= orders <= check.MOST_ORDERS:
        raise ProblemError(f"--orders is 1 to {check.MOST_ORDERS}; got {orders}")
    done = count()

    def one(case: Case) -> Checked:
        runs = orders or (1 if next(done) % TWICE_IN else 2)
        return check.on_interpreter(*case[:3], arch=arch, gpu=case.gpu, runs=runs)

    return one


def _cases(session: Session, kernel: Kernel, facts: Gpu) -> list[Case]:
    named = session.args.problem is not None
    if not named and session.args.configs == "default":
        return list(cases_of(kernel, facts))[: session.args.limit]
    found: list[Case] = []
    if not kernel.runs_on(facts):
        return found
    for problem in session.problems() if named else kernel.op.tests:
        if not isinstance(problem, kernel.op.problem):
            continue
        reason = kernel.refuses(problem)
        if reason is None:
            configs = _configs(session, kernel, problem, facts)
            found += [Case(kernel, config, problem, facts) for config in configs]
        elif named:
            say(f"{kernel.name} refuses {problem}: {reason}")
    return found[: session.args.limit]


def _why_none(kernels: Sequence[Kernel], facts: Gpu) -> str:
    """Return why there is nothing to check."""
    without = [kernel.name for kernel in kernels if not kernel.runs_on(facts)]
    if len(without) == len(kernels):
        return (
            f"nothing to check: {', '.join(without) or 'no kernel'} has no config for {facts.name}"
        )
    names = ", ".join(kernel.name for kernel in kernels)
    return f"nothing to check: {names} can run none of the problems"


def _configs(session: Session, kernel: Kernel, problem: Problem, facts: Gpu) -> list[Config]:
    wanted = session.args.configs
    if wanted == "all":
        return list(kernel.fitting(problem, facts))
    config = kernel.default(problem, facts)
    if wanted == "default":
        return [config]
    config = names.changed(config, wanted)
    reason = kernel.misfit(config, problem, facts)
    if reason is not None:
        raise ProblemError(f"{kernel.name} cannot run {problem} with {config}: {reason}")
    return [config]


def _print(session: Session, rows: Sequence[CheckRow]) -> None:
    shown = [{**asdict(row), "status": row.status} for row in rows]
    if session.args.json:
        print_json(shown)
        return
    print_table(session.readable(shown), COLUMNS)
    print_remarks((row.kernel, row.remarks) for row in rows)
    failed = [row for row in rows if not row.ok]
    for row in failed:
        print(f"{row.kernel} {names.in_words(row.problem)}: {row.reason}")
    print(f"{len(rows) - len(failed)} of {len(rows)} checks passed")
