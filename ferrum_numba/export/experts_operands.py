"""What each parameter of the programs of a layer of experts is; see `operands`."""

from __future__ import annotations

from collections.abc import Mapping

from ferrum_numba.export.operand import Operand
from ferrum_numba.kernels.grouped import LISTS

# what is read an element at a time, so need not begin at a multiple of more
WORD_BYTES = 4


def _ids(meaning: str = "") -> Operand:
    return Operand(
        "int32", "[num_pairs]", "read", "vector",
        f"experts of each token, top_k each; a pair whose id is no expert's is dropped{meaning}",
        WORD_BYTES,
    )  # fmt: skip


MAP = Operand(
    "int32", "[num_ids]", "read", "vector", "the expert here of each id, or -1; not read where "
    "has_map is 0, so 0 will do", WORD_BYTES,
)  # fmt: skip
LIST = "pairs by expert in blocks of the number in its name, as align_tokens writes them"
WEIGHTS = Operand(
    "fp32", "[num_pairs]", "read", "vector", "weight of each pair; not read where has_weights is "
    "0, so 0 will do", WORD_BYTES,
)  # fmt: skip
GROUPED = {
    "x": Operand("dtype", "[num_pairs/x_divisor, x_columns]", "read", "rows", "row p / x_divisor "
                 "is pair p's; of experts in act-order as gather_pairs gives them"),
    "packed": Operand("int32", "[num_experts, k/16, 2*n]", "read", "marlin", "4-bit codes, padded "
                      "with 8; of a gated program gate and up in turn, 8 columns of each"),
    "scales": Operand("dtype", "[num_experts, groups, n]", "read", "marlin_scales", "scales, "
                      "padded with 0; groups is 1 or k / group_size of the config"),
    "zero_points": Operand("int32", "[num_experts, groups, n/8]", "read", "marlin_zero_points",
                           "zero points; not read by a program without has_zero_points, so 0 "
                           "will do"),
    "bias": Operand("dtype", "[num_experts, n]", "read", "marlin_bias", "added to the fp32 sum; "
                    "not read where has_bias is 0, so 0 will do"),
    "topk_weights": WEIGHTS,
    "ids": _ids(),
    "out": Operand("dtype", "[num_pairs, out_columns]", "write", "rows", "a row a pair, rounded "
                   "once; rows of dropped pairs are not written. Of a gated program silu(gate) * "
                   "up"),
    **{name: Operand("int32", "[4 + 2*max_blocks + block*max_blocks]", "read", "vector", LIST,
                     WORD_BYTES) for name in sorted(LISTS)},
}  # fmt: skip
OPERANDS: Mapping[str, Mapping[str, Operand]] = {
    "grouped_decode": GROUPED,
    "grouped_wgmma": GROUPED,
    "route_topk": {
        "logits": Operand("dtype", "[tokens, num_experts]", "read", "rows", "of the router",
                          WORD_BYTES),
        "out": Operand("int32", "[2, tokens, top_k]", "write", "vector", "ids of the experts, the "
                       "best first, as int32; behind all of them their weights, as fp32"),
    },
    "align_tokens": {
        "ids": _ids(),
        "expert_map": MAP,
        "out": Operand("int32", "[4 + 2*max_blocks + block*max_blocks]", "write", "vector",
                       "blocks, their rows, pairs, 0; the expert of each block, its rows, the "
                       "pairs of each: see kernels/shared/work_list.py"),
    },
    "silu_mul": {
        "x": Operand("dtype", "[rows, 2*columns]", "read", "rows", "gate and up: in turn, 8 "
                     "columns of each, of an interleaved program; else side by side"),
        "out": Operand("dtype", "[rows, columns]", "write", "rows", "silu(gate) * up, rounded"),
    },
    "gather_pairs": {
        "x": Operand("16 bits", "[num_pairs/x_divisor, columns]", "read", "rows", "activations"),
        "perm": Operand("int32", "[num_experts, columns]", "read", "vector", "of each expert the "
                        "column of x that becomes column j"),
        "ids": _ids(),
        "expert_map": MAP,
        "out": Operand("16 bits", "[num_pairs, columns]", "write", "rows", "rows of pairs in the "
                       "order of their experts; of dropped pairs not written"),
    },
    "add_bias_pairs": {
        "x": Operand("dtype", "[num_pairs, columns]", "read", "rows", "products that were rounded"),
        "bias": Operand("dtype", "[num_experts, columns]", "read", "rows", "added in fp32"),
        "ids": _ids(),
        "expert_map": MAP,
        "out": Operand("dtype", "[num_pairs, columns]", "write", "rows", "the sums, rounded; may "
                       "be x itself"),
    },
    "combine": {
        "rows": Operand("dtype", "[tokens*top_k, columns]", "read", "rows", "a row a pair"),
        "ids": Operand("int32", "[tokens*top_k]", "read", "vector", "experts of each token, top_k "
                       "of the config each; rows of dropped pairs are not read", WORD_BYTES),
        "topk_weights": Operand("fp32", "[tokens*top_k]", "read", "vector", "weight of each pair; "
                                "not read where has_weights is 0", WORD_BYTES),
        "shared": Operand("dtype", "[tokens, columns]", "read", "rows", "added; not read where "
                          "has_shared is 0, so anything will do"),
        "expert_map": MAP,
        "out": Operand("dtype", "[tokens, columns]", "write", "rows", "each token's sum, rounded "
                       "once"),
    },
}  # fmt: skip
SCALARS: Mapping[str, str] = {
    "tokens": "rows of out, T",
    "num_experts": "experts that are here",
    "top_k": "experts of a token",
    "is_sigmoid": "1 where scores are sigmoids, 0 for a softmax",
    "renormalise": "1 where weights of a token add up to 1",
    "num_pairs": "tokens times top_k",
    "num_ids": "ids that a map has, or experts",
    "block": "rows of a block of the list",
    "max_blocks": "blocks that the worst routing fills",
    "rounds": "how often each warp takes 32 pairs",
    "has_map": "1 where expert_map is read",
    "x_divisor": "pairs that share a row of x: top_k, or 1 where x has a row a pair",
    "has_weights": "1 where rows are multiplied by their weights",
    "list_is_new": "1 where the launch just before wrote the list, or the ids, that is read",
    "stripe_units": "of a stripe; goes with the grid",
    "longer_stripes": "stripes that have a unit more; goes with the grid",
    "first_block": "of the list",
    "rows": "of x and out",
    "columns": "of out",
    "has_shared": "1 where shared is added",
}
