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
    a: npt.NDArray[np.generic], b: npt.NDArray[np.generic], times: int
) -> npt.NDArray[np.float64]:
    """Return so many times the product of each tile; exact.

    Args:
        a: [tiles, 64, K], of any type that tensor cores multiply
        b: [256, K], row n holds the K elements of k
    """
    product: npt.NDArray[np.float64] = a.astype(np.float64) @ b.T.astype(np.float64)
    return times * product


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


def lop3_rounds(seed: U32, words: int, rounds: int, increment: int, lut: int) -> U32:
    """Return the XOR of words r[j] = seed + j * increment after rounds of a function of their bits.

    In a round every word in turn becomes lut(r[j], r[j + 1], r[j + 3]), the numbers modulo `words`;
    bit 4a + 2b + c of the table is its value at bits a, b and c.

    Args:
        seed: [n] uint32
    """
    r = [seed + np.uint32(j * increment & 0xFFFFFFFF) for j in range(words)]
    ones = [i for i in range(8) if lut >> i & 1]
    for _ in range(rounds):
        for j in range(words):
            operands = r[j], r[(j + 1) % words], r[(j + 3) % words]
            total = np.zeros_like(seed)
            for i in ones:
                a, b, c = (x if i >> (2 - k) & 1 else ~x for k, x in enumerate(operands))
                total |= a & b & c
            r[j] = total
    out: U32 = np.bitwise_xor.reduce(r)
    return out
