"""`ferrum-numba inspect`: a checkpoint's quantised layers, and which kernels can run them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli import options
from ferrum_numba.cli.names import refusals
from ferrum_numba.cli.output import print_json, print_table
from ferrum_numba.cli.session import Session
from ferrum_numba.contract import Kernel, Problem
from ferrum_numba.errors import ProblemError

if TYPE_CHECKING:
    from ferrum_numba.gptq.checkpoint import LayerInfo

HELP = "a checkpoint's quantised layers, and which kernels can run them"
# what a layer says of a problem: a kernel whose problems have all of these can be asked
SAID = frozenset({"M", "N", "K", "group_size", "zero_points", "act_order", "bias"})
# in words of the problem; scales of float32 are rounded to float16 when the layer is made
DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp16"}
COLUMNS = ("layers", "name", "format", "K", "N", "group_size", "sym", "act_order", "bias", "dtype")
YES = "yes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint."""
    parser.add_argument("path", type=options.given, metavar="FILE|FOLDER", help="the checkpoint")
    parser.add_argument(
        "--kernels", type=options.given, metavar="MODULE",
        help="adds your own, such as my_package.kernels",
    )  # fmt: skip


def run(session: Session) -> int:
    """Print the layers."""
    from ferrum_numba.gptq.checkpoint import GptqCheckpoint

    kernels = [k for k in session.kernels if {f.name for f in fields(k.op.problem)} >= SAID]
    with GptqCheckpoint.open(session.args.path) as checkpoint:
        layers = checkpoint.layers()
    rows = [{**asdict(layer), "kernels": answers(layer, kernels)} for layer in layers]
    if session.args.json:
        print_json(rows)
        return 0
    if not rows:
        print(f"{session.args.path} has no quantised layer")
        return 0
    _print(rows, [kernel.name for kernel in kernels])
    return 0


def answers(layer: LayerInfo, kernels: Iterable[Kernel]) -> dict[str, str]:
    """Return "yes", or why not, by the name of each kernel."""
    return {kernel.name: _answer(layer, kernel) for kernel in kernels}


def _answer(layer: LayerInfo, kernel: Kernel) -> str:
    if layer.error is not None:
        return layer.error
    try:
        return kernel.refuses(_problem(layer, kernel.op.problem)) or YES
    except ProblemError as error:
        return str(error)


def _problem(layer: LayerInfo, kind: type) -> Problem:
    """Return the problem of one row of activations; a kind may say nothing of types."""
    # AWQ's zero points are stored as they are
    stored_as = "gptq" if layer.format == "gptq" else "gptq_v2"
    sizes: dict[str, Any] = {
        "M": 1, "N": layer.N, "K": layer.K, "group_size": layer.group_size,
        "zero_points": "none" if layer.sym else stored_as,
        "act_order": layer.act_order, "bias": layer.bias,
    }  # fmt: skip
    if "dtype" in {field.name for field in fields(kind)}:
        sizes["dtype"] = DTYPES[layer.dtype or "float16"]
    return kind(**sizes)


def _print(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        # a reason may name its layer
        said = {name: _pattern(reason) for name, reason in row["kernels"].items()}
        alike = {**row, "name": _pattern(row["name"]), "error": None, "kernels": said}
        groups.setdefault(repr(alike), []).append(alike)
    shown = [_marks(group[0]) | group[0] | {"layers": len(group)} for group in groups.values()]
    print_table(shown, (*COLUMNS, *names), f"{len(rows)} quantised layers")
    refused = [
        (name, reason, row["layers"])
        for row in shown
        for name, reason in row["kernels"].items()
        if reason != YES
    ]
    for names_together, reason, count in refusals(refused):
        print(f"  {count} of them not by {names_together}: {reason}")


def _marks(row: dict[str, Any]) -> dict[str, str]:
    return {name: YES if said == YES else "no" for name, said in row["kernels"].items()}


def _pattern(text: str) -> str:
    """Return a layer's name with its numbers as stars: layers and experts of a kind look alike."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", text)
