"""Options that several commands share, declared once."""

from __future__ import annotations

import argparse
import math
import re

# what NVVM compiles for and the kernels' instructions need
ARCHS = (
    "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_103",
    "sm_103a", "sm_120", "sm_120a", "sm_121", "sm_121a",
)  # fmt: skip

UNIT_S = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

# rows of x that a problem may have
MOST_ROWS = 65536


def add_kernels(parser: argparse.ArgumentParser) -> None:
    """Add the kernels to work on."""
    parser.add_argument("kernel", nargs="*", metavar="KERNEL", help="names; all by default")
    parser.add_argument(
        "--kernels",
        type=given,
        metavar="MODULE",
        help="adds your own, such as my_package.kernels",
    )


def add_problems(parser: argparse.ArgumentParser) -> None:
    """Add the problems to work on."""
    parser.add_argument(
        "--problem",
        type=given,
        metavar="SET|SIZES",
        help="llama3-8b, or M=16,N=4096,K=4096,group_size=128",
    )
    add_rows(parser, "these M for every problem")


def add_rows(parser: argparse.ArgumentParser, what: str, usual: str | None = None) -> None:
    """Add numbers of rows."""
    parser.add_argument(
        "--m", type=_rows, default=usual and _rows(usual), metavar="M,M-M,…", help=what
    )


def add_top_k(parser: argparse.ArgumentParser) -> None:
    """Add the experts of a token."""
    parser.add_argument(
        "--top-k", type=_positive, metavar="K",
        help="experts of a token; by default as config.json says",
    )  # fmt: skip


def add_gpu(parser: argparse.ArgumentParser) -> None:
    """Add the GPU to plan for."""
    parser.add_argument(
        "--gpu", type=given, metavar="NAME|FILE", help="h200, …, or a recorded result file"
    )


def add_arch(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the architecture to compile for."""
    parser.add_argument("--arch", type=_arch, metavar="sm_NN", help=what)


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the folder of results."""
    parser.add_argument(
        "--store", type=given, metavar="DIR", help="folder of results: DIR/<gpu>/<op>.json"
    )


def add_effort(parser: argparse.ArgumentParser, limited: str) -> None:
    """Add what bounds the work."""
    parser.add_argument("--limit", type=_positive, metavar="N", help=f"at most N {limited}")
    parser.add_argument("--no-cache", action="store_true", help="compile everything anew")


def add_repeat(parser: argparse.ArgumentParser) -> None:
    """Add how often finals are held."""
    parser.add_argument(
        "--repeat", type=_positive, default=1, metavar="N",
        help="hold every final N times, and say how often winners change and what that costs",
    )  # fmt: skip


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add the time after which a candidate is given up."""
    parser.add_argument(
        "--timeout", type=_seconds, default=30.0, metavar="S", help="seconds a candidate may take"
    )


def some_seconds(text: str) -> float:
    """Return seconds, of which there may be none."""
    return 0.0 if text.strip() in ("0", "0.0") else _seconds(text)


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add how a search goes on, and when it stops."""
    from ferrum_numba.tune.searchers import NAMES

    parser.add_argument(
        "--plan", type=given, metavar="DIR",
        help="what `plan --out DIR` made: nothing is compiled, and its problems are the default",
    )  # fmt: skip
    parser.add_argument(
        "--searcher", choices=NAMES, default="auto", metavar="|".join(NAMES),
        help="which configs: all of them; the model's first picks and neighbours of the best; "
        "Optuna's; auto: all where they are few, else by the model",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=_duration, metavar="TIME",
        help="be done in 90s, 10m or 2h; the default and the incumbent are measured whatever it is",
    )  # fmt: skip
    parser.add_argument(
        "--stop-within", type=_per_cent, metavar="PERCENT",
        help="leave a problem whose best is so near to this board's measured ceilings",
    )  # fmt: skip
    parser.add_argument(
        "--replay", type=given, metavar="FILE",
        help="a result file, or one in the T4 format: search in what it has; needs no GPU",
    )  # fmt: skip
    parser.add_argument(
        "--t4", type=given, metavar="DIR",
        help="write what was measured in the T4 format too, a file a kernel and problem",
    )  # fmt: skip


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """Add the GPUs to measure on, where they are several."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--gpus", type=given, metavar="all|0,1|UUID,…",
        help="several GPUs of this machine at once, a problem on each",
    )  # fmt: skip
    where.add_argument(
        "--dask", type=given, metavar="ADDRESS",
        help="the workers of a Dask scheduler, started with --resources GPU=1, one a GPU",
    )  # fmt: skip


def given(text: str) -> str:
    """Return an option's text; an empty one, as of an unset shell variable, is a mistake."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _arch(text: str) -> str:
    if text in ARCHS:
        return text
    number = re.search(r"\d{2,3}", text)
    if number is None:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(ARCHS)}; got {text!r}")

    def distance(arch: str) -> tuple[int, bool]:
        away = abs(int(arch[3:].rstrip("a")) - int(number[0]))
        return away, arch.endswith("a") != text.endswith("a")

    near = min(ARCHS, key=distance)
    raise argparse.ArgumentTypeError(f"{text!r} is not supported; the nearest that is, is {near}")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds; got {text!r}")
    return value


def _duration(text: str) -> float:
    """Return the seconds of `90s`, `10m`, `2h`, or of a number."""
    found = re.fullmatch(r"([0-9.]+)\s*(s|m|h)?", text.strip())
    try:
        number = float(found[1]) if found else math.nan
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"must be a time such as 90s, 10m or 2h; got {text!r}")
    return number * UNIT_S[found[2] if found else None]


def _per_cent(text: str) -> float:
    """Return the part that so many per cent are."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"must be 0 to 100 per cent; got {text!r}")
    return value / 100


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return value


def _rows(text: str) -> list[int]:
    """Return the numbers of `1,8,16-32`, each once."""
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low = _positive(first)
        high = _positive(last) if dash else low
        if high < low:
            raise argparse.ArgumentTypeError(f"{part.strip()} ends before it begins")
        if high > MOST_ROWS:
            raise argparse.ArgumentTypeError(f"must be at most {MOST_ROWS}; got {high}")
        found |= dict.fromkeys(range(low, high + 1))
    return list(found)
