"""`ferrum-numba decisions merge`: one table for all ranks, from the results of many boards."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ferrum_numba.cli import options
from ferrum_numba.cli.output import print_json, say
from ferrum_numba.cli.session import Session
from ferrum_numba.errors import StoreError

HELP = "merge: one table of what to run, from result files of many boards, the same in any order"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to do, with which files, and where the table goes."""
    parser.add_argument("action", choices=("merge",), help="the only one so far")
    parser.add_argument(
        "file",
        nargs="+",
        type=options.given,
        metavar="FILE",
        help="result files, as tune writes them",
    )
    parser.add_argument(
        "--out", type=options.given, required=True, metavar="FILE", help="the table of decisions"
    )


def run(session: Session) -> int:
    """Merge."""
    from ferrum_numba import results
    from ferrum_numba.results.decisions import save_decisions
    from ferrum_numba.results.merging import merge_decisions

    args = session.args
    _refuse_other(args.out)
    files = [results.load(path) for path in args.file]
    head, found = merge_decisions(files)
    save_decisions(args.out, head, found)
    if args.json:
        print_json({**head, "decisions": [asdict(one) for one in found]})
    boards = len(head["boards"])
    say(f"{len(found)} decisions of {boards} board{'s' if boards != 1 else ''} are in {args.out}")
    return 0


def _refuse_other(path: str) -> None:
    """Refuse to write over what is no table of decisions, such as one of the result files."""
    from ferrum_numba.results.decisions import load_decisions

    if not Path(path).is_file():
        return
    try:
        load_decisions(path)
    except StoreError as error:
        raise StoreError(
            f"{path} is there and no table of decisions; remove it, or name another file"
        ) from error
