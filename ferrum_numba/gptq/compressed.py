"""compressed-tensors' `pack-quantized` layers, to GPTQ's.

weight_packed     [N, K/8] int32   nibble i of word [n, c] is the code of row 8*c + i, column n
weight_scale      [N, G]
weight_zero_point [N/8, G] int32   nibble i of word [c, g] is the zero point of column 8*c + i; in
                                   old files [N, G] int8, less 8; none, or 8s, if symmetric
weight_shape      [2] int64        N, K: the last word of a column may hold fewer codes
weight_g_idx      [K] int32        the group of each row, in files before 0.20; -1 says nothing
"""

from __future__ import annotations

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.config import GptqConfig
from ferrum_numba.gptq.stored import Parts, Stored
from ferrum_numba.gptq.tensors import PACK_FACTOR, GptqTensors, check_matrix, need_8, stand_in
from ferrum_numba.reference.gptq import pack_nibbles

CHECKPOINT_FORMAT = "gptq_v2"
SIGN = 8


def read(parts: Parts, config: GptqConfig) -> Stored:
    """Return a stored layer."""
    packed = parts.need("weight_packed")
    check_matrix(parts.name, "weight_packed", packed, "[N, K/8]")
    N, K = _shape(parts, packed)
    zeros = _zero_points(parts, N)
    if config.sym and zeros is not None:
        need_8(parts.name, "weight_zero_point", zeros, "symmetric = true")
        zeros = None
    layer = GptqTensors.make(
        parts.name, stand_in(K, N), _transposed(parts, "weight_scale"), zeros, _group_index(parts),
        parts.optional("bias"), group_size=config.group_size, sym=config.sym,
        desc_act=config.desc_act, checkpoint_format=CHECKPOINT_FORMAT,
    )  # fmt: skip
    return Stored(layer, lambda: np.ascontiguousarray(packed.T))


def _shape(parts: Parts, packed: Array) -> tuple[int, int]:
    shape = parts.optional("weight_shape")
    words = (len(packed), packed.shape[1])
    if shape is None:
        return words[0], words[1] * PACK_FACTOR
    N, K = (int(size) for size in shape.reshape(-1)[-2:]) if shape.size > 1 else (0, 0)
    if (N, ceil_div(K, PACK_FACTOR)) != words:
        raise ProblemError(
            f"{parts.name}: weight_shape says {shape.reshape(-1).tolist()}; weight_packed is "
            f"{list(words)}"
        )
    if K % PACK_FACTOR:
        raise ProblemError(f"{parts.name}: K must be a multiple of {PACK_FACTOR}; got {K}")
    return N, K


def _transposed(parts: Parts, tensor: str) -> Array:
    array = parts.need(tensor)
    if array.ndim != 2:
        raise ProblemError(f"{parts.name}: {tensor} must be [N, G]; got {list(array.shape)}")
    return np.ascontiguousarray(array.T)


def _zero_points(parts: Parts, N: int) -> Array | None:
    """Return [G, N/8] int32, zero points as they are."""
    zeros = parts.optional("weight_zero_point")
    if zeros is None or zeros.dtype != np.int8:
        # `make` says what a missing one would have to be
        return zeros if zeros is None else _transposed(parts, "weight_zero_point")
    if zeros.ndim != 2 or len(zeros) != N or N % PACK_FACTOR:
        raise ProblemError(
            f"{parts.name}: weight_zero_point must be [{N}, G] of int8; got {list(zeros.shape)}"
        )
    codes = (_transposed(parts, "weight_zero_point") + np.int8(SIGN)).view(np.uint8)
    if codes.max(initial=0) > 15:
        raise ProblemError(f"{parts.name}: weight_zero_point must be -8..7")
    return pack_nibbles(codes.reshape(len(codes), -1, PACK_FACTOR))


def _group_index(parts: Parts) -> Array | None:
    g_idx = parts.optional("weight_g_idx")
    if g_idx is None or (g_idx.dtype.kind == "i" and (g_idx == -1).any()):
        return None
    return g_idx.astype(np.int32, copy=False)
