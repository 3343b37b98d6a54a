"""The Op of every int4 GEMM here: fp16 or bf16 activations times a GPTQ int4 weight.

out[m, n] = round(sum_k x[m, k] * scales[g(k), n] * (codes[k, n] - zero(g(k), n)) + bias[n])

x            [M, K] dtype, row-major
codes        [K, N] uint8, 0..15, one a byte; a kernel packs them into its own layout
scales       [G, N] dtype
zero_points  [G, N] uint8, 0..15; absent in a symmetric weight, whose zero point is 8
g_idx        [K] int32, the group g(k) of a row; absent in an ordered weight: k // group_size
bias         [N] dtype; may be absent
out          [M, N] dtype, row-major

dtype is float16, or bfloat16 as `ml_dtypes` defines it for NumPy. G is K / group_size, rounded up:
the last group of an ordered weight may have fewer rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.contract import Inputs, Op, Tolerance, Work
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError
from ferrum_numba.kernels.dtypes import DTYPES, refuse_dtype
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
    group_size:  rows of the weight that share a scale, 1 to K; -1 for all of them
    zero_points: "none" (8 everywhere), or the checkpoint format that holds them: "gptq" (v1) or
                 "gptq_v2"
    act_order:   the rows' groups are permuted (GPTQ's desc_act)
    bias:        a bias is added before the result is rounded
    dtype:       of x, scales, bias and out: "fp16" or "bf16"
    """

    M: int
    N: int
    K: int
    group_size: int = 128
    zero_points: str = "none"
    act_order: bool = False
    bias: bool = False
    dtype: str = "fp16"

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
        if self.group_size != -1 and not 1 <= self.group_size <= self.K:
            raise ProblemError(f"group_size must be -1 or 1 to K = {self.K}; got {self.group_size}")
        if self.zero_points not in ZERO_POINTS:
            raise ProblemError(
                f'zero_points must be "none", "gptq" or "gptq_v2"; got "{self.zero_points}"'
            )
        refuse_dtype(self.dtype, ProblemError)

    @property
    def group_rows(self) -> int:
        """Rows of the weight that share a scale: group_size, or K where it is -1."""
        return self.K if self.group_size == -1 else self.group_size

    @property
    def num_groups(self) -> int:
        """Rows of scales, G: the last group may be a smaller one."""
        return ceil_div(self.K, self.group_rows)

    @property
    def ordered_groups(self) -> Array:
        """The group of each row where they are not permuted: [K] int32."""
        return np.arange(self.K, dtype=np.int32) // np.int32(self.group_rows)


def make_inputs(problem: W4A16Problem, rng: np.random.Generator) -> dict[str, Array]:
    """Return activations and a weight; the weight's arrays are read-only.

    Codes are uniform over 0..15, which costs a model-sized weight a second; a quantised Gaussian
    would use the outer codes less and test them less. Generators of equal state give equal
    weights for all M, so a sweep over M makes its weight once.
    """
    seed = int(rng.integers(2**32))
    x = rng.standard_normal((problem.M, problem.K), np.float32).astype(DTYPES[problem.dtype])
    return {"x": x, **_make_weight(replace(problem, M=1), seed)}


@lru_cache(maxsize=1)
def _make_weight(problem: W4A16Problem, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    K, N, G, dtype = problem.K, problem.N, problem.num_groups, DTYPES[problem.dtype]
    weight: dict[str, Array] = {"codes": rng.integers(0, 16, (K, N), np.uint8)}
    # the size of a trained layer's scales: weights of about 0.05
    weight["scales"] = rng.uniform(0.005, 0.015, (G, N)).astype(dtype)
    if problem.zero_points != "none":
        weight["zero_points"] = rng.integers(0, 16, (G, N), np.uint8)
    if problem.act_order:
        weight["g_idx"] = rng.permutation(problem.ordered_groups)
    if problem.bias:
        weight["bias"] = rng.standard_normal(N, np.float32).astype(dtype)
    for array in weight.values():
        array.flags.writeable = False
    return weight


def reference(problem: W4A16Problem, inputs: Inputs) -> Array:
    """Return [M, N] float32, the exact product rounded once."""
    # without it the reference takes all groups to be of one size
    result: Array = w4a16_gemm(**{"g_idx": problem.ordered_groups, **inputs})
    return result


def output(problem: W4A16Problem) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of the result."""
    return (problem.M, problem.N), DTYPES[problem.dtype]


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
    """Return what two roundings to dtype on top of an fp32 sum cost."""
    # bf16 has three bits of mantissa less
    coarser = 1 if problem.dtype == "fp16" else 8
    return Tolerance(
        rel=5e-4 * coarser,
        max=2e-3 * coarser,
        reason=(
            "a kernel may round every dequantised weight to its type and rounds the result: two "
            "independent relative errors of at most 2^-11 = 4.9e-4 in fp16, 2.1e-4 RMS each, 3e-4 "
            "together; fp32 accumulation adds less than 1e-5. The largest error has the peak's "
            "own rounding, 4.9e-4, and the tail of the weights' sum, a few times 2.1e-4. All of "
            "it is 8 times as much in bf16"
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
    types = (
        W4A16Problem(5, 128, 256, 128, dtype="bf16"),
        W4A16Problem(17, 64, 256, -1, bias=True, dtype="bf16"),
        W4A16Problem(9, 192, 128, 32, "gptq", bias=True, dtype="bf16"),
        W4A16Problem(3, 64, 256, 64, "gptq_v2", act_order=True, dtype="bf16"),
    )
    # no whole tiles: N and K of 8, a last group that is smaller
    ragged = (
        W4A16Problem(2, 136, 200, 64),
        W4A16Problem(5, 128, 192, 128),
        W4A16Problem(18, 72, 328, 128, "gptq", bias=True),
        W4A16Problem(7, 8, 232, 32, act_order=True, bias=True),
        W4A16Problem(1, 200, 72, -1, "gptq_v2", dtype="bf16"),
    )
    # what only a kernel on the checkpoint's own layout can run
    odd = (
        W4A16Problem(1, 8, 8, -1),
        W4A16Problem(5, 72, 120, 24, "gptq"),
        W4A16Problem(18, 40, 208, 16, "gptq_v2", bias=True),
        W4A16Problem(3, 136, 264, 8),
        W4A16Problem(10, 24, 144, 48, "gptq", act_order=True),
    )
    return rows + tiles + kinds + types + ragged + odd


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
