"""The Op of every int4 GEMM here: fp16 activations times a GPTQ int4 weight.

out[m, n] = fp16(sum_k x[m, k] * scales[g(k), n] * (codes[k, n] - zero(g(k), n)) + bias[n])

x            [M, K] float16 row-major
codes        [K, N] uint8, 0..15, one a byte; a kernel packs them into its own layout
scales       [G, N] float16
zero_points  [G, N] uint8, 0..15; absent in a symmetric weight, whose zero point is 8
g_idx        [K] int32, the group g(k) of a row; absent in an ordered weight: k // group_size
bias         [N] float16; may be absent
out          [M, N] float16 row-major
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.contract import Inputs, Op, Tolerance, Work
from ferrum_numba.errors import ProblemError
from ferrum_numba.reference import w4a16_gemm

Array = npt.NDArray[Any]

ZERO_POINTS = ("none", "gptq", "gptq_v2")
# what a packed word holds; no layout has smaller pieces
PACK_FACTOR = 8

# far beyond any model; products of two of them, and byte offsets, still fit 64 bits, and counts of
# tiles 32
MOST_M, MOST = 65_536, 1 << 20


@dataclass(frozen=True)
class W4A16Problem:
    """Sizes and kind of one int4 GEMM.

    M, N, K:     rows of x, columns of the weight, rows of the weight
    group_size:  rows of the weight that share a scale; -1 for all of them
    zero_points: "none" (8 everywhere), or the checkpoint format that holds them: "gptq" (v1) or
                 "gptq_v2"
    act_order:   the rows' groups are permuted (GPTQ's desc_act)
    bias:        a bias is added before the result is rounded
    """

    M: int
    N: int
    K: int
    group_size: int = 128
    zero_points: str = "none"
    act_order: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        if min(self.M, self.N, self.K) < 1:
            raise ProblemError(
                f"M, N and K must be at least 1; got M = {self.M}, N = {self.N}, K = {self.K}"
            )
        for name, size, most in (("M", self.M, MOST_M), ("N", self.N, MOST), ("K", self.K, MOST)):
            if size > most:
                raise ProblemError(f"{name} must be at most {most}; got {name} = {size}")
        for name, size in (("N", self.N), ("K", self.K)):
            if size % PACK_FACTOR:
                below = max(size // PACK_FACTOR, 1) * PACK_FACTOR
                above = (size // PACK_FACTOR + 1) * PACK_FACTOR
                nearest = (
                    f"nearest are {below} and {above}" if below < above else f"nearest is {above}"
                )
                raise ProblemError(
                    f"{name} must be a multiple of {PACK_FACTOR}, the int4 codes of a word; "
                    f"got {name} = {size}, the {nearest}"
                )
        if self.group_size != -1 and (self.group_size < 1 or self.K % self.group_size):
            divisors = (size for size in range(1, self.K + 1) if self.K % size == 0)
            divisor = min(divisors, key=lambda size: abs(size - self.group_size))
            raise ProblemError(
                f"group_size must be -1 or divide K = {self.K}; got {self.group_size}, "
                f"the nearest is {divisor}"
            )
        if self.zero_points not in ZERO_POINTS:
            raise ProblemError(
                f'zero_points must be "none", "gptq" or "gptq_v2"; got "{self.zero_points}"'
            )

    @property
    def group_rows(self) -> int:
        """Rows of the weight that share a scale: group_size, or K where it is -1."""
        return self.K if self.group_size == -1 else self.group_size

    @property
    def num_groups(self) -> int:
        """Rows of scales, G."""
        return self.K // self.group_rows


def make_inputs(problem: W4A16Problem, rng: np.random.Generator) -> dict[str, Array]:
    """Return activations and a weight; the weight's arrays are read-only.

    Codes are uniform over 0..15, which costs a model-sized weight a second; a quantised Gaussian
    would use the outer codes less and test them less. Generators of equal state give equal
    weights for all M, so a sweep over M makes its weight once.
    """
    seed = int(rng.integers(2**32))
    x = rng.standard_normal((problem.M, problem.K), np.float32).astype(np.float16)
    return {"x": x, **_make_weight(replace(problem, M=1), seed)}


@lru_cache(maxsize=1)
def _make_weight(problem: W4A16Problem, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    K, N, G = problem.K, problem.N, problem.num_groups
    weight: dict[str, Array] = {"codes": rng.integers(0, 16, (K, N), np.uint8)}
    # the size of a trained layer's scales: weights of about 0.05
    weight["scales"] = rng.uniform(0.005, 0.015, (G, N)).astype(np.float16)
    if problem.zero_points != "none":
        weight["zero_points"] = rng.integers(0, 16, (G, N), np.uint8)
    if problem.act_order:
        ordered = np.arange(K, dtype=np.int32) // np.int32(problem.group_rows)
        weight["g_idx"] = rng.permutation(ordered)
    if problem.bias:
        weight["bias"] = rng.standard_normal(N, np.float32).astype(np.float16)
    for array in weight.values():
        array.flags.writeable = False
    return weight


def reference(problem: W4A16Problem, inputs: Inputs) -> Array:
    """Return [M, N] float32, the exact product rounded once."""
    result: Array = w4a16_gemm(**inputs)
    return result


def output(problem: W4A16Problem) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of the result."""
    return (problem.M, problem.N), np.dtype(np.float16)


