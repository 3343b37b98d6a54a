"""Columns in another order: what act-order asks of the activations."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


def gather_columns(x: Array, perm: Array) -> Array:
    """Return out[m, j] = x[m, perm[j]].

    Args:
        x:    [M, K], any type
        perm: [K] int32, 0..K - 1

    Returns:
        [M, K], the type of x.
    """
    gathered: Array = x[:, perm]
    return gathered
