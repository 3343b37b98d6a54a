"""The int4 GEMM of 8-bit activations that every W4A8 kernel is held against.

    out[m, n] = sum_k x8[m, k] * sx[m, h(k)] * w[k, n]  (+ bias[n])
    w[k, n] = scales[g(k), n] * (codes[k, n] - zero(g(k), n))

g(k) is k // group_size, or g_idx[k]; h(k) is 0 where a row of x8 has one scale, else k // 128; zero
is 8 in a symmetric weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.reference.quantize_rows import X_GROUP, X_TYPES
from ferrum_numba.reference.w4a16 import w4a16_gemm

Array = npt.NDArray[Any]


def w4a8_gemm(
    x8: Array,
    sx: Array,
    codes: Array,
    scales: Array,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """Return x8 times its scales times the dequantised weight, plus bias.

    Args:
        x8:          [M, K] float8_e4m3fn of ml_dtypes, or int8
        sx:          [M] or [M, 1] float32, a scale a row; or [M, K / 128, rounded up], one for each
                     128 of a row
        codes:       [K, N] uint8, 0..15
        scales:      [G, N] float16 or bfloat16; one row for group_size = -1
        zero_points: [G, N] uint8, 0..15; None for 8 everywhere
        g_idx:       [K] int32, the group of each row; None for k // (K / G)
        bias:        [N], or None

    Returns:
        [M, N] float32; summed in float64 and rounded once.

    Raises:
        ValueError: x8 of another type, scales of x8 that are not finite and above 0, or shapes that
                    do not fit each other.
    """
    if x8.dtype not in X_TYPES.values():
        raise ValueError(f"x8 must be {' or '.join(map(str, X_TYPES.values()))}; got {x8.dtype}")
    return w4a16_gemm(widen_rows(x8, sx), codes, scales, zero_points, g_idx, bias)


def widen_rows(x8: Array, sx: Array) -> Array:
    """Return x8 times its scales: [M, K] float64, exact.

    Raises:
        ValueError: scales of another shape, or that are not finite and above 0.
    """
    M, K = x8.shape
    groups = -(-K // X_GROUP)
    if sx.shape not in {(M,), (M, 1), (M, groups)}:
        raise ValueError(f"sx must be [{M}] or [{M}, {groups}] for this x8; got {list(sx.shape)}")
    wrong = np.argwhere(~(np.isfinite(sx) & (sx > 0)))
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise ValueError(f"sx must be finite and above 0; got {sx[place]} at {list(place)}")
    scales = sx.reshape(M, -1).astype(np.float64)
    if scales.shape[1] > 1:
        scales = scales.repeat(X_GROUP, axis=1)[:, :K]
    wide: Array = x8.astype(np.float64) * scales
    return wide
