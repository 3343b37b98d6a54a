"""`ferrum-numba report`: the main job. With a GPU: measure, then report; without: what is known."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ferrum_numba import gpu
from ferrum_numba.cases import Case
from ferrum_numba.cli import options
from ferrum_numba.cli.check import checked
from ferrum_numba.cli.interpreted import on_interpreter
from ferrum_numba.cli.output import make_folder, print_json, say
from ferrum_numba.cli.plan import SOME_ROWS, planned, was_built
from ferrum_numba.cli.progress import progress
from ferrum_numba.cli.refining import Refining, measure
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tune import WRONG
from ferrum_numba.contract import Kernel
from ferrum_numba.errors import StoreError

if TYPE_CHECKING:
    from ferrum_numba.report import Document
    from ferrum_numba.results import CheckRow
    from ferrum_numba.results.targets import Reached

HELP = "one HTML file, Markdown, JSON and figures: measured here, or planned and recorded"
# a fresh machine of two cores, with or without a GPU, is through in minutes
LIMIT = 8
NUM_CHECKS = 3
MISSED = 1


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
    parser.add_argument(
        "--compare", type=options.given, metavar="OLD.json",
        help="a result file of before: what has become faster or slower since",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="origin", type=options.given, metavar="REPORT.json",
        help="write an earlier report's pages and pictures again, without measuring",
    )  # fmt: skip
    parser.add_argument(
        "--targets", type=options.given, nargs="?", const=True, metavar="FILE",
        help="what must be reached, by default on the weights of the house; status 1 if missed",
    )  # fmt: skip
    parser.add_argument("--ceilings", action="store_true", help="measure the board's ceilings anew")
    options.add_timeout(parser)
    options.add_effort(parser, f"configs a kernel and problem, {LIMIT} by default")
    parser.set_defaults(arch=None, limit=LIMIT)


def run(session: Session) -> int:
    """Write the report and print its paths, and whether targets are reached.

    1 where a check failed, a candidate is wrong or a target is missed.
    """
    args = session.args
    if args.origin:
        return _again(session)
    session.need_store()
    measures = not args.gpu and gpu.driver_present()
    # a mistake in what to report on leaves no folder behind
    problems = session.problems(SOME_ROWS)
    refining = Refining(session, problems, measured_here=measures)
    refining.document()
    make_folder(args.out)
    if measures:
        status = measure(refining)
    else:
        status = _without_gpu(refining)
    paths, found = refining.write(), refining.reached()
    _print(session, paths, found)
    return MISSED if any(one.met is False for one in found) else status


def _again(session: Session) -> int:
    """Write a report from its JSON."""
    from ferrum_numba.report import Document, Writer

    for name in ("compare", "targets"):
        if getattr(session.args, name):
            raise StoreError(f"--{name} needs results: --from has what was made of them")
    found: Document = Document.load(session.args.origin)
    make_folder(session.args.out)
    _print(session, Writer(session.args.out).write(found))
    return 0


def _print(session: Session, paths: Sequence[Path], found: Sequence[Reached] = ()) -> None:
    texts = [str(path) for path in paths]
    if session.args.json:
        targets = [{"name": r.target.name, "met": r.met, "text": r.text} for r in found]
        print_json({"paths": texts} | ({"targets": targets} if session.args.targets else {}))
    else:
        print("\n".join([*texts, *(one.text for one in found)]))


def _without_gpu(refining: Refining) -> int:
    """Plan and check, both without a GPU; 1 where a check failed."""
    session = refining.session
    say(f"no GPU is used: planning for {session.gpu.name}, checking by the interpreter")
    rows = planned(session, refining.problems, session.args.limit)
    refining.plan = [row for row in rows if was_built(row)]
    refining.write()
    refining.checks = _checks(session)
    return WRONG if any(not row.ok for row in refining.checks) else 0


def _checks(session: Session) -> list[CheckRow]:
    """Return checks of a few small problems, evenly over those a kernel can run."""
    cases = [case for kernel in session.kernels for case in _few(session, kernel)]
    rows: list[CheckRow] = []
    with progress("check") as bar:
        session.keep(checked(cases, on_interpreter(), bar), rows.append)
    return rows


def _few(session: Session, kernel: Kernel) -> Sequence[Case]:
    if not kernel.runs_on(session.gpu):
        return []
    able = [problem for problem in kernel.op.tests if kernel.refuses(problem) is None]
    some = able[:: max(1, len(able) // NUM_CHECKS)][:NUM_CHECKS]
    return [
        Case(kernel, kernel.default(problem, session.gpu), problem, session.gpu) for problem in some
    ]
