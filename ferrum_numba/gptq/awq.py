"""AWQ's layout of a layer, to GPTQ's and back; nothing is lost either way.

qweight [K, N/8] int32   nibble i of word [k, c] is the code of row k, column 8*c + COLUMNS[i]
qzeros  [G, N/8] int32   in the same order, the zero points as they are ("gptq_v2")
scales  [G, N]
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.config import GptqConfig
from ferrum_numba.gptq.stored import Parts, Stored
from ferrum_numba.gptq.tensors import (
    PACK_FACTOR,
    GptqTensors,
    check_matrix,
    stand_in,
    zero_words,
)
from ferrum_numba.reference.gptq import pack_nibbles, unpack_nibbles

COLUMNS = np.array([0, 2, 4, 6, 1, 3, 5, 7])
CHECKPOINT_FORMAT = "gptq_v2"


def from_awq(
    name: str,
    qweight: Array,
    scales: Array,
    qzeros: Array | None = None,
    bias: Array | None = None,
    *,
    group_size: int = 128,
) -> GptqTensors:
    """Return a layer of an AWQ checkpoint; without qzeros its zero points are 8.

    Raises:
        ProblemError: tensors that do not fit each other; it names the layer and the tensor.
    """
    layer = checked(name, qweight, scales, qzeros, bias, group_size=group_size)
    return replace(layer, qweight=weight_from_awq(qweight))


def read(parts: Parts, config: GptqConfig) -> Stored:
    """Return a stored layer of the usual layout, "gemm"."""
    qweight = parts.need("qweight")
    scales, qzeros = parts.need("scales"), zero_points(parts, config)
    layer = checked(
        parts.name, qweight, scales, qzeros, parts.optional("bias"), group_size=config.group_size
    )
    return Stored(layer, lambda: weight_from_awq(qweight))


def zero_points(parts: Parts, config: GptqConfig, tensor: str = "qzeros") -> Array | None:
    """Return a layer's stored zero points, or None where it has none and the config says so.

    Raises:
        ProblemError: there are none, and AWQ's zero points are not said to be 8.
    """
    qzeros = parts.optional(tensor)
    if qzeros is None and not config.sym:
        raise ProblemError(
            f"{parts.name}: {tensor} are missing; AWQ's zero points are stored but where "
            "zero_point = false"
        )
    return qzeros


def checked(
    name: str,
    qweight: Array,
    scales: Array,
    qzeros: Array | None = None,
    bias: Array | None = None,
    *,
    group_size: int = 128,
) -> GptqTensors:
    """Return the layer as `from_awq` does, but for its weight: that is zeros without memory."""
    check_matrix(name, "qweight", qweight, "[K, N/8]")
    K, N = len(qweight), qweight.shape[1] * PACK_FACTOR
    if K % PACK_FACTOR:
        raise ProblemError(
            f"{name}: qweight must have a multiple of {PACK_FACTOR} rows; got {list(qweight.shape)}"
        )
    if qzeros is not None:
        check_matrix(name, "qzeros", qzeros, "[G, N/8]")
        qzeros = pack_nibbles(unpack_nibbles(qzeros)[..., np.argsort(COLUMNS)])
    return GptqTensors.make(
        name, stand_in(K, N), scales, qzeros, bias=bias, group_size=group_size,
        sym=qzeros is None, checkpoint_format=CHECKPOINT_FORMAT,
    )  # fmt: skip


def to_awq(layer: GptqTensors) -> dict[str, Array]:
    """Return a layer's tensors `qweight`, `qzeros`, `scales`, and `bias` where it has one.

    Raises:
        ProblemError: a layer in act-order, which AWQ cannot hold.
    """
    if layer.act_order:
        raise ProblemError(f"{layer.name}: AWQ holds rows in order; this layer has a g_idx")
    plain = zero_words(layer, CHECKPOINT_FORMAT)
    tensors = {
        "qweight": weight_to_awq(layer.qweight),
        "qzeros": pack_nibbles(unpack_nibbles(plain)[..., COLUMNS]),
        "scales": layer.scales,
    }
    return tensors if layer.bias is None else tensors | {"bias": layer.bias}


def weight_from_awq(qweight: Array) -> Array:
    """Return [K/8, N] int32, packed along K, of [K, N/8] int32, packed along N."""
    rows, words = len(qweight) // PACK_FACTOR, qweight.shape[1]
    blocks = qweight.reshape(rows, PACK_FACTOR, words).view(np.uint32)
    turned = _transpose(np.moveaxis(blocks, 1, 0).copy())
    packed = np.empty((rows, words, PACK_FACTOR), np.uint32)
    packed[..., COLUMNS] = np.moveaxis(turned, 0, -1)
    return packed.view(np.int32).reshape(rows, words * PACK_FACTOR)


def weight_to_awq(qweight: Array) -> Array:
    """Return [K, N/8] int32, packed along N, of [K/8, N] int32, packed along K."""
    rows, words = len(qweight), qweight.shape[1] // PACK_FACTOR
    blocks = qweight.reshape(rows, words, PACK_FACTOR)[..., COLUMNS].view(np.uint32)
    turned = _transpose(np.moveaxis(blocks, -1, 0).copy())
    return np.moveaxis(turned, 0, 1).reshape(rows * PACK_FACTOR, words).view(np.int32)


def _transpose(words: Array) -> Array:
    """Swap nibble j of word i with nibble i of word j, for i and j in 0..7, in place.

    words: [8, ...] uint32; swaps 4 x 4 blocks of nibbles, then 2 x 2 blocks, then nibbles
    """
    for span, mask in ((4, 0x0000FFFF), (2, 0x00FF00FF), (1, 0x0F0F0F0F)):
        bits = np.uint32(4 * span)
        pairs = words.reshape(-1, 2, span, *words.shape[1:])
        low, high = pairs[:, 0], pairs[:, 1]
        swapped = (low >> bits ^ high) & np.uint32(mask)
        high ^= swapped
        low ^= swapped << bits
    return words
