"""A layer's tensors as each format that can be written has them, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq import described, overflow
from ferrum_numba.gptq.awq import to_awq
from ferrum_numba.gptq.described import Kind
from ferrum_numba.gptq.legacy_marlin import to_marlin
from ferrum_numba.gptq.tensors import GptqTensors, zero_words

Tensors = dict[str, Array]


@dataclass(frozen=True)
class Target:
    """A format.

    write:   makes a layer's tensors, by the last parts of their names, told whether all layers of
             the checkpoint are symmetric; raises ProblemError of one that the format cannot hold
    parts:   all tensors that it can have
    config:  makes the config of a checkpoint: of its layers, the linear ones that are not
             quantised, and whether the head is
    file:    the file that has the config, besides the model's own config.json; None for no other
    """

    write: Callable[[GptqTensors, bool], Tensors]
    parts: tuple[str, ...]
    config: Callable[[Mapping[str, Kind], list[str], bool], dict[str, Any]]
    file: str | None


def to_gptq(layer: GptqTensors, checkpoint_format: str) -> Tensors:
    """Return a layer's tensors `qweight`, `scales`, `qzeros`, `g_idx`, and `bias` where it has one.

    Raises:
        ProblemError: zero points of 0 for "gptq", whose readers do not agree on them.
    """
    qzeros = zero_words(layer, checkpoint_format)
    zeros = 0 if checkpoint_format == "gptq_v2" else overflow.count(qzeros)
    if zeros:
        raise ProblemError(
            f"{layer.name}: GPTQ v1 stores a zero point of 0 as 15, which readers take for three "
            f"values; this layer has {zeros} of them, which gptq_v2 holds"
        )
    tensors = {
        "qweight": layer.qweight, "scales": layer.scales, "qzeros": qzeros,
        "g_idx": layer.row_groups,
    }  # fmt: skip
    return _with_bias(layer, tensors)


def to_compressed_tensors(layer: GptqTensors, sym: bool) -> Tensors:
    """Return a layer's tensors in compressed-tensors' pack-quantized format.

    weight_packed     [N, K/8] int32    nibble i of word [n, c] is the code of row 8*c + i
    weight_scale      [N, G]
    weight_zero_point [N/8, G] int32    not of sym: nibble i of word [c, g] is of column 8*c + i
    weight_shape      [2] int64         N, K
    bias              [N]               where there is one

    sym: the config says that all zero points are 8

    Raises:
        ProblemError: act-order, or groups that do not divide K.
    """
    if layer.act_order:
        raise ProblemError(
            f"{layer.name}: compressed-tensors holds rows in order; this layer has a g_idx"
        )
    if layer.in_features % layer.group_size:
        raise ProblemError(
            f"{layer.name}: compressed-tensors needs groups that divide K; got group size "
            f"{layer.group_size}, K = {layer.in_features}"
        )
    tensors = {
        "weight_packed": np.ascontiguousarray(layer.qweight.T),
        "weight_scale": np.ascontiguousarray(layer.scales.T),
        "weight_shape": np.array([layer.out_features, layer.in_features], np.int64),
    }
    if not sym:
        zeros = zero_words(layer, "gptq_v2")
        tensors["weight_zero_point"] = np.ascontiguousarray(zeros.T)
    return _with_bias(layer, tensors)


def _with_bias(layer: GptqTensors, tensors: Tensors) -> Tensors:
    return tensors if layer.bias is None else tensors | {"bias": layer.bias}


def _gptq(checkpoint_format: str) -> Target:
    return Target(
        lambda layer, sym: to_gptq(layer, checkpoint_format),
        ("qweight", "scales", "qzeros", "g_idx", "bias"),
        lambda layers, kept, head: described.gptq(layers, kept, checkpoint_format, lm_head=head),
        "quantize_config.json",
    )


TARGETS = {
    "gptq": _gptq("gptq"),
    "gptq_v2": _gptq("gptq_v2"),
    "awq": Target(
        lambda layer, sym: to_awq(layer),
        ("qweight", "scales", "qzeros", "bias"),
        lambda layers, kept, head: described.awq(layers, kept if head else [*kept, "lm_head"]),
        "quant_config.json",
    ),
    "compressed-tensors": Target(
        to_compressed_tensors,
        ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "bias"),
        lambda layers, kept, head: described.compressed_tensors(
            layers, kept if head else [*kept, "lm_head"]
        ),
        None,
    ),
    "marlin": Target(
        lambda layer, sym: to_marlin(layer),
        ("B", "s", "bias"),
        lambda layers, kept, head: described.gptq(layers, kept, "marlin", lm_head=head),
        "quantize_config.json",
    ),
}
