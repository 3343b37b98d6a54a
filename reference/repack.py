"""A stack of GPTQ weights in Marlin's layout, by way of its codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.reference.gptq import unpack_codes
from ferrum_numba.reference.marlin_layout import pack_weight
from ferrum_numba.reference.w4a16 import SYMMETRIC_ZERO_POINT

Array = npt.NDArray[Any]


def repack(
    qweight: Array, perm: Array | None = None, shape: tuple[int, int] | None = None
) -> Array:
    """Return each expert's weight in Marlin's layout.

    Args:
        qweight: [E, K/8, N] int32
        perm:    [E, K] int32, row perm[e, k] becomes row k; None for rows as they are
        shape:   (K, N) to pad to with codes 8; None for the weights' own

    Returns:
        [E, K/16, 2*N] int32, of the padded K and N.

    Raises:
        ValueError: a shape that does not divide into tiles.
    """
    packed = []
    for e, words in enumerate(qweight):
        codes = unpack_codes(words)
        if perm is not None:
            codes = codes[perm[e]]
        padded = np.full(shape or codes.shape, SYMMETRIC_ZERO_POINT, np.uint8)
        padded[: codes.shape[0], : codes.shape[1]] = codes
        packed.append(pack_weight(padded))
    return np.stack(packed)
