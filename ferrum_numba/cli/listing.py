"""`ferrum-numba list`: Ops and kernels, the size of their spaces, and what each refuses."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli import options
from ferrum_numba.cli.names import nearest, refusals
from ferrum_numba.cli.output import print_json
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tables import print_table, table_width
from ferrum_numba.contract import Kernel, describe
from ferrum_numba.errors import ConfigError
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

HELP = "Ops, kernels, the size of their spaces, what each supports; PTX instructions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the GPU, because a space depends on it."""
    options.add_kernels(parser)
    options.add_gpu(parser)
    parser.add_argument(
        "--instructions", nargs="?", const="", metavar="WORD",
        help="in place of kernels, the PTX instructions with their operands; those that have WORD "
        "in their name, words or PTX",
    )  # fmt: skip


def run(session: Session) -> int:
    """Print the kernels, or the instructions."""
    if session.args.instructions is not None:
        return _instructions(session.args.instructions, as_json=session.args.json)
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


def _instructions(word: str, *, as_json: bool) -> int:
    """Print the instructions that have a word: operands, result, since when, what they do."""
    from ferrum_numba.ptx.listed import vocabulary

    known = list(vocabulary())
    found = [
        one for one in known if word.lower() in f"{one.name} {one.summary} {one.ptx or ''}".lower()
    ]
    if not found:
        raise ConfigError(
            f"no instruction has {word!r} in its name, words or PTX; "
            f"{nearest(word, [one.name for one in known])}"
        )
    if as_json:
        print_json([asdict(one) for one in found])
        return 0
    for one in found:
        since = f" (since {one.arch})" if one.arch else ""
        print(textwrap.fill(f"{one.signature}{since}", table_width(), subsequent_indent="        "))
        print(textwrap.indent(textwrap.fill(one.summary, table_width() - 4), "    "))
    print(f"{counted(len(found), 'instruction')} of {len(known)}; in Python, help(NAME) says more")
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
