"""`ferrum-numba plan`: compile the space for a GPU that need not be there."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli import options
from ferrum_numba.cli.names import in_words
from ferrum_numba.cli.output import (
    make_folder,
    print_json,
    print_remarks,
    print_table,
    progress,
    say,
)
from ferrum_numba.cli.session import Session
from ferrum_numba.errors import ConfigError
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.results import Planned

HELP = "compile the space for a GPU, which need not be there: registers, spills, occupancy, bound"
NO_BUILD = 1
# decode, a batch, prefill: what a space looks like, without every M of a set
SOME_ROWS = (1, 16, 256)
COLUMNS = (
    "kernel", "problem", "config", "registers", "spill_bytes", "smem_bytes", "blocks_per_sm",
    "bound_us", "status", "reason",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to plan, and for which GPU."""
    options.add_kernels(parser)
    options.add_problems(parser)
    options.add_gpu(parser)
    options.add_arch(parser, "compile for this architecture instead of the GPU's, such as sm_80")
    options.add_effort(parser, "configs a kernel and problem, half of them the likeliest")
    parser.add_argument(
        "--out", type=options.given, metavar="DIR",
        help="keep the programs there, for `tune --plan DIR`; all problems of a set then",
    )  # fmt: skip


def run(session: Session) -> int:
    """Print a row for each kernel, problem and config; 1 where one does not compile."""
    rows = _into(session) if session.args.out else _some(session)
    if session.args.json:
        print_json([asdict(row) for row in rows])
    elif session.args.out:
        _print_kept(rows)
    else:
        _print(session, rows)
    return NO_BUILD if any(row.status == "build failed" for row in rows) else 0


def _some(session: Session) -> list[Planned]:
    return planned(session, session.problems(SOME_ROWS), session.args.limit)


def _into(session: Session) -> list[Planned]:
    """Plan into a folder, and say what it holds."""
    from ferrum_numba.tune.expected import expected_s
    from ferrum_numba.tune.plan import plan_into
    from ferrum_numba.tune.planned import PROGRAMS, size_bytes

    args, facts = session.args, session.gpu
    if args.arch not in (None, facts.arch):
        raise ConfigError(
            f"a plan is for {facts.name}, which is {facts.arch}; name another GPU by --gpu "
            f"instead of --arch {args.arch}"
        )
    problems = session.problems()
    make_folder(args.out)
    session.kept, session.goes_on = "program", True
    try:
        with progress("plan") as bar:
            rows = plan_into(
                args.out, session.kernels, problems, facts, limit=args.limit, progress=bar
            )
    finally:
        session.rows_kept = len(list((Path(args.out) / PROGRAMS).glob("*.cubin")))
    size_mb = size_bytes(Path(args.out)) / 1e6
    minutes = [expected_s(rows, searcher) / 60 for searcher in ("auto", "model")]
    say(
        f"{args.out} holds the programs of {counted(len(problems), 'problem')}, {size_mb:.1f} MB; "
        f"`ferrum-numba tune --plan {args.out}` is expected to hold {facts.name} for "
        f"{minutes[0]:.1f} minutes, with `--searcher model` for {minutes[1]:.1f}"
    )
    return rows


def _print_kept(rows: Sequence[Planned]) -> None:
    """Print what of each kernel would be measured, and why the others are not."""
    counts = Counter((row.kernel, row.status) for row in rows)
    statuses = sorted({status for _, status in counts})
    table = [
        {"kernel": name, **{status: counts[name, status] for status in statuses}}
        for name in dict.fromkeys(row.kernel for row in rows)
    ]
    print_table(table, ("kernel", *statuses), "candidates")
    for row in rows:
        if row.status == "build failed":
            print(f"build failed: {row.kernel} {in_words(row.config)}: {row.reason}")


def _print(session: Session, rows: Sequence[Planned]) -> None:
    built = [row for row in rows if was_built(row)]
    title = f"{session.gpu.name}, {session.gpu.source}; bound_us is modelled"
    print_table(session.readable(map(asdict, built)), COLUMNS, title)
    print_remarks((row.kernel, row.remarks) for row in built)
    apart = Counter((row.kernel, row.reason) for row in rows if not was_built(row))
    for (kernel, reason), count in apart.most_common():
        print(f"{count} of {kernel} do not fit: {reason}")
    good = sum(row.status == "ok" for row in rows)
    print(f"{good} of {len(built)} compiled candidates are worth measuring")


def was_built(row: Planned) -> bool:
    """Tell whether a candidate went to the compiler; others were refused by their kernel."""
    return row.registers is not None or row.status == "build failed"


def planned(session: Session, problems: Sequence[Any], limit: int | None) -> list[Planned]:
    """Return the plan's rows."""
    from ferrum_numba.tune import plan

    arch = session.args.arch
    with progress("plan") as bar:
        return plan(session.kernels, problems, session.gpu, arch, limit=limit, progress=bar)
