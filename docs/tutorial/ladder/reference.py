"""What every step computes, in NumPy, so plain that anybody believes it."""

import numpy as np

# rows of the weight that share a scale
GROUP = 128
# codes in a word, and what is taken away from each of them
WORD_ROWS, ZERO = 8, 8


def int4_gemm(x, qweight, scales):
    """Return x times the weight, in float64: [M, N].

    x:       [M, K] fp16
    qweight: [K/8, N] uint32, nibble i of a word is the code of row 8r + i
    scales:  [K/128, N] fp16
    """
    return x.astype(np.float64) @ dequantize(qweight, scales)


def dequantize(qweight, scales):
    """Return (code - 8) * scale of every code, in float64: [K, N]."""
    shifts = np.arange(0, 4 * WORD_ROWS, 4, dtype=np.uint32)[:, None]
    codes = (qweight[:, None, :] >> shifts & np.uint32(15)).reshape(-1, qweight.shape[1])
    return (codes.astype(np.float64) - ZERO) * np.repeat(scales.astype(np.float64), GROUP, axis=0)
