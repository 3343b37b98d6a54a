"""A layer of experts, step by step: what every kernel of the MoE pipeline is held against.

A pair is a token and one of its top_k experts, number token * top_k + place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.reference.w4a16 import w4a16_gemm

Array = npt.NDArray[Any]

# columns of gate, then columns of up, that lie side by side where the two are interleaved
GATE_RUN = 8


def align_tokens(ids: Array, num_experts: int, block: int) -> Array:
    """Return the work list of a routing: pairs by expert, in blocks of rows of one expert each.

    Args:
        ids:         [T, top_k] int32, the experts of each token; a pair whose expert is not 0 to
                     num_experts - 1 is dropped
        num_experts: E
        block:       rows of a block

    Returns:
        A structure of int32 fields, shape (): num_blocks [1], num_tokens_post_padded [1] (rows of
        the blocks, padding counted), num_pairs [1] (those that are not dropped), reserved [1] (0),
        expert_ids [most] (-1 past the last block), block_rows [most] (pairs of each block, 0 past
        the last), sorted_token_ids [most * block] (pairs by expert, then by number; T * top_k where
        there is none); most blocks are as many as the worst routing fills.
    """
    expert_of = ids.reshape(-1)
    pairs = expert_of.size
    most = -(-min(pairs + num_experts * (block - 1), pairs * block) // block)
    names = ("num_blocks", "num_tokens_post_padded", "num_pairs", "reserved")
    fields = [(name, np.int32, (1,)) for name in names]
    fields += [("expert_ids", np.int32, (most,)), ("block_rows", np.int32, (most,))]
    out = np.zeros((), [*fields, ("sorted_token_ids", np.int32, (most * block,))])
    out["expert_ids"], out["sorted_token_ids"] = -1, pairs
    count = 0
    for expert in range(num_experts):
        (mine,) = np.nonzero(expert_of == expert)
        for first in range(0, len(mine), block):
            rows = mine[first : first + block]
            out["expert_ids"][count], out["block_rows"][count] = expert, len(rows)
            out["sorted_token_ids"][count * block : count * block + len(rows)] = rows
            count += 1
    out["num_blocks"], out["num_tokens_post_padded"] = count, count * block
    out["num_pairs"] = out["block_rows"].sum()
    return out


def grouped_gemm(
    x: Array,
    ids: Array,
    codes: Array,
    scales: Array,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    bias: Array | None = None,
    topk_weights: Array | None = None,
    *,
    per_pair: bool = False,
    gated: bool = False,
) -> Array:
    """Return every pair's row of x times the weight of its expert.

    Args:
        x:            [T, K] float16, a row a token, or [T * top_k, K] where per_pair
        ids:          [T, top_k] int32, the experts of each token; a pair whose expert is not 0 to
                      E - 1 is dropped
        codes, scales, zero_points, g_idx, bias: [E, ...], each as for `w4a16_gemm`
        topk_weights: [T, top_k] float32, what each row is multiplied by at the end; or None
        gated:        the columns are gate and up in runs of 8; the result is silu(gate) * up

    Returns:
        [T * top_k, N] float32, or [T * top_k, N / 2] where gated; rounded once. NaN in the rows of
        dropped pairs, which nobody writes.
    """
    (num_experts, _, columns), top_k = codes.shape, ids.shape[1]
    expert_of = ids.reshape(-1)
    out = np.full((expert_of.size, columns // 2 if gated else columns), np.nan, np.float32)
    for expert in np.unique(expert_of):
        if not 0 <= expert < num_experts:
            continue
        (pairs,) = np.nonzero(expert_of == expert)
        others = (None if a is None else a[expert] for a in (zero_points, g_idx, bias))
        rows = x[pairs if per_pair else pairs // top_k]
        product = w4a16_gemm(rows, codes[expert], scales[expert], *others)
        if gated:
            product = gated_product(*split_gate(product))
        if topk_weights is not None:
            product = product * topk_weights.reshape(-1, 1)[pairs]
        out[pairs] = product
    return out


def split_gate(x: Array) -> tuple[Array, Array]:
    """Return gate and up, [rows, I] each, of [rows, 2 * I] in which they lie in runs of 8."""
    runs = x.reshape(len(x), -1, 2, GATE_RUN)
    return runs[:, :, 0].reshape(len(x), -1), runs[:, :, 1].reshape(len(x), -1)


def gated_product(gate: Array, up: Array) -> Array:
    """Return silu(gate) * up, computed in float64: silu(g) = g / (1 + exp(-g))."""
    wide = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        return wide / (1 + np.exp(-wide)) * up.astype(np.float64)
