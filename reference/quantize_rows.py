"""Activations in 8 bits: rows divided by their largest element, and rounded.

    sx[m, h] = max(peak of x[m, k] over the k of h, 2^-60) / largest
    x8[m, k] = round(x[m, k] * (largest / peak))

largest is 448 for fp8 (e4m3), 127 for int8; each quotient and product is rounded to float32 once,
and x8 to nearest even, no further than largest.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

X_TYPES = {"fp8": np.dtype(ml_dtypes.float8_e4m3fn), "int8": np.dtype(np.int8)}
LARGEST = {"fp8": np.float32(448), "int8": np.float32(127)}
# of k that share a scale where a row has several
X_GROUP = 128
# what a row of zeros is divided by, or one of elements that are smaller
LEAST = np.float32(2.0**-60)


def quantize_rows(
    x: Array, x_dtype: str = "fp8", x_group: int = -1, perm: Array | None = None
) -> tuple[Array, Array]:
    """Return x8 and its scales.

    Args:
        x:       [M, K] float16 or bfloat16
        x_dtype: "fp8" or "int8"
        x_group: k that share a scale: 128, or -1 for the whole row
        perm:    [K] int32: column j of x8 is column perm[j] of x; None for j

    Returns:
        x8 [M, K], and sx [M, 1 or K / 128, rounded up] float32. A group with an Inf or a NaN has a
        scale that is one too.
    """
    wide = x.astype(np.float32)
    if perm is not None:
        wide = wide[:, perm]
    (M, K), size = wide.shape, wide.shape[1] if x_group == -1 else x_group
    groups = -(-K // size)
    blocks = np.zeros((M, groups * size), np.float32)
    blocks[:, :K] = wide
    blocks = blocks.reshape(M, groups, size)
    largest = LARGEST[x_dtype]
    peak = np.maximum(np.abs(blocks).max(axis=2), LEAST)
    with np.errstate(invalid="ignore"):
        scaled = blocks * (largest / peak)[:, :, None]
    rounded = round_to(scaled.reshape(M, -1)[:, :K], x_dtype)
    return rounded, (peak / largest).astype(np.float32)


def round_to(values: Array, x_dtype: str) -> Array:
    """Return float32 values in 8 bits: to nearest even, saturated; a NaN is 0 as an integer."""
    largest = LARGEST[x_dtype]
    near = np.clip(values, -largest, largest)
    if x_dtype == "int8":
        near = np.rint(np.nan_to_num(near, nan=0))
    rounded: Array = near.astype(X_TYPES[x_dtype])
    return rounded
