"""`ferrum-numba list`: Ops and kernels, the size of their spaces, and what each refuses."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli import options
from ferrum_numba.cli.names import refusals
from ferrum_numba.cli.output import print_json
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tables import print_table
from ferrum_numba.contract import Kernel, describe

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

HELP = "Ops, kernels, the size of their spaces, what each supports"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the GPU, because a space depends on it."""
    options.add_kernels(parser)
    options.add_gpu(parser)


def run(session: Session) -> int:
    """Print the kernels."""
    rows = [entry(kernel, session.gpu) for kernel in session.kernels]
    if session.args.json:
        print_json(rows)
        return 0
    for op in {kernel.op.name: kernel.op for kernel in session.kernels}.values():
        print(f"{op.name}: {op.formula}")
        here = [row for row in rows if row["op"] == op.name]
        columns = ("kernel", "configs", "runs", "summary")
        print_table(here, columns, f"configs for {session.gpu.name}; runs: of the test problems")
        said = [(row["kernel"], no["reason"], 1) for row in here for no in row["refuses"]]
        for names, reason, count in refusals(said):
            print(f"  {count} of them not by {names}: {reason}")
    print(f"problem sets: {', '.join(session.problem_sets)}")
    if session.tools:
        print(f"by name only: {', '.join(tool.name for tool in session.tools)}")
    return 0


def entry(kernel: Kernel, gpu: Gpu) -> dict[str, Any]:
    """Return a kernel's row; `refuses` has the reason of each test problem that it cannot run."""
    tests = kernel.op.tests
    refusals = [(problem, kernel.refuses(problem)) for problem in tests]
    refuses = [
        {"problem": describe(problem), "reason": reason} for problem, reason in refusals if reason
    ]
    return {
        "kernel": kernel.name,
        "op": kernel.op.name,
        "summary": kernel.summary,
        "configs": len(kernel.configs(gpu)),
        "runs": f"{len(tests) - len(refuses)} of {len(tests)}",
        "refuses": refuses,
    }
