"""`ferrum-numba check`: kernels against their reference, on the GPU or by the interpreter."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ferrum_numba import gpu
from ferrum_numba.cases import Case, cases_of
from ferrum_numba.cli import names, options
from ferrum_numba.cli.interpreted import (
    Check,
    facts_for,
    on_interpreter,
    say_how_long,
    traced,
)
from ferrum_numba.cli.output import print_json, print_remarks, printed_beside, say
from ferrum_numba.cli.progress import Progress, progress
from ferrum_numba.cli.session import TUNED_GPU, Session
from ferrum_numba.cli.tables import print_table
from ferrum_numba.cli.traces import print_traces
from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.errors import ContextError, ProblemError
from ferrum_numba.results.unmeasured import CheckRow
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.check import Checked
    from ferrum_numba.gpu import Gpu
    from ferrum_numba.tracing import Trace

HELP = "kernels against their reference: on the GPU, or by the interpreter"
FAILED = 1
COLUMNS = (
    "kernel", "problem", "config", "num_sms", "how", "status", "rel_error", "max_error", "seconds",
)  # fmt: skip


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
    parser.add_argument(
        "--trace", action="store_true",
        help="count, line by line, what the interpreter's warps do: sectors, bank conflicts, "
        "waits, idle lanes; of the first test problem if none is named",
    )  # fmt: skip
    options.add_effort(parser, "checks a kernel")


def run(session: Session) -> int:
    """Check, print a row for each case; 1 where one fails."""
    args = session.args
    if args.trace:
        return _trace(session)
    on_gpu = args.on == "gpu" or (args.on == "auto" and gpu.driver_present())
    if on_gpu:
        facts, check = _on_gpu()
    else:
        facts, check = facts_for(args.arch), on_interpreter(args.orders)
    cases = _all_cases(session, session.runnable() if on_gpu else session.kernels, facts)
    if not on_gpu:
        say_how_long(cases, args.orders)
    rows: list[CheckRow] = []
    # what a kernel prints is no part of the JSON
    with printed_beside() if args.json else nullcontext(), progress("check") as bar:
        if on_gpu and len(cases) > 1:
            _build(cases, facts.arch, bar)
        session.keep(checked(cases, check, bar), rows.append)
    session.rows_kept = len(rows)
    session.to_come = counted(len(cases) - len(rows), "check")
    _print(session, rows)
    return FAILED if any(not row.ok for row in rows) else 0


def _trace(session: Session) -> int:
    """Trace, print a table for each case; 1 where the result is wrong."""
    args = session.args
    if args.on == "gpu" or args.orders is not None:
        other = "--on gpu" if args.on == "gpu" else "--orders"
        raise ProblemError(f"--trace counts what the interpreter does in one order; leave {other}")
    cases = _all_cases(session, session.kernels, facts_for(args.arch))
    if args.problem is None:
        # a kernel's first: the tests of an Op are many, and alike
        cases = list({case.kernel.name: case for case in reversed(cases)}.values())[::-1]
    say_how_long(cases, 1)
    traces: list[Trace] = []
    with printed_beside() if args.json else nullcontext(), progress("trace") as bar:
        session.keep(traced(cases, bar), traces.append)
    session.rows_kept, session.kept = len(traces), "trace"
    session.to_come = counted(len(cases) - len(traces), "trace")
    if args.json:
        print_json([trace.to_json() for trace in traces])
    else:
        print_traces(traces)
    return FAILED if any(not trace.checked.ok for trace in traces) else 0


def _all_cases(session: Session, kernels: Sequence[Kernel], facts: Gpu) -> list[Case]:
    cases = [case for kernel in kernels for case in _cases(session, kernel, facts)]
    if not cases:
        raise ProblemError(_why_none(kernels, facts))
    return cases


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


def _cases(session: Session, kernel: Kernel, facts: Gpu) -> list[Case]:
    named = session.args.problem is not None
    if not named and session.args.configs == "default":
        return list(cases_of(kernel, facts))[: session.args.limit]
    found: list[Case] = []
    if not kernel.runs_on(facts):
        return found
    misfits: list[str] = []
    for problem in session.problems() if named else kernel.op.tests:
        if not isinstance(problem, kernel.op.problem):
            continue
        reason = kernel.refuses(problem)
        if reason is None:
            configs = _configs(session, kernel, problem, facts, misfits)
            found += [Case(kernel, config, problem, facts) for config in configs]
        elif named:
            say(f"{kernel.name} refuses {problem}: {reason}")
    if misfits and not found:
        raise ProblemError(misfits[0])
    if misfits:
        left_out = counted(len(misfits), "problem")
        say(f"{left_out} left out, which the config does not fit; the first: {misfits[0]}")
    return found[: session.args.limit]


def _why_none(kernels: Sequence[Kernel], facts: Gpu) -> str:
    """Return why there is nothing to check."""
    without = [kernel for kernel in kernels if not kernel.runs_on(facts)]
    listed = ", ".join(kernel.name for kernel in without)
    if len(without) == len(kernels):
        reasons = dict.fromkeys(filter(None, (_why_not(kernel, facts) for kernel in without)))
        why = f": {'; '.join(reasons)}" if reasons else ""
        return f"nothing to check: {listed or 'no kernel'} has no config for {facts.name}{why}"
    can = ", ".join(kernel.name for kernel in kernels)
    return f"nothing to check: {can} can run none of the problems"


def _why_not(kernel: Kernel, facts: Gpu) -> str | None:
    """Return why what runs on the GPU of this house does not fit another."""
    here = gpu.find(TUNED_GPU)
    for problem in kernel.op.tests:
        if kernel.runs_on(here) and kernel.refuses(problem) is None:
            return kernel.misfit(kernel.default(problem, here), problem, facts)
    return None


def _configs(
    session: Session, kernel: Kernel, problem: Problem, facts: Gpu, misfits: list[str]
) -> list[Config]:
    """Return the configs to check on a problem; a named one that does not fit is in `misfits`."""
    wanted = session.args.configs
    if wanted == "all":
        return list(kernel.fitting(problem, facts))
    config = kernel.default(problem, facts)
    if wanted == "default":
        return [config]
    config = names.changed(config, wanted)
    reason = kernel.misfit(config, problem, facts)
    if reason is not None:
        misfits.append(f"{kernel.name} cannot run {problem} with {config}: {reason}")
        return []
    return [config]


def _print(session: Session, rows: Sequence[CheckRow]) -> None:
    shown = [{**asdict(row), "status": row.status} for row in rows]
    if session.args.json:
        print_json(shown)
        return
    lines = session.readable(shown)
    print_table(lines, COLUMNS)
    print_remarks((row.kernel, row.remarks) for row in rows)
    failed = [row for row in rows if not row.ok]
    _print_failures(rows, [line["config"] for line in lines])
    print(f"{len(rows) - len(failed)} of {len(rows)} checks passed")


def _print_failures(rows: Sequence[CheckRow], configs: Sequence[str]) -> None:
    """Print each reason once a problem, with the config, or the first of them that it is of."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row, config in zip(rows, configs, strict=True):
        if not row.ok:
            about = (row.kernel, names.in_words(row.problem), row.reason)
            groups.setdefault(about, []).append(config)
    for (kernel, problem, reason), several in groups.items():
        first, *others = dict.fromkeys(several)
        alone = first == "default" and not others
        which = "" if alone else f" with {'the default' if first == 'default' else first}"
        more = f" and {counted(len(others), 'more config')}" if others else ""
        print(f"{kernel} {problem}{which}{more}: {reason}")
