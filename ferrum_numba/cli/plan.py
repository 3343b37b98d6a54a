"""`ferrum-numba plan`: compile the space for a GPU that need not be there."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli import options
from ferrum_numba.cli.output import print_json, print_table, progress
from ferrum_numba.cli.session import Session

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


def run(session: Session) -> int:
    """Print a row for each kernel, problem and config; 1 where one does not compile."""
    rows = planned(session, session.problems(SOME_ROWS), session.args.limit)
    session.rows_kept = len(rows)
    if session.args.json:
        print_json([asdict(row) for row in rows])
    else:
        _print(session, rows)
    return NO_BUILD if any(row.status == "build failed" for row in rows) else 0


def _print(session: Session, rows: Sequence[Planned]) -> None:
    built = [row for row in rows if was_built(row)]
    title = f"{session.gpu.name}, {session.gpu.source}; bound_us is modelled"
    print_table(session.readable(map(asdict, built)), COLUMNS, title)
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
