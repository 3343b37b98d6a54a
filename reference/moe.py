"""A layer of experts, step by step: what every kernel of the MoE pipeline is held against.

A pair is a token and one of its top_k experts, number token * top_k + place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.reference.add_bias import add_bias
from ferrum_numba.reference.w4a16 import w4a16_gemm

Array = npt.NDArray[Any]

# columns of gate, then columns of up, that lie side by side where the two are interleaved
GATE_RUN = 8


def route_topk(
    logits: Array, top_k: int, scoring: str = "softmax", renormalise: bool = True
) -> tuple[Array, Array]:
    """Return the experts of each token, the best first, and their weights.

    Logits are compared, of which scores are a monotone function; of equal ones the smaller id comes
    first. NaN counts as -inf. The largest logit is 0 above itself, so a row of equal infinities has
    equal scores too.

    Args:
        logits:      [T, E] float16, float32, or any type narrower than float64
        top_k:       experts of a token, 1 to E
        scoring:     "softmax" over all E, or "sigmoid" of each
        renormalise: divide the chosen scores by their sum

    Returns:
        ids [T, top_k] int32, and weights [T, top_k] float32. A sigmoid below the least normal
        float32 is 0; where all that are chosen are 0, they stay so.
    """
    wide = logits.astype(np.float64)
    wide[np.isnan(wide)] = -np.inf
    ids = np.argsort(-wide, axis=1, kind="stable")[:, :top_k]
    scores = _softmax(wide) if scoring == "softmax" else _sigmoid(wide)
    weights = np.take_along_axis(scores, ids, axis=1)
    if renormalise:
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total > 0, total, 1)
    return ids.astype(np.int32), weights.astype(np.float32)


def _softmax(logits: Array) -> Array:
    peak = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        exps = np.exp(np.where(logits == peak, 0, logits - peak))
    softmax: Array = exps / exps.sum(axis=1, keepdims=True)
    return softmax


def _sigmoid(logits: Array) -> Array:
    with np.errstate(over="ignore"):
        scores = 1 / (1 + np.exp(-logits))
    return np.where(scores < np.finfo(np.float32).tiny, 0, scores)


def local_experts(ids: Array, num_experts: int, expert_map: Array | None = None) -> Array:
    """Return the expert here of each pair, -1 where it is dropped: elsewhere, or no expert at all.

    Args:
        ids:         [T, top_k] int32, the experts of each token
        num_experts: E, those that are here
        expert_map:  [E_global] int32, the expert here of each id, or -1; None: they are the same

    Returns:
        [T, top_k] int32, -1 to E - 1.
    """
    found = ids
    if expert_map is not None:
        known = (ids >= 0) & (ids < len(expert_map))
        found = np.where(known, expert_map[np.where(known, ids, 0)], -1)
    here: Array = np.where((found >= 0) & (found < num_experts), found, -1).astype(np.int32)
    return here


def align_tokens(
    ids: Array, num_experts: int, block: int, expert_map: Array | None = None
) -> Array:
    """Return the work list of a routing: pairs by expert, in blocks of rows of one expert each.

    Args:
        ids:         [T, top_k] int32, the experts of each token
        num_experts: E, those that are here; pairs of others are dropped
        block:       rows of a block
        expert_map:  [E_global] int32 as in `local_experts`, or None

    Returns:
        A structure of int32 fields, shape (): num_blocks [1], num_tokens_post_padded [1] (rows of
        the blocks, padding counted), num_pairs [1] (those that are not dropped), reserved [1] (0),
        expert_ids [most] (-1 past the last block), block_rows [most] (pairs of each block, 0 past
        the last), sorted_token_ids [most * block] (pairs by expert, then by number; T * top_k where
        there is none); most blocks are as many as the worst routing fills.
    """
    expert_of = local_experts(ids, num_experts, expert_map).reshape(-1)
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
        product: Array = wide / (1 + np.exp(-wide)) * up.astype(np.float64)
    return product


def silu_mul(x: Array, interleaved: bool = True) -> Array:
    """Return silu(gate) * up, rounded once to the type of x.

    Args:
        x:           [rows, 2 * I] float16, or any narrower type than float32
        interleaved: gate and up lie in runs of 8; else gate is the left half, up the right

    Returns:
        [rows, I], the type of x.
    """
    gate, up = split_gate(x) if interleaved else np.split(x, 2, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        return gated_product(gate, up).astype(x.dtype)


def combine(
    rows: Array,
    ids: Array,
    topk_weights: Array | None,
    num_experts: int,
    shared: Array | None = None,
    expert_map: Array | None = None,
) -> Array:
    """Return each token's weighted sum of its pairs' rows.

    The sum is in float32, in the order of the places, after the row of shared; it is rounded once.

    Args:
        rows:         [T * top_k, H] float16, or any narrower type than float32; those of dropped
                      pairs may be anything
        ids:          [T, top_k] int32, the experts of each token
        topk_weights: [T, top_k] float32; None: rows have been multiplied by them
        num_experts:  E, those that are here; pairs of others are dropped
        shared:       [T, H], the type of rows, added with weight 1; or None
        expert_map:   [E_global] int32 as in `local_experts`, or None

    Returns:
        [T, H], the type of rows; 0 for a token of no pairs and no shared row.
    """
    (tokens, top_k), columns = ids.shape, rows.shape[1]
    here = local_experts(ids, num_experts, expert_map) >= 0
    of_token = rows.reshape(tokens, top_k, columns)
    sums = np.zeros((tokens, columns), np.float32)
    if shared is not None:
        sums += shared.astype(np.float32)
    # a row that nobody wrote may hold anything
    with np.errstate(over="ignore", invalid="ignore"):
        for place in range(top_k):
            weight = 1 if topk_weights is None else topk_weights[:, place, None]
            row = of_token[:, place].astype(np.float32)
            sums = np.where(here[:, place, None], sums + weight * row, sums)
        return sums.astype(rows.dtype)


def gather_pairs(
    x: Array,
    ids: Array,
    perm: Array,
    expert_map: Array | None = None,
    *,
    per_pair: bool = False,
) -> Array:
    """Return every pair's row of x with the columns in the order of its expert.

    Args:
        x:          [T, K] of a float type, a row a token, or [T * top_k, K] where per_pair
        ids:        [T, top_k] int32, the experts of each token
        perm:       [E, K] int32: column j of a row of expert e is column perm[e, j] of x
        expert_map: [E_global] int32 as in `local_experts`, or None

    Returns:
        [T * top_k, K], the type of x; NaN in the rows of dropped pairs, which nobody writes.
    """
    expert_of = local_experts(ids, len(perm), expert_map).reshape(-1)
    rows = x if per_pair else np.repeat(x, ids.shape[1], axis=0)
    out = np.take_along_axis(rows, perm[np.maximum(expert_of, 0)], axis=1)
    out[expert_of < 0] = np.nan
    return out


def add_bias_pairs(x: Array, ids: Array, bias: Array, expert_map: Array | None = None) -> Array:
    """Return every pair's row plus the bias of its expert, added in float32 and rounded once.

    Args:
        x:          [T * top_k, N] float16, or any narrower type than float32
        ids:        [T, top_k] int32, the experts of each token
        bias:       [E, N], the type of x
        expert_map: [E_global] int32 as in `local_experts`, or None

    Returns:
        [T * top_k, N], the type of x; NaN in the rows of dropped pairs, which nobody writes.
    """
    expert_of = local_experts(ids, len(bias), expert_map).reshape(-1)
    out = add_bias(x, bias[np.maximum(expert_of, 0)])
    out[expert_of < 0] = np.nan
    return out
