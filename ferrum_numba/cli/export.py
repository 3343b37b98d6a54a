"""`ferrum-numba export`: what was tuned, as cubins with a manifest, for engines in any language."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from ferrum_numba.cli import options
from ferrum_numba.cli.output import print_json
from ferrum_numba.cli.progress import progress
from ferrum_numba.cli.session import Session
from ferrum_numba.errors import ProblemError

HELP = "what was tuned, as cubins and a manifest, for engines in any language; needs no GPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to export, for which GPU, and where to."""
    parser.add_argument(
        "model", nargs="?", type=options.given, metavar="MODEL_DIR",
        help="a GPTQ, AWQ or Marlin checkpoint, whose layers are exported for",
    )  # fmt: skip
    options.add_problems(parser)
    options.add_gpu(parser)
    parser.add_argument(
        "--out", required=True, type=options.given, metavar="DIR",
        help="a new or empty folder, or an earlier export, which is replaced",
    )  # fmt: skip
    parser.add_argument("--ptx", action="store_true", help="PTX too, for later GPUs where it can")
    parser.add_argument("--vectors", action="store_true", help="a test vector of every program too")
    parser.add_argument(
        "--store", choices=("marlin", "raw"),
        help="weights in packed tiles, or as GPTQ has them; by default packed where they can be",
    )  # fmt: skip
    parser.add_argument(
        "--bias-mode", choices=("fused", "two_step"), default="fused",
        help="a bias is added to the fp32 sum, or to the rounded result",
    )  # fmt: skip
    parser.add_argument(
        "--untuned", action="store_true",
        help="also for a GPU that was never tuned: what kernels run by default, marked so",
    )  # fmt: skip
    parser.add_argument("--no-cache", action="store_true", help="compile everything anew")


def run(session: Session) -> int:
    """Write the export; nothing of it where that fails."""
    from ferrum_numba.export import Options, export

    args = session.args
    wanted = Options(args.store, args.bias_mode, args.ptx, args.vectors, args.untuned)
    problems = _problems(session)
    with progress("export") as bar:
        made = export(problems, session.gpu, args.out, wanted, bar)
    if args.json:
        print_json({"out": args.out, **made})
        return 0
    _print(args.out, made)
    return 0


def _problems(session: Session) -> list[Any]:
    args = session.args
    if args.model is None:
        return session.problems()
    if args.problem is not None:
        raise ProblemError(f"give a checkpoint or --problem; got {args.model} and {args.problem}")
    from ferrum_numba.export.checkpoint import checkpoint_problems

    return checkpoint_problems(args.model, args.m or _usual_rows(session))


def _usual_rows(session: Session) -> list[int]:
    """Return the M of the first set of problems."""
    first = next(iter(session.problem_sets.values()))
    return sorted({problem.M for problem in first})


def _print(out: str, made: dict[str, Any]) -> None:
    entries = made["entries"]
    counts = Counter(entry["kernel"] for entry in entries)
    named = ", ".join(f"{count} {name}" for name, count in counts.items())
    size = sum(entry["bytes"] for entry in entries) / 2**20
    tuned = "" if made["tuned"] else "; nothing was tuned for it: defaults, marked untuned"
    print(f"{len(entries)} programs for {made['gpu']['name']} in {out}, {size:.1f} MB of cubins")
    print(f"  {named}{tuned}")
