"""The problems of a checkpoint's quantised layers, as they are stored and as engines fuse them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.checkpoint import FUSED, GptqCheckpoint, LayerInfo
from ferrum_numba.kernels.w4a16 import W4A16Problem

# in words of the problem; scales of float32 are rounded to float16 when a layer is made
DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp16"}


def checkpoint_problems(path: str | Path, rows: Iterable[int]) -> list[W4A16Problem]:
    """Return every kind of layer once for each number of rows.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        ProblemError:    it has no quantised layer, or one that cannot be loaded or exported.
    """
    with GptqCheckpoint.open(path) as checkpoint:
        layers = checkpoint.layers()
    for layer in layers:
        if layer.error is not None:
            raise ProblemError(f"{layer.name}: {layer.error}")
        if layer.uneven is not None:
            # a problem does not say so, and most of its kernels would read other scales
            raise ProblemError(
                f"{layer.name}: what is exported needs groups of one size; by g_idx {layer.uneven}"
            )
    if not layers:
        raise ProblemError(f"{path} has no quantised layer")
    kinds = dict.fromkeys(_problem(layer) for layer in [*layers, *_fused(layers)])
    return [replace(kind, M=M) for kind in kinds for M in rows]


def _fused(layers: Iterable[LayerInfo]) -> Iterator[LayerInfo]:
    """Yield the projections that are stored in parts, side by side."""
    by_name = {layer.name: layer for layer in layers}
    for parent in dict.fromkeys(name.rpartition(".")[0] for name in by_name):
        for fused, parts in FUSED.items():
            found = [by_name.get(f"{parent}.{part}") for part in parts]
            together = _together([part for part in found if part is not None])
            if None not in found and together is not None:
                yield replace(together, name=f"{parent}.{fused}")


def _together(parts: list[LayerInfo]) -> LayerInfo | None:
    """Return layers side by side as one, None where they do not go together."""
    alike = {(p.K, p.group_size, p.act_order, p.dtype, p.format) for p in parts}
    if len(alike) != 1:
        return None
    N = sum(part.N or 0 for part in parts)
    sym, bias = all(part.sym for part in parts), any(part.bias for part in parts)
    return replace(parts[0], N=N, sym=sym, bias=bias)


def _problem(layer: LayerInfo) -> W4A16Problem:
    K, N, group_size = layer.K or 0, layer.N or 0, layer.group_size or 0
    assert K * N * group_size, "a layer without an error has sizes"
    return W4A16Problem(
        1, N, K,
        group_size=group_size if group_size < K else -1,
        # whatever a checkpoint stores, layers hold the words of v1 or none
        zero_points="none" if layer.sym else "gptq",
        act_order=bool(layer.act_order), bias=bool(layer.bias),
        dtype=DTYPES[layer.dtype or "float16"],
    )  # fmt: skip
