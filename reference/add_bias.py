"""A bias added to a result that was rounded before: the two-step form of a linear layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def add_bias(x: Array, bias: Array) -> Array:
    """Return x + bias, added in fp32 and rounded once to the type of x.

    Args:
        x:    [M, N] float16, or any narrower type than float32
        bias: [N], the type of x

    Returns:
        [M, N], the type of x.
    """
    with np.errstate(over="ignore"):
        return (x.astype(np.float32) + bias.astype(np.float32)).astype(x.dtype)
