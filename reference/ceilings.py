"""What the kernels that measure a GPU's limits must compute, so that none of them can cheat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]


def row_sums(data: U32, passes: int, stride: int) -> U32:
    """Return, for each row t, the sum of rows t, t + stride, ... modulo 2^32.

    Args:
        data:   [rows, words] uint32
        passes: rows in a sum; row numbers wrap around
        stride: from one row of a sum to the next
    """
    of_row = data.sum(axis=1, dtype=np.uint64)
    rows = np.arange(len(data))
    total = np.zeros_like(of_row)
    for i in range(passes):
        total += of_row[(rows + i * stride) % len(data)]
    wrapped: U32 = total.astype(np.uint32)
    return wrapped


def tensor_chain(
    a: npt.NDArray[np.float16], b: npt.NDArray[np.float16], k_steps: int
) -> npt.NDArray[np.float64]:
    """Return k_steps times the product of each tile; exact.

    Args:
        a: [tiles, 64, 16] fp16
        b: [256, 16] fp16, row n holds the 16 elements of k
    """
    product: npt.NDArray[np.float64] = a.astype(np.float64) @ b.T.astype(np.float64)
    return k_steps * product


def dequantize_chain(words: U32, steps: int, increment: int, values: npt.NDArray[np.uint16]) -> U32:
    """Return the XOR of all dequantised pairs of each chain of words.

    A chain is word, word + increment, ... modulo 2^32; of each word, pair i holds code i in its
    lower half and code i + 4 in its upper half.

    Args:
        words:  [n] uint32, eight codes a word
        values: [16] uint16, the bits of each code's value
    """
    codes = np.arange(1 << 16)
    of_half = values[codes & 15]
    for shift in (4, 8, 12):
        of_half = of_half ^ values[codes >> shift & 15]
    of_half = of_half.astype(np.uint32)
    total = np.zeros_like(words)
    word = words.copy()
    for _ in range(steps):
        total ^= of_half[word & 0xFFFF] | of_half[word >> 16] << 16
        word += np.uint32(increment)
    return total
