"""`ferrum-numba inspect`: a checkpoint's quantised layers, and which kernels can run them."""

from __future__ import annotations

import argparse
import gc
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli import options
from ferrum_numba.cli.names import refusals
from ferrum_numba.cli.output import print_json
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tables import print_table
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
# what layers of a kind have in common besides the answers
FACTS = (*COLUMNS[2:], "experts")
YES = "yes"
# in act-order: another kernel first brings the columns of x into the order of the packed rows
GATHERED = "yes, on gathered x"


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
    with _no_collection(), GptqCheckpoint.open(session.args.path) as checkpoint:
        layers = checkpoint.layers()
    rows = _rows(layers, kernels)
    if session.args.json:
        print_json(rows)
        return 0
    if not rows:
        print(f"{session.args.path} has no quantised layer")
        return 0
    _print(rows, [kernel.name for kernel in kernels])
    return 0


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the collector from searching what is all needed: 10^5 tensors, a third of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _rows(layers: Iterable[LayerInfo], kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    """Return layers with the answers of the kernels, which are asked once of a kind of layers."""
    asked: dict[tuple[Any, ...], dict[str, str]] = {}
    rows = []
    for layer in layers:
        facts = vars(layer)
        kind = tuple(value for name, value in facts.items() if name != "name")
        if kind not in asked:
            asked[kind] = answers(layer, kernels)
        rows.append({**facts, "kernels": asked[kind]})
    return rows


def answers(layer: LayerInfo, kernels: Iterable[Kernel]) -> dict[str, str]:
    """Return "yes", "yes, on gathered x" or why not, by the name of each kernel."""
    return {kernel.name: _answer(layer, kernel) for kernel in kernels}


def _answer(layer: LayerInfo, kernel: Kernel) -> str:
    if layer.error is not None:
        return layer.error
    try:
        refused = kernel.refuses(_problem(layer, kernel.op.problem))
        if refused is None:
            return YES
        # as `MarlinLinear` runs it
        sorted_rows = replace(layer, act_order=False)
        if layer.uneven is not None:
            return f"needs groups of one size; by g_idx {layer.uneven}"
        if layer.act_order and not kernel.refuses(_problem(sorted_rows, kernel.op.problem)):
            return GATHERED
        return refused
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
    shown = _grouped(rows)
    stacks = ("experts",) if any(row["experts"] for row in shown) else ()
    marked = [_marks(row) | row for row in shown]
    print_table(marked, (*COLUMNS, *stacks, *names), f"{len(rows)} quantised layers")
    said = [
        (name, reason, row["layers"])
        for row in shown
        for name, reason in row["kernels"].items()
        if reason != YES
    ]
    for names_together, reason, count in refusals(said):
        if reason == GATHERED:
            print(f"  {count} of them by {names_together} on x whose columns are gathered first")
        else:
            print(f"  {count} of them not by {names_together}: {reason}")


def _grouped(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for layers that look alike, with how many they are."""
    # layers of a kind share their answers
    kinds = Counter((_pattern(row["name"]), id(row["kernels"])) for row in rows)
    first = {id(row["kernels"]): row for row in rows}
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for (name, kind), count in kinds.items():
        row = first[kind]
        # a reason may name its layer
        said = {kernel: _pattern(reason) for kernel, reason in row["kernels"].items()}
        key = (name, *said.values(), *(row[fact] for fact in FACTS))
        group = groups.setdefault(key, {**row, "name": name, "kernels": said, "layers": 0})
        group["layers"] += count
    return list(groups.values())


def _marks(row: dict[str, Any]) -> dict[str, str]:
    return {name: YES if said in (YES, GATHERED) else "no" for name, said in row["kernels"].items()}


def _pattern(text: str) -> str:
    """Return a layer's name with its numbers as stars: layers and experts of a kind look alike."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", text)
