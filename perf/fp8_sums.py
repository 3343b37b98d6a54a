"""To what error sums of fp8 products are right, by how many of them the tensor cores add up.

    python -m ferrum_numba.perf.fp8_sums

Sums of x8 (e4m3) times codes of int4 as Hopper's wgmma adds them (`ptx.mma8.sum_fp8`, bit for bit),
`length` of k in a row, and further ones in fp32, against float64. No GPU is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.ptx.mma8 import sum_fp8
from ferrum_numba.reference.quantize_rows import quantize_rows

Array = npt.NDArray[Any]

TOKENS, COLUMNS, K, PRODUCT_K = 8, 32, 4096, 32
LENGTHS = (32, 64, 128, 512, 4096)


def gaussian(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return normal activations, and codes that are as often of either sign."""
    return rng.standard_normal((TOKENS, K)), rng.integers(-8, 8, (K, COLUMNS))


def outliers(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the same where one of a hundred activations is fifty times as large."""
    x, codes = gaussian(rng)
    return np.where(rng.random(x.shape) < 0.01, 50 * x, x), codes


def positive(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return activations and codes that are all positive: sums grow to the end."""
    return rng.random((TOKENS, K)), rng.integers(1, 8, (K, COLUMNS))


def cancelling(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return a first half that the second takes back but for little: what is left is small."""
    x, codes = positive(rng)
    x[:, K // 2 :] = -x[:, : K // 2] * (1 + 0.05 * rng.standard_normal((TOKENS, K // 2)))
    codes[K // 2 :] = codes[: K // 2]
    return x, codes


def behind_peaks(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return activations of which two of 32 are thousands of times the others, of both signs."""
    x, codes = rng.standard_normal((TOKENS, K)) * 0.03, rng.integers(-8, 8, (K, COLUMNS))
    x[:, ::PRODUCT_K], x[:, 1::PRODUCT_K] = 448, -448
    codes[::PRODUCT_K] = codes[1::PRODUCT_K] = 7
    return x, codes


INPUTS: dict[str, Callable[[np.random.Generator], tuple[Array, Array]]] = {
    "normal": gaussian,
    "1 % of outliers": outliers,
    "all positive": positive,
    "halves that cancel": cancelling,
    "behind peaks": behind_peaks,
}


def errors(x: Array, codes: Array, lengths: tuple[int, ...] = LENGTHS) -> list[tuple[float, float]]:
    """Return (relative error, largest of the peak) of sums in chains of each length.

    Args:
        x:     [TOKENS, K] activations, which are rounded to e4m3 first
        codes: [K, COLUMNS] integers from -8 to 7
    """
    x8, _ = quantize_rows(x.astype(np.float32))
    wide, weights = x8.astype(np.float64), codes.astype(np.float64)
    want, found = wide @ weights, []
    for length in lengths:
        total = np.zeros((COLUMNS, TOKENS), np.float32)
        for first in range(0, K, length):
            chain = np.zeros_like(total)
            for k in range(first, first + length, PRODUCT_K):
                part = slice(k, k + PRODUCT_K)
                chain = sum_fp8(weights[part].T, wide[:, part].T, chain)
            total += chain
        wrong = np.abs(total.T - want)
        found.append((float(np.linalg.norm(wrong) / np.linalg.norm(want)),
                      float(wrong.max() / np.abs(want).max())))  # fmt: skip
    return found


def table(seed: int = 0) -> str:
    """Return the table that docs/designs/w4a8_wgmma.md#accumulation has."""
    head = "".join(f" {length:>17}" for length in LENGTHS)
    lines = [f"{'k added in fp8':20}{head}"]
    for name, make in INPUTS.items():
        cells = errors(*make(np.random.default_rng(seed)))
        lines.append(f"{name:20}" + "".join(f" {rel:8.1e} {most:8.1e}" for rel, most in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
