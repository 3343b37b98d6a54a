"""The work list of a grouped GEMM: pairs of token and expert, sorted by expert, in blocks of rows.

A pair is a token and one of its experts, number token * top_k + place. A block is up to `block`
pairs of one expert. The list is one int32 buffer:

    num_blocks              [1]               blocks in use
    num_tokens_post_padded  [1]               rows of them, with those that are padding
    num_pairs               [1]               pairs in them
    reserved                [1]               0
    expert_ids              [max_blocks]      the expert of each block; -1 from num_blocks on
    block_rows              [max_blocks]      its pairs, 1 to block; 0 from num_blocks on
    sorted_token_ids        [max_blocks * block]  pairs by expert, then by number; where there is
                                              none, the number of all pairs

Names and sentinel are those of vLLM's `moe_align_block_size`. A GPU alone knows how many blocks a
batch has: whoever walks the list reads it, and room is for the most there can be.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError

MOST_BLOCK = 256
# int32 before `expert_ids`
HEADER = 4
NUM_BLOCKS, NUM_PADDED = 0, 1


def refuse_block(block: int, error: type[Exception] = ProblemError) -> None:
    """Raise an error where no list has such blocks."""
    if block % 8 or not 8 <= block <= MOST_BLOCK:
        raise error(f"a block must be a multiple of 8 rows up to {MOST_BLOCK}; got {block}")


def max_blocks(num_pairs: int, num_experts: int, block: int) -> int:
    """Return the most blocks that so many pairs can fill, whatever the routing."""
    capacity = min(num_pairs + num_experts * (block - 1), num_pairs * block)
    return ceil_div(capacity, block)


def list_dtype(num_pairs: int, num_experts: int, block: int) -> np.dtype[Any]:
    """Return the list's fields, as one structure."""
    most = max_blocks(num_pairs, num_experts, block)
    return np.dtype(
        [
            ("num_blocks", np.int32, (1,)),
            ("num_tokens_post_padded", np.int32, (1,)),
            ("num_pairs", np.int32, (1,)),
            ("reserved", np.int32, (1,)),
            ("expert_ids", np.int32, (most,)),
            ("block_rows", np.int32, (most,)),
            ("sorted_token_ids", np.int32, (most * block,)),
        ]
    )
