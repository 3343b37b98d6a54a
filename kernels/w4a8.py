"""The Op of int4 GEMMs with 8-bit activations: rows of fp8 or int8 times a GPTQ int4 weight.

out[m, n] = round(sum_k x8[m, k] * sx[m, h(k)] * w[k, n] + bias[n])
w[k, n] = scales[g(k), n] * (codes[k, n] - zero(g(k), n))

x8           [M, K] e4m3 or int8, row-major, as `quantize_rows` makes it
sx           [M, 1] float32, a scale a row; or [M, H], one for every 128 of a row: H is K / 128,
             rounded up
codes        [K, N] uint8, 0..15, one a byte; a kernel packs them into its own layout
scales       [G, N] dtype
zero_points  [G, N] uint8, 0..15; absent in a symmetric weight, whose zero point is 8
bias         [N] dtype; may be absent
out          [M, N] dtype, row-major

The weight is that of `w4a16_gemm`, in the same layouts. One in act-order asks for gathered columns
of x, which is `quantize_rows`'s work: here its rows are in the order of their groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.contract import Inputs, Op, Tolerance, Work
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError
from ferrum_numba.kernels import w4a16
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.reference import w4a8_gemm
from ferrum_numba.reference.quantize_rows import X_GROUP, X_TYPES, quantize_rows

Array = npt.NDArray[Any]

X_GROUPS = (-1, X_GROUP)


@dataclass(frozen=True)
class W4A8Problem:
    """Sizes and kind of one int4 GEMM with 8-bit activations.

    M, N, K:     rows of x8, columns of the weight, rows of the weight
    group_size:  rows of the weight that share a scale, 1 to K; -1 for all of them
    zero_points: "none" (8 everywhere), or the checkpoint format that holds them: "gptq" (v1) or
                 "gptq_v2"
    bias:        a bias is added before the result is rounded
    dtype:       of scales, bias and out: "fp16" or "bf16"
    x_dtype:     of x8: "fp8" (e4m3) or "int8"
    x_group:     k of x8 that share a scale: -1 for the whole row, or 128
    """

    M: int
    N: int
    K: int
    group_size: int = 128
    zero_points: str = "none"
    bias: bool = False
    dtype: str = "fp16"
    x_dtype: str = "fp8"
    x_group: int = -1

    def __post_init__(self) -> None:
        # sizes, groups and types are refused in its words
        _ = self.weight
        if self.x_dtype not in X_TYPES:
            raise ProblemError(f'x_dtype must be "fp8" or "int8"; got "{self.x_dtype}"')
        if self.x_group not in X_GROUPS:
            raise ProblemError(f"x_group must be -1 or {X_GROUP}; got {self.x_group}")

    @property
    def weight(self) -> W4A16Problem:
        """The problem of the same weight with 16-bit activations."""
        return W4A16Problem(
            self.M, self.N, self.K, self.group_size, self.zero_points,
            bias=self.bias, dtype=self.dtype,
        )  # fmt: skip

    @property
    def x_scales(self) -> int:
        """Scales of a row of x8, H."""
        return 1 if self.x_group == -1 else ceil_div(self.K, self.x_group)


def make_inputs(problem: W4A8Problem, rng: np.random.Generator) -> dict[str, Array]:
    """Return quantised activations and a weight, which is that of `w4a16_gemm` for this state."""
    inputs = w4a16.make_inputs(problem.weight, rng)
    x8, sx = quantize_rows(inputs.pop("x"), problem.x_dtype, problem.x_group)
    return {"x8": x8, "sx": sx, **inputs}


def reference(problem: W4A8Problem, inputs: Inputs) -> Array:
    """Return [M, N] float32, the exact product rounded once."""
    # without it the reference takes all groups to be of one size
    result: Array = w4a8_gemm(**{"g_idx": problem.weight.ordered_groups, **inputs})
    return result


def output(problem: W4A8Problem) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of the result."""
    return (problem.M, problem.N), DTYPES[problem.dtype]


