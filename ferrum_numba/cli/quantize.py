"""`ferrum-numba quantize`: a GPTQ checkpoint of a model, by rounding to nearest."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict

from ferrum_numba.cli import options
from ferrum_numba.cli.output import print_json
from ferrum_numba.cli.progress import progress
from ferrum_numba.cli.session import Session
from ferrum_numba.words import counted

HELP = "a GPTQ checkpoint of a 16-bit model, by rounding to nearest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to quantise, where to, and how."""
    parser.add_argument(
        "source", type=options.given, metavar="SOURCE", help=".safetensors file or folder"
    )
    parser.add_argument("target", type=options.given, metavar="TARGET", help="a new folder")
    parser.add_argument(
        "--group-size", type=_group_size, default=128, metavar="N",
        help="rows that share a scale, 128 by default; -1 for all of them",
    )  # fmt: skip
    parser.add_argument("--asym", action="store_true", help="zero points of their own, not 8")
    parser.add_argument(
        "--format", choices=("gptq", "gptq_v2"), default="gptq", help="how zero points are stored"
    )
    parser.add_argument("--include-lm-head", action="store_true", help="quantise the head too")
    for option, what in (
        ("--include", "quantise what has this in its name, though it would be kept"),
        ("--exclude", "keep what has this in its name; wins"),
    ):
        parser.add_argument(
            option, type=options.given, action="append", default=[], metavar="REGEX",
            help=f"{what}; may be given more than once",
        )  # fmt: skip


def run(session: Session) -> int:
    """Write the checkpoint; nothing of it where that fails."""
    from ferrum_numba.gptq.quantize import Recipe, quantize_checkpoint

    args = session.args
    recipe = Recipe(
        args.group_size, not args.asym, args.format, args.include_lm_head, tuple(args.include),
        tuple(args.exclude),
    )  # fmt: skip
    session.whole = True
    with progress("quantize") as bar:
        made = quantize_checkpoint(args.source, args.target, recipe, bar)
    if args.json:
        print_json({"target": args.target, "recipe": asdict(recipe), **asdict(made)})
        return 0
    print(f"{args.target} has {counted(len(made.layers), 'quantised layer')}")
    for reason, count in Counter(made.kept.values()).items():
        names = [name for name, why in made.kept.items() if why == reason]
        print(f"  kept {count}: {reason}, such as {names[0]}")
    return 0


def _group_size(text: str) -> int:
    size = int(text) if text.removeprefix("-").isdecimal() else 0
    if size != -1 and size < 1:
        raise argparse.ArgumentTypeError(
            f"must be -1 or a whole number of at least 1; got {text!r}"
        )
    return size
