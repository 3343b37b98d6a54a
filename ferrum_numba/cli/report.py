"""`ferrum-numba report`: the main job. With a GPU: measure, then report; without: what is known."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ferrum_numba import gpu
from ferrum_numba.cli import options
from ferrum_numba.cli.bench import ceilings
from ferrum_numba.cli.check import Case, checked, on_interpreter
from ferrum_numba.cli.output import make_folder, print_json, progress, say
from ferrum_numba.cli.plan import SOME_ROWS, planned, was_built
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tune import WRONG, tuned
from ferrum_numba.contract import Kernel

if TYPE_CHECKING:
    from ferrum_numba.report import Sources
    from ferrum_numba.results import CheckRow, ResultFile

HELP = "one HTML file, Markdown, JSON and figures: measured here, or planned and recorded"
# a fresh machine of two cores, with or without a GPU, is through in minutes
LIMIT = 8
NUM_CHECKS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to report on, and where to."""
    options.add_kernels(parser)
    options.add_problems(parser)
    options.add_gpu(parser)
    options.add_store(parser)
    parser.add_argument(
        "--out",
        type=options.given,
        default="report",
        metavar="DIR",
        help="folder, report by default",
    )
    options.add_timeout(parser)
    options.add_effort(parser, f"configs a kernel and problem, {LIMIT} by default")
    parser.set_defaults(arch=None, limit=LIMIT)


def run(session: Session) -> int:
    """Write the report and print its paths; 1 where a check failed or a candidate is wrong."""
    args = session.args
    measures = not args.gpu and gpu.driver_present()
    # a mistake in what to report on leaves no folder behind
    session.problems(SOME_ROWS)
    make_folder(args.out)
    status = _measure(session) if measures else 0
    sources = _sources(session, measures)
    from ferrum_numba.report import write

    paths = [str(path) for path in write(Path(args.out), sources)]
    if args.json:
        print_json({"paths": paths})
    else:
        print("\n".join(paths))
    return status or (WRONG if any(not row.ok for row in sources.checks) else 0)


def _measure(session: Session) -> int:
    """Measure the GPU's ceilings and tune on it, into the store; 1 where a candidate is wrong."""
    from ferrum_numba import results

    problems = session.problems(SOME_ROWS)
    make_folder(session.store / session.gpu.key)
    if session.ceilings:
        results.save(session.store_path(session.gpu.key, "ceilings"), ceilings(session))
    files = [file for _, file in tuned(session, problems)]
    return WRONG if any(row.status == "wrong" for f in files for row in f.rows) else 0


def _sources(session: Session, measured_here: bool) -> Sources:
    """Return what there is to report: results, and what needs no GPU where there is none."""
    from dataclasses import asdict

    from ferrum_numba.report import Sources

    files = session.measured(session.gpu.key)
    names = {kernel.op.name for kernel in session.ceilings}
    ceiling_files = [file for file in files if _ops(file) <= names]
    others = [file for file in files if not _ops(file) <= names]
    if measured_here:
        return Sources(others, ceiling_files, peers=session.peers)
    say(f"no GPU is used: planning for {session.gpu.name}, checking by the interpreter")
    problems = session.problems(SOME_ROWS)
    plan_rows = [row for row in planned(session, problems, session.args.limit) if was_built(row)]
    checks = _checks(session)
    return Sources(others, ceiling_files, plan_rows, checks, session.peers, gpu=asdict(session.gpu))


def _ops(file: ResultFile) -> set[str]:
    return {row.op for row in file.rows}


def _checks(session: Session) -> list[CheckRow]:
    """Return checks of a few small problems, evenly over those a kernel can run."""
    cases = [case for kernel in session.kernels for case in _few(session, kernel)]
    rows: list[CheckRow] = []
    with progress("check") as bar:
        session.keep(checked(cases, on_interpreter(None), bar), rows.append)
    return rows


def _few(session: Session, kernel: Kernel) -> Sequence[Case]:
    if not kernel.runs_on(session.gpu):
        return []
    able = [problem for problem in kernel.op.tests if kernel.refuses(problem) is None]
    some = able[:: max(1, len(able) // NUM_CHECKS)][:NUM_CHECKS]
    return [(kernel, kernel.default(problem, session.gpu), problem) for problem in some]