def work(problem: W4A8Problem) -> Work:
    """Return 2*M*N*K operations, and every operand and the result once."""
    same = w4a16.work(problem.weight)
    # a byte an element of x8 and not two, and its scales
    return Work(same.flops, same.bytes - problem.M * problem.K + 4 * problem.M * problem.x_scales)


def tolerance(problem: W4A8Problem) -> Tolerance:
    """Return what the sums of the tensor cores and one rounding to dtype cost."""
    coarser = 1 if problem.dtype == "fp16" else 8
    if problem.x_dtype == "int8":
        return Tolerance(
            rel=3e-4 * coarser,
            max=6e-4 * coarser,
            reason=(
                "int8 products are summed exactly within a group, and groups in fp32, which adds "
                "less than 1e-5; the result is rounded once: at most 2^-11 = 4.9e-4 in fp16, "
                "2.1e-4 RMS; all of it is 8 times as much in bf16"
            ),
        )
    return Tolerance(
        rel=4e-4 * coarser,
        max=8e-4 * coarser,
        reason=(
            "Hopper's fp8 products are cut 13 places after the largest of the 32 that it adds, and "
            "their sum again (ptx.mma8.sum_fp8): of products of 8 bits few lose any, and a group's "
            "sum less than 1e-4 RMS (docs/designs/w4a8_wgmma.md#accumulation); the result is "
            "rounded once: at most 2^-11 = 4.9e-4 in fp16, 2.1e-4 RMS; all of it is 8 times as "
            "much in bf16"
        ),
    )


def _tests() -> tuple[W4A8Problem, ...]:
    """Return small problems on the edges of every tile in M, N and K, and of every kind."""
    rows = tuple(W4A8Problem(M, 128, 256) for M in (1, 2, 7, 8, 9, 15, 16, 17, 33, 64, 65))
    tiles = (
        W4A8Problem(2, 256, 128),
        W4A8Problem(5, 128, 512, 64),
        W4A8Problem(16, 192, 384, 32),
        W4A8Problem(17, 320, 256, -1),
        W4A8Problem(1, 128, 1024),
        W4A8Problem(33, 128, 256, 256),
    )
    kinds = (
        W4A8Problem(9, 128, 256, 64, "gptq"),
        W4A8Problem(9, 192, 256, 32, "gptq_v2"),
        W4A8Problem(4, 128, 128, -1, "gptq", bias=True),
        W4A8Problem(16, 128, 256, 128, bias=True),
        W4A8Problem(5, 128, 256, dtype="bf16"),
        W4A8Problem(17, 192, 128, 32, "gptq", bias=True, dtype="bf16"),
        W4A8Problem(6, 128, 384, x_group=128),
        W4A8Problem(9, 128, 256, 64, "gptq", x_group=128),
    )
    int8 = (
        W4A8Problem(1, 128, 256, x_dtype="int8"),
        W4A8Problem(17, 128, 512, 64, "gptq", bias=True, x_dtype="int8"),
        W4A8Problem(5, 192, 256, -1, dtype="bf16", x_dtype="int8"),
        W4A8Problem(9, 128, 384, 32, x_dtype="int8", x_group=128),
    )
    # no whole tiles: N and K of 8, a last group that is smaller
    ragged = (
        W4A8Problem(2, 136, 200, 64),
        W4A8Problem(5, 128, 192, 128, x_group=128),
        W4A8Problem(18, 136, 328, 128, "gptq", bias=True),
        W4A8Problem(7, 200, 72, -1, "gptq_v2", dtype="bf16", x_dtype="int8"),
    )
    return rows + tiles + kinds + int8 + ragged


OP = Op(
    name="w4a8_gemm",
    formula=(
        "out[m, n] = sum_k x8[m, k] * sx[m, h(k)] * scales[g(k), n] * (codes[k, n] - zero[g(k), n])"
        " + bias[n]"
    ),
    problem=W4A8Problem,
    make_inputs=make_inputs,
    reference=reference,
    output=output,
    work=work,
    tolerance=tolerance,
    tests=_tests(),
    activations=frozenset({"x8", "sx"}),
)
