"""Legacy Marlin checkpoints, whose weights are stored packed for the kernel: to GPTQ and back.

B [K/16, 2*N] int32   codes in Marlin's tiles, zero point 8
s [G, N]              scales, permuted within their rows

AutoAWQ's `version: marlin` calls them qweight and scales. Stored qzeros may only repeat the 8s.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.config import GptqConfig
from ferrum_numba.gptq.stored import Parts, Stored
from ferrum_numba.gptq.tensors import FLOATS, GptqTensors, check_matrix, need_8, stand_in
from ferrum_numba.reference.gptq import pack_codes, unpack_codes
from ferrum_numba.reference.marlin_layout import (
    TILE_K,
    TILE_N,
    TILE_WORDS,
    pack_weight,
    permute_scales,
    unpack_weight,
    unpermute_scales,
)

# of the weight and its scales
NAMES, AWQ_NAMES = ("B", "s"), ("qweight", "scales")
# rows of tiles whose codes, a byte each, are in memory at a time
BLOCK = 16


def from_marlin(
    name: str, B: Array, s: Array, bias: Array | None = None, *, group_size: int = 128
) -> GptqTensors:
    """Return a layer of a legacy Marlin checkpoint.

    group_size: -1 for one group

    Raises:
        ProblemError: tensors that do not fit each other; it names the layer and the tensor.
    """
    layer = checked(name, B, s, bias, group_size=group_size)
    return replace(layer, qweight=weight_from_marlin(B))


def read(parts: Parts, config: GptqConfig) -> Stored:
    """Return a stored layer."""
    return _stored(parts, config, *NAMES)


def read_awq(parts: Parts, config: GptqConfig) -> Stored:
    """Return a stored layer of AutoAWQ's."""
    return _stored(parts, config, *AWQ_NAMES)


def _stored(parts: Parts, config: GptqConfig, weight: str, scales: str) -> Stored:
    B, qzeros = parts.need(weight), parts.optional("qzeros")
    if qzeros is not None:
        need_8(parts.name, "qzeros", qzeros, "a checkpoint for Marlin")
    layer = checked(
        parts.name, B, parts.need(scales), parts.optional("bias"), group_size=config.group_size,
        names=(weight, scales),
    )  # fmt: skip
    return Stored(layer, lambda: weight_from_marlin(B))


def checked(
    name: str,
    B: Array,
    s: Array,
    bias: Array | None = None,
    *,
    group_size: int = 128,
    names: tuple[str, str] = NAMES,
) -> GptqTensors:
    """Return the layer as `from_marlin` does, but for its weight: that is zeros without memory."""
    weight, of_scales = names
    check_matrix(name, weight, B, "[K/16, 2*N]")
    if B.shape[1] % TILE_WORDS:
        raise ProblemError(
            f"{name}: {weight} must have a multiple of {TILE_WORDS} columns; got {list(B.shape)}"
        )
    K, N = len(B) * TILE_K, B.shape[1] // 2
    if s.ndim != 2 or s.shape[1] != N or s.dtype not in FLOATS:
        raise ProblemError(
            f"{name}: {of_scales} must be [G, {N}] float16; got {list(s.shape)} {s.dtype}"
        )
    scales = unpermute_scales(s, grouped=len(s) > 1)
    return GptqTensors.make(
        name, stand_in(K, N), scales, bias=bias, group_size=group_size, sym=True
    )


def weight_from_marlin(B: Array) -> Array:
    """Return [K/8, N] int32, GPTQ's words, of [K/16, 2*N] int32, Marlin's."""
    packed = np.empty((2 * len(B), B.shape[1] // 2), np.int32)
    for row in range(0, len(B), BLOCK):
        tiles = np.ascontiguousarray(B[row : row + BLOCK])
        packed[2 * row : 2 * (row + BLOCK)] = pack_codes(unpack_weight(tiles))
    return packed


def to_marlin(layer: GptqTensors) -> dict[str, Array]:
    """Return a layer's tensors `B` and `s`, and `bias` where it has one.

    Raises:
        ProblemError: a layer that this format cannot hold: zero points other than 8, act-order,
            a K that is no multiple of 16 or an N that is none of 64, groups that do not divide K.
    """
    reason = _misfit(layer)
    if reason is not None:
        raise ProblemError(f"{layer.name}: a Marlin checkpoint {reason}")
    B = np.empty((layer.in_features // TILE_K, 2 * layer.out_features), np.int32)
    for row in range(0, len(B), BLOCK):
        codes = unpack_codes(layer.qweight[2 * row : 2 * (row + BLOCK)])
        B[row : row + BLOCK] = pack_weight(codes)
    scales = permute_scales(layer.scales, grouped=layer.num_groups > 1)
    tensors = {"B": B, "s": scales}
    return tensors if layer.bias is None else tensors | {"bias": layer.bias}


def _misfit(layer: GptqTensors) -> str | None:
    K, N = layer.in_features, layer.out_features
    if not layer.symmetric:
        return "holds zero points of 8; this layer has others"
    if layer.act_order:
        return "holds rows in order; this layer has a g_idx"
    if K % TILE_K or N % TILE_N:
        return f"needs K in multiples of {TILE_K} and N of {TILE_N}; got K = {K}, N = {N}"
    if K % layer.group_size:
        return f"needs groups that divide K; got group size {layer.group_size}, K = {K}"
    return None
