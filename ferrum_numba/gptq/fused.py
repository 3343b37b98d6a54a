"""Layers of which several are one: projections side by side, gate and up in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.tensors import PACK_FACTOR, GptqTensors, zero_words
from ferrum_numba.reference.moe import GATE_RUN


class Fused(GptqTensors):
    """A projection put together of several: its weight is copied when it is asked for, each time.

    Packing takes the parts instead, so that a fused layer takes no more memory than another.
    """

    def __init__(self, weight_parts: Sequence[Array] | None = None, **fields: Any) -> None:
        """Take the weights, or as `dataclasses.replace` does, a `qweight` among the fields."""
        # without a qweight of its own, so that it is looked for below; nor is a frozen one set
        vars(self).update(fields, _parts=tuple(weight_parts or [fields["qweight"]]))

    def __getattr__(self, name: str) -> Any:
        if name == "qweight":
            return np.concatenate(self._parts, axis=1)
        raise AttributeError(f"{type(self).__name__} has no {name}")

    @property
    def weight_parts(self) -> tuple[Array, ...]:
        """The weights, each [K/8, n] int32, whose columns side by side are those of qweight."""
        parts: tuple[Array, ...] = vars(self)["_parts"]
        return parts

    @property
    def in_features(self) -> int:
        """Rows of the weight, K."""
        return len(self.weight_parts[0]) * PACK_FACTOR

    @property
    def out_features(self) -> int:
        """Columns of the weight, N."""
        return sum(part.shape[1] for part in self.weight_parts)


def concatenate(parts: Sequence[GptqTensors], name: str) -> GptqTensors:
    """Return the layer whose columns are those of the parts, in order: a fused projection.

    Where only some parts have zero points or a bias, the others' 8 and 0 become explicit.

    Raises:
        ProblemError: parts that differ in K, group size, type of scales or g_idx.
    """
    first = parts[0]
    for part in parts[1:]:
        _check_partner(name, first, part)

    def joined(of: Callable[[GptqTensors], Array]) -> Array:
        return np.concatenate([of(part) for part in parts], axis=-1)

    stored = {part.checkpoint_format for part in parts if part.qzeros is not None}
    stored_as = stored.pop() if len(stored) == 1 else "gptq_v2"
    mixed = any(part.qzeros is not None for part in parts)
    return Fused(
        [weight for part in parts for weight in part.weight_parts],
        name=name,
        scales=joined(lambda part: part.scales),
        qzeros=joined(lambda part: zero_words(part, stored_as)) if mixed else None,
        g_idx=first.g_idx,
        bias=None if all(part.bias is None for part in parts) else joined(_bias_of),
        group_size=first.group_size,
        checkpoint_format=stored_as if mixed else first.checkpoint_format,
    )


def interleaved(layer: GptqTensors) -> GptqTensors:
    """Return a layer of gate and up, side by side, with their columns in turn, in runs of 8.

    Column 16 * i + j is column 8 * i + j of gate, column 16 * i + 8 + j that of up, j below 8. A
    run's zero points are one word.

    Raises:
        ProblemError: two halves that are no whole runs.
    """
    N = layer.out_features
    if N % (2 * GATE_RUN):
        raise ProblemError(
            f"{layer.name}: gate and up must have a multiple of {GATE_RUN} columns each; "
            f"got {N} of both"
        )

    def in_turn(array: Array, run: int) -> Array:
        halves = array.reshape(*array.shape[:-1], 2, -1, run)
        return np.ascontiguousarray(np.swapaxes(halves, -3, -2)).reshape(array.shape)

    return replace(
        layer,
        qweight=in_turn(layer.qweight, GATE_RUN),
        scales=in_turn(layer.scales, GATE_RUN),
        qzeros=None if layer.qzeros is None else in_turn(layer.qzeros, GATE_RUN // PACK_FACTOR),
        bias=None if layer.bias is None else in_turn(layer.bias, GATE_RUN),
    )


def _check_partner(name: str, first: GptqTensors, part: GptqTensors) -> None:
    for words, got, want in (
        ("K", part.in_features, first.in_features),
        ("group size", part.group_size, first.group_size),
        ("type of scales", part.scales.dtype, first.scales.dtype),
    ):
        if got != want:
            raise ProblemError(
                f"{name}: its parts must have one {words}; "
                f"{first.name} has {want}, {part.name} has {got}"
            )
    if part.act_order != first.act_order:
        with_it, without = (part, first) if part.act_order else (first, part)
        raise ProblemError(
            f"{name}: all of its parts must have a g_idx, or none; "
            f"{with_it.name} has one, {without.name} has none"
        )
    mine, others = part.g_idx, first.g_idx
    if mine is not None and others is not None and not np.array_equal(mine, others):
        raise ProblemError(
            f"{name}: its parts must have the same g_idx; {first.name} and {part.name} differ"
        )


def _bias_of(part: GptqTensors) -> Array:
    return np.zeros(part.out_features, part.scales.dtype) if part.bias is None else part.bias
