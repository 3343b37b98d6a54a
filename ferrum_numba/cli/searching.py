"""How `tune` searches: a plan, a budget, a roof, and what is known from before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli.output import say
from ferrum_numba.cli.session import Session
from ferrum_numba.contract import Kernel, Problem
from ferrum_numba.errors import ProblemError, StoreError
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu
    from ferrum_numba.results import ResultFile, Row
    from ferrum_numba.tune.held import Held
    from ferrum_numba.tune.planned import Plan


def plan_of(session: Session) -> Plan | None:
    """Return the plan that `--plan` names.

    Raises:
        StoreError: it is no plan, of other sources, or of none of these kernels.
    """
    if session.args.plan is None:
        return None
    from ferrum_numba.tune.planned import Plan

    plan = Plan.read(session.args.plan, session.kernels)
    if not plan.kernels:
        named = ", ".join(kernel.name for kernel in session.kernels)
        raise StoreError(f"{session.args.plan} has no programs of {named}")
    return plan


def problems_of(session: Session, plan: Plan | None) -> list[Problem]:
    """Return the problems that the user named, or those of the plan.

    Raises:
        ProblemError: a problem that was not planned.
    """
    named = session.args.problem or session.args.m
    if plan is None:
        return session.problems()
    if not named:
        return plan.problems
    problems = session.problems()
    missing = [problem for problem in problems if problem not in plan.problems]
    if missing:
        raise ProblemError(
            f"{missing[0]} is not in the plan {plan.folder}, which has "
            f"{len(plan.problems)} problems"
        )
    return problems


def how_to_search(session: Session, gpu: Gpu, held: Held) -> dict[str, Any]:
    """Return what `tune.tune` takes besides kernels, problems and the store."""
    args = session.args
    files = session.measured(gpu.key)
    return {
        "searcher": getattr(args, "searcher", "auto"),
        "budget_s": getattr(args, "budget", None),
        "within": getattr(args, "stop_within", None),
        "roof_us": roof_of(files, gpu),
        "earlier": [row for file in files for row in file.rows],
        "held": held,
    }


def roof_of(files: Iterable[ResultFile], gpu: Gpu) -> Callable[[Kernel, Problem], float] | None:
    """Return what tells the least time of a problem on this very board, by its measured ceilings.

    None where its memory or its tensor cores were never measured: those of another board, and
    datasheets, are no measured roof.
    """
    from ferrum_numba.roofline.ceilings import measured_ceilings, roof

    rows = [
        row
        for file in files
        for row in file.rows
        if gpu.uuid and file.environment_of(row)["uuid"] == gpu.uuid
    ]
    ceilings = measured_ceilings(rows)
    memory, tensor = (roof(ceilings, kind, "measured") for kind in ("memory", "tensor"))
    if memory is None or tensor is None:
        return None
    gbps, tflops = memory.rate, tensor.rate

    def roof_us(kernel: Kernel, problem: Problem) -> float:
        work = kernel.op.work(problem)
        return max(work.bytes / gbps / 1e3, work.flops / tflops / 1e6)

    return roof_us


def say_how_it_went(
    session: Session, problems: Sequence[Problem], rows: Sequence[Row], held: Held
) -> None:
    """Say how long the GPU was held, and what the budget did not reach."""
    from ferrum_numba.contract import describe
    from ferrum_numba.results.row import problem_key

    reached = {problem_key(row.problem) for row in rows}
    left = [problem for problem in problems if problem_key(describe(problem)) not in reached]
    budget_s = getattr(session.args, "budget", None)
    if left and budget_s:
        say(
            f"{len(left)} of {counted(len(problems), 'problem')} not reached in "
            f"{budget_s:g} s: the same command without --budget goes on with them"
        )
    elif left:
        say(f"no config fits here for {len(left)} of {counted(len(problems), 'problem')}")
    if held.held_s and not math.isnan(held.held_s):
        say(held.sentence())
