"""The int4 GEMM that every W4A16 kernel is held against.

    out[m, n] = sum_k x[m, k] * scales[g(k), n] * (codes[k, n] - zero(g(k), n))  (+ bias[n])

g(k) is g_idx[k], or k // group_size in an ordered weight; zero is 8 in a symmetric one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SYMMETRIC_ZERO_POINT = 8
# columns dequantised at a time: bounds the float64 copy of the weight to K x 1024
BLOCK_COLUMNS = 1024
BLOCK_ROWS = 256


def w4a16_gemm(
    x: Array,
    codes: Array,
    scales: Array,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """Return x times the dequantised weight, plus bias.

    Args:
        x:           [M, K] float16
        codes:       [K, N] uint8, 0..15
        scales:      [G, N] float16; one row for group_size = -1
        zero_points: [G, N] uint8, 0..15; None for 8 everywhere
        g_idx:       [K] int32, the group of each row; None for k // (K / G)
        bias:        [N] float16, or None

    Returns:
        [M, N] float32; summed in float64 and rounded once.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if x.ndim != 2 or x.shape[1] != codes.shape[0]:
        raise ValueError(f"x must be [M, {codes.shape[0]}] for these codes; got {list(x.shape)}")
    columns = codes.shape[1]
    if bias is not None and bias.shape != (columns,):
        raise ValueError(f"bias must be [{columns}] for these codes; got {list(bias.shape)}")
    out = np.empty((len(x), columns), np.float32)
    x = x.astype(np.float64)
    for first in range(0, columns, BLOCK_COLUMNS):
        block = slice(first, first + BLOCK_COLUMNS)
        zeros = None if zero_points is None else zero_points[:, block]
        weight = dequantize_codes(codes[:, block], scales[:, block], zeros, g_idx)
        product = x @ weight.astype(np.float64)
        out[:, block] = product if bias is None else product + bias[block].astype(np.float64)
    return out


def dequantize_codes(
    codes: Array,
    scales: Array,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
) -> Array:
    """Return scales * (codes - zero_points), each row with the scales of its group.

    Args:
        codes:       [K, N] uint8, 0..15
        scales:      [G, N] float16, or float32 that holds bfloat16 values
        zero_points: [G, N] uint8, 0..15; None for 8 everywhere
        g_idx:       [K] int32, the group of each row; None for k // (K / G)

    Returns:
        [K, N] float32; exact: 11 bits of scale times 5 bits of difference fit into 24.

    Raises:
        ValueError: shapes that do not fit each other, or a group out of range.
    """
    group = group_of_rows(codes, scales, zero_points, g_idx)
    scales = scales.astype(np.float32)
    out = np.empty(codes.shape, np.float32)
    for first in range(0, len(codes), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        zeros = SYMMETRIC_ZERO_POINT if zero_points is None else zero_points[group[rows]]
        out[rows] = codes[rows]
        out[rows] -= zeros
        out[rows] *= scales[group[rows]]
    return out


def group_of_rows(
    codes: Array, scales: Array, zero_points: Array | None, g_idx: Array | None
) -> Array:
    """Return [K] intp, the group of each row, after checking that all shapes fit."""
    (K, N), G = codes.shape, len(scales)
    if scales.shape != (G, N) or G == 0:
        raise ValueError(f"scales must be [G, {N}] for these codes; got {list(scales.shape)}")
    if zero_points is not None and zero_points.shape != (G, N):
        raise ValueError(
            f"zero points must be [{G}, {N}] like the scales; got {list(zero_points.shape)}"
        )
    if g_idx is None:
        if K % G:
            raise ValueError(
                f"{K} rows do not divide into {G} groups; a last, smaller group needs g_idx"
            )
        return np.arange(K, dtype=np.intp) // np.intp(K // G)
    if g_idx.shape != (K,):
        raise ValueError(f"g_idx must be [{K}], one group a row; got {list(g_idx.shape)}")
    if g_idx.min() < 0 or g_idx.max() >= G:
        raise ValueError(f"g_idx must be 0..{G - 1}; got {g_idx.min()}..{g_idx.max()}")
    return g_idx.astype(np.intp)
