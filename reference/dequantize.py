"""A weight in Marlin's layout as the matrix that it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.reference.marlin_layout import (
    unpack_weight,
    unpack_zero_points,
    unpermute_scales,
)
from ferrum_numba.reference.w4a16 import dequantize_codes

Array = npt.NDArray[Any]


def dequantize(
    packed: Array,
    scales: Array,
    zero_points: Array | None,
    group_size: int,
    shape: tuple[int, int],
) -> Array:
    """Return scales * (codes - zero_points), rounded once to the type of the scales.

    Args:
        packed:      [K/16, 2*N] int32, of the padded K and N
        scales:      [G, N], permuted: grouped if G > 1, else for multiplied sums
        zero_points: [G, N/8] int32; None for 8 everywhere
        group_size:  rows that share a scale; the last group may have fewer
        shape:       (K, N) without the padding

    Returns:
        [K, N], the type of the scales.
    """
    (K, N), G = shape, len(scales)
    codes = unpack_weight(packed)[:K, :N]
    plain = unpermute_scales(scales, grouped=G > 1)[:, :N]
    zeros = None if zero_points is None else unpack_zero_points(zero_points)[:, :N]
    g_idx = np.arange(K) // group_size
    return dequantize_codes(codes, plain, zeros, g_idx).astype(scales.dtype)