def work(problem: W4A16Problem) -> Work:
    """Return 2*M*N*K operations, and every operand and the result once."""
    M, N, K, G = problem.M, problem.N, problem.K, problem.num_groups
    size_bytes = K * N // 2 + 2 * G * N + 2 * M * K + 2 * M * N
    if problem.zero_points != "none":
        size_bytes += G * N // 2
    if problem.act_order:
        size_bytes += 4 * K
    if problem.bias:
        size_bytes += 2 * N
    return Work(flops=2 * M * N * K, bytes=size_bytes)


def tolerance(problem: W4A16Problem) -> Tolerance:
    """Return what two fp16 roundings on top of an fp32 sum cost."""
    return Tolerance(
        rel=5e-4,
        max=2e-3,
        reason=(
            "a kernel may round every dequantised weight to fp16 and rounds the result to fp16: "
            "two independent relative errors of at most 2^-11 = 4.9e-4, 2.1e-4 RMS each, 3e-4 "
            "together; fp32 accumulation adds less than 1e-5. The largest error has the peak's "
            "own rounding, 4.9e-4, and the tail of the weights' sum, a few times 2.1e-4"
        ),
    )


def _tests() -> tuple[W4A16Problem, ...]:
    """Return small problems on the edges of every tile in M, N and K, and of every kind."""
    edges = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65)
    rows = tuple(W4A16Problem(M, 64, 256, 128) for M in edges)
    tiles = (
        W4A16Problem(2, 256, 128, 128),
        W4A16Problem(5, 128, 512, 64),
        W4A16Problem(16, 192, 384, 32),
        W4A16Problem(17, 320, 256, -1),
        W4A16Problem(1, 64, 1024, 128),
        W4A16Problem(3, 64, 128, -1),
        W4A16Problem(33, 128, 256, 256),
    )
    kinds = (
        W4A16Problem(9, 128, 256, 64, "gptq"),
        W4A16Problem(9, 64, 256, 32, "gptq_v2"),
        W4A16Problem(4, 64, 128, -1, "gptq", bias=True),
        W4A16Problem(7, 128, 256, 128, act_order=True),
        W4A16Problem(17, 64, 256, 32, "gptq", act_order=True, bias=True),
        W4A16Problem(2, 64, 128, -1, act_order=True),
        W4A16Problem(16, 128, 256, 128, bias=True),
    )
    # what only a kernel on the checkpoint's own layout can run
    odd = (
        W4A16Problem(1, 8, 8, -1),
        W4A16Problem(5, 72, 120, 24, "gptq"),
        W4A16Problem(18, 40, 208, 16, "gptq_v2", bias=True),
        W4A16Problem(3, 136, 264, 8),
        W4A16Problem(10, 24, 144, 48, "gptq", act_order=True),
    )
    return rows + tiles + kinds + odd


OP = Op(
    name="w4a16_gemm",
    formula="out[m, n] = sum_k x[m, k] * scales[g(k), n] * (codes[k, n] - zero[g(k), n]) + bias[n]",
    problem=W4A16Problem,
    make_inputs=make_inputs,
    reference=reference,
    output=output,
    work=work,
    tolerance=tolerance,
    tests=_tests(),
    activations=frozenset({"x"}),
)
