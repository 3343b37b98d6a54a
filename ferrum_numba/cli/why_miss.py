"""`ferrum-numba why-miss`: what a tune would measure again, and why the store does not answer."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ferrum_numba.cli import options
from ferrum_numba.cli.output import print_json
from ferrum_numba.cli.progress import progress
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tables import print_table
from ferrum_numba.cli.tune import TUNING, by_op

HELP = "say what tune would measure here, though the store has results, and why"
COLUMNS = ("kernel", "candidates", "why")
KNOWN = "known: not measured again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what would be tuned, and where its store is."""
    options.add_kernels(parser)
    options.add_problems(parser)
    options.add_gpu(parser)
    options.add_store(parser)
    options.add_effort(parser, "configs a kernel and problem, half of them the likeliest")


def run(session: Session) -> int:
    """Print how many candidates are known, and of the others how many for which reason."""
    session.need_store()
    found = _misses(session)
    if session.args.json:
        print_json(
            [
                {"kernel": row.kernel, "problem": row.problem, "config": row.config, "why": why}
                for row, why in found
            ]
        )
        return 0
    counts: dict[tuple[str, str], int] = {}
    for row, why in found:
        about = row.kernel, why or KNOWN
        counts[about] = counts.get(about, 0) + 1
    rows = [
        {"kernel": kernel, "candidates": count, "why": why}
        for (kernel, why), count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    print_table(rows, COLUMNS, session.gpu.name, folded=("why",))
    return 0


def _misses(session: Session) -> list[tuple[Any, str | None]]:
    from ferrum_numba import results
    from ferrum_numba.measure import Policy
    from ferrum_numba.tune.misses import why_miss

    gpu, problems = session.gpu, session.problems()
    here = results.environment(gpu, Policy(**TUNING), sys.argv)
    found = []
    for op, kernels in by_op(session.kernels):
        path = session.store_path(gpu.key, op.name)
        with progress(op.name) as bar:
            found += why_miss(
                kernels, problems, gpu, here, path, limit=session.args.limit, progress=bar
            )
    return found
