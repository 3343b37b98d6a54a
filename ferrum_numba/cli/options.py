"""Options that several commands share, declared once."""

from __future__ import annotations

import argparse


def add_kernels(parser: argparse.ArgumentParser) -> None:
    """Add the kernels to work on."""
    parser.add_argument("kernel", nargs="*", metavar="KERNEL", help="names; all by default")
    parser.add_argument(
        "--kernels", metavar="MODULE", help="adds your own, such as my_package.kernels"
    )


def add_problems(parser: argparse.ArgumentParser) -> None:
    """Add the problems to work on."""
    parser.add_argument(
        "--problem", metavar="SET|SIZES", help="llama3-8b, or M=16,N=4096,K=4096,group_size=128"
    )
    parser.add_argument("--m", type=_rows, metavar="M,M,…", help="these M for every problem")


def add_gpu(parser: argparse.ArgumentParser) -> None:
    """Add the GPU to plan for."""
    parser.add_argument("--gpu", metavar="NAME|FILE", help="h200, …, or a recorded result file")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the folder of results."""
    parser.add_argument("--store", metavar="DIR", help="folder of results: DIR/<gpu>/<op>.json")


def add_effort(parser: argparse.ArgumentParser, limited: str) -> None:
    """Add what bounds the work."""
    parser.add_argument("--limit", type=_positive, metavar="N", help=f"at most N {limited}")
    parser.add_argument("--no-cache", action="store_true", help="compile everything anew")


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add the time after which a candidate is given up."""
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="seconds a candidate may take"
    )


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text}")
    return value


def _rows(text: str) -> list[int]:
    return [_positive(part.strip()) for part in text.split(",")]
