"""A W4A16 kernel in Triton, as short as one can be written: what a peer without PTX reaches.

    out = x @ ((codes - 8) * scales)    x [M, K] fp16, words [K / 8, N] int32 in GPTQ's order

K may be split over blocks, whose sums are then added by PyTorch. Importing this imports Triton.
"""

# Triton compiles annotations, and knows none but its own
# ruff: noqa: ANN001, ANN201
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from triton.errors import TritonError


@triton.jit
def w4a16(
    x, words, scales, out, M, N, K, GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Multiply a tile: GROUP rows share a scale; a block has BM x BN and K / SPLIT, BK at once."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    part = K // SPLIT
    first = tl.program_id(2) * part
    steps = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, part, BK):
        k = first + start + steps
        here = x + rows[:, None] * K + k[None, :]
        left = tl.load(here, mask=rows[:, None] < M, other=0.0)
        there = words + (k // 8)[:, None] * N + columns[None, :]
        word = tl.load(there, mask=columns[None, :] < N, other=0)
        code = (word >> ((k % 8) * 4)[:, None]) & 15
        group = (first + start) // GROUP
        scale = tl.load(scales + group * N + columns, mask=columns < N, other=0.0)
        weight = (code - 8).to(tl.float16) * scale[None, :]
        total = tl.dot(left, weight, total)
    target = out + tl.program_id(2) * M * N + rows[:, None] * N + columns[None, :]
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(target, total.to(out.dtype.element_ty), mask=inside)


def launch_of(
    config: Mapping[str, Any], x: Any, words: Any, scales: Any, out: Any, group_rows: int
) -> Callable[[], Any]:
    """Return what multiplies by one copy of a weight."""
    M, K = x.shape
    N, split_k = out.shape[1], config["split_k"]
    grid = (-(-M // config["block_m"]), -(-N // config["block_n"]), split_k)
    partial = torch.empty(split_k, M, N, device=x.device, dtype=torch.float32)

    def launch() -> None:
        try:
            w4a16[grid](
                x, words, scales, out if split_k == 1 else partial, M, N, K, GROUP=group_rows,
                BM=config["block_m"], BN=config["block_n"], BK=config["block_k"], SPLIT=split_k,
                num_warps=config["num_warps"], num_stages=config["num_stages"],
            )  # fmt: skip
        # what does not fit is a candidate less, as of the others
        except TritonError as error:
            raise RuntimeError(str(error)) from error
        if split_k > 1:
            out.copy_(partial.sum(0))

    return launch
