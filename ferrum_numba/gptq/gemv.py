"""AutoAWQ's layouts for its GEMV kernels, to GPTQ's.

"gemv"
    qweight [N, K/8] int32   nibble i of word [n, c] is the code of row 8*c + i, column n
    qzeros  [N, W] int32     nibble i of word [n, w] is the zero point of group 8*w + i
    scales  [N, 8*W]         W words for G groups (see `_padded_groups`), zeros beyond them

"gemv_fast", and "llm-awq", whose qzeros are called scaled_zeros
    qweight [N/4, K] int16   of 64 rows and 4 columns, word w, nibble a is the code of column w / 16
                             and row 32*half + 8*a + 2*b + c, where w % 16 = 8*half + 2*b + c
    qzeros  [8*W, N]         minus scale times zero point, rounded to the scales' type
    scales  [8*W, N]
"""

from __future__ import annotations

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.awq import CHECKPOINT_FORMAT, zero_points
from ferrum_numba.gptq.config import GptqConfig
from ferrum_numba.gptq.stored import Parts, Stored
from ferrum_numba.gptq.tensors import FLOATS, PACK_FACTOR, GptqTensors, check_matrix, stand_in
from ferrum_numba.reference.gptq import pack_nibbles, unpack_nibbles

# rows and columns of a block of gemv_fast, and the codes of its words
BLOCK_K, BLOCK_N, WORD_CODES = 64, 4, 4
LARGEST_ZERO_POINT = 15
NO_ZERO_POINT = 8
# AutoAWQ stores the groups of as many rows as this by whole words: of 32 rows, in fours
ROWS_OF_WORDS = 128


def read(parts: Parts, config: GptqConfig) -> Stored:
    """Return a stored layer of the layout "gemv"."""
    qweight = parts.need("qweight")
    check_matrix(parts.name, "qweight", qweight, "[N, K/8]")
    N, K = len(qweight), qweight.shape[1] * PACK_FACTOR
    scales = _groups(parts.name, parts.need("scales").T, K, N, config.group_size)
    zeros = zero_points(parts, config)
    if zeros is not None:
        check_matrix(parts.name, "qzeros", zeros, "[N, W]")
        unpacked = unpack_nibbles(zeros).reshape(len(zeros), -1).T
        unpacked = _unpadded(parts.name, unpacked, K, config.group_size, "qzeros")
        zeros = _packed(parts.name, unpacked, N)
    layer = _made(parts, config, (K, N), scales, zeros)
    return Stored(layer, lambda: np.ascontiguousarray(qweight.T))


def read_fast(parts: Parts, config: GptqConfig) -> Stored:
    """Return a stored layer of the layout "gemv_fast"."""
    return _fast(parts, config, "qzeros")


def read_llm_awq(parts: Parts, config: GptqConfig) -> Stored:
    """Return a stored layer of the layout "llm-awq"."""
    return _fast(parts, config, "scaled_zeros")


