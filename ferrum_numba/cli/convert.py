"""`ferrum-numba convert`: a quantised checkpoint in another format, without loss."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ferrum_numba.cli import options
from ferrum_numba.cli.output import print_json
from ferrum_numba.cli.progress import progress
from ferrum_numba.cli.session import Session
from ferrum_numba.words import counted

HELP = "a quantised checkpoint in another format, the same to the bit"
FORMATS = ("gptq", "gptq_v2", "awq", "compressed-tensors", "marlin")
READINGS = ("carry", "wrap", "sixteen")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to convert, where to, and into what."""
    parser.add_argument(
        "source", type=options.given, metavar="SOURCE", help=".safetensors file or folder"
    )
    parser.add_argument("target", type=options.given, metavar="TARGET", help="a new folder")
    parser.add_argument("--to", choices=FORMATS, required=True, help="the format")
    parser.add_argument(
        "--zero-overflow", choices=READINGS,
        help="what a GPTQ v1 zero point means that is stored as 15; asked for where there is one",
    )  # fmt: skip


def run(session: Session) -> int:
    """Write the checkpoint; nothing of it where that fails."""
    from ferrum_numba.gptq.convert import convert_checkpoint

    args = session.args
    session.whole = True
    with progress("convert") as bar:
        made = convert_checkpoint(
            args.source, args.target, args.to, zero_overflow=args.zero_overflow, progress=bar
        )
    if args.json:
        print_json({"target": args.target, "format": args.to, **asdict(made)})
        return 0
    print(
        f"{args.target} has {counted(made.layers, 'layer')} as {args.to}, "
        f"and {counted(made.others, 'other tensor')} unchanged"
    )
    return 0