def weight_from_fast(qweight: Array) -> Array:
    """Return [K/8, N] int32, GPTQ's words, of [N/4, K] int16."""
    N, K = BLOCK_N * len(qweight), qweight.shape[1]
    # [N/4, K/64, column, half, word of a half]
    words = qweight.view(np.uint16).reshape(-1, K // BLOCK_K, BLOCK_N, 2, 8)
    packed = np.zeros((K // BLOCK_K, 2, WORD_CODES, N // BLOCK_N, BLOCK_N), np.uint32)
    for a in range(WORD_CODES):
        for i in range(PACK_FACTOR):
            codes = (words[..., i] >> np.uint16(4 * a) & np.uint16(15)).astype(np.uint32)
            packed[:, :, a] |= codes.transpose(1, 3, 0, 2) << np.uint32(4 * i)
    return packed.view(np.int32).reshape(K // PACK_FACTOR, N)


def _fast(parts: Parts, config: GptqConfig, of_zeros: str) -> Stored:
    name, qweight = parts.name, parts.need("qweight")
    if qweight.ndim != 2 or qweight.dtype != np.int16 or qweight.shape[1] % BLOCK_K:
        raise ProblemError(
            f"{name}: qweight must be [N/4, multiple of {BLOCK_K}] of int16; "
            f"got {list(qweight.shape)} {qweight.dtype}"
        )
    N, K = BLOCK_N * len(qweight), qweight.shape[1]
    scales = _groups(name, parts.need("scales"), K, N, config.group_size)
    scaled = zero_points(parts, config, of_zeros)
    zeros = None
    if scaled is not None:
        scaled = _groups(name, scaled, K, N, config.group_size, of_zeros)
        zeros = _packed(name, _unscaled(name, scales, scaled, of_zeros), N)
    layer = _made(parts, config, (K, N), scales, zeros)
    return Stored(layer, lambda: weight_from_fast(qweight))


def _made(
    parts: Parts, config: GptqConfig, shape: tuple[int, int], scales: Array, zeros: Array | None
) -> GptqTensors:
    return GptqTensors.make(
        parts.name, stand_in(*shape), scales, zeros, bias=parts.optional("bias"),
        group_size=config.group_size, sym=zeros is None, checkpoint_format=CHECKPOINT_FORMAT,
    )  # fmt: skip


def _num_groups(K: int, group_size: int) -> int:
    return 1 if group_size == -1 else ceil_div(K, group_size)


def _padded_groups(K: int, group_size: int) -> int:
    """Return how many groups are stored: in words, and in more than one where groups are small."""
    together = max(1, ROWS_OF_WORDS // (K if group_size == -1 else group_size))
    words = ceil_div(_num_groups(K, group_size), PACK_FACTOR)
    return ceil_div(words, together) * together * PACK_FACTOR


def _groups(
    name: str, padded: Array, K: int, N: int, group_size: int, tensor: str = "scales"
) -> Array:
    """Return [G, N] of [as many as are stored, N]; another group size would show in the padding."""
    if padded.ndim != 2 or padded.shape[1] != N or padded.dtype not in FLOATS:
        raise ProblemError(
            f"{name}: {tensor} must be of {N} columns; got {list(padded.shape)} {padded.dtype}"
        )
    groups = _unpadded(name, padded, K, group_size, tensor)
    # a scale is never 0 in a whole group: AWQ's are at least 1e-5 / 15
    if tensor == "scales" and len(groups) > 1 and not groups[-1].any():
        raise ProblemError(
            f"{name}: scales of the last of {len(groups)} groups are 0; group_size {group_size} "
            "is not that of this layer"
        )
    return np.ascontiguousarray(groups)


def _unpadded(name: str, padded: Array, K: int, group_size: int, tensor: str) -> Array:
    """Return the first G rows of padded ones."""
    G, stored = _num_groups(K, group_size), _padded_groups(K, group_size)
    if len(padded) != stored:
        raise ProblemError(
            f"{name}: {tensor} must be of {stored} groups, padding and all, for group_size "
            f"{group_size} and K = {K}; got {len(padded)}"
        )
    if padded[G:].any():
        raise ProblemError(
            f"{name}: {tensor} must be 0 beyond the {G} groups of group_size {group_size} and "
            f"K = {K}; group {G + int(np.argwhere(padded[G:])[0, 0])} is not"
        )
    return padded[:G]


def _packed(name: str, zeros: Array, N: int) -> Array:
    """Return [G, N/8] int32 of [G, N] zero points."""
    if zeros.shape[1] != N or N % PACK_FACTOR:
        raise ProblemError(
            f"{name}: qzeros must be of {N} columns, a multiple of {PACK_FACTOR}; "
            f"got {zeros.shape[1]} columns"
        )
    return pack_nibbles(zeros.reshape(len(zeros), -1, PACK_FACTOR))


def _unscaled(name: str, scales: Array, scaled: Array, tensor: str) -> Array:
    """Return the zero points whose products with the scales these are, uint8."""
    scale, product = scales.astype(np.float32), scaled.astype(np.float32)
    some = scale != 0
    zeros = np.full(scale.shape, NO_ZERO_POINT, np.float32)
    np.divide(-product, scale, out=zeros, where=some)
    # what is no number is 0 here, and found out below
    zeros = np.clip(np.rint(np.nan_to_num(zeros)), 0, LARGEST_ZERO_POINT)
    again = -(scale * zeros).astype(scaled.dtype)
    wrong = np.argwhere((again != scaled) & (some | (product != 0)))
    if len(wrong):
        g, n = wrong[0]
        raise ProblemError(
            f"{name}: {tensor} must be minus scale times a zero point of 0..15; "
            f"got {product[g, n]:g} for a scale of {scale[g, n]:g} in group {g}, column {n}"
        )
    return zeros.astype(np.uint8)
