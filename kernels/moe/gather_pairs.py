"""Columns in the order of each pair's expert: what experts in act-order ask of their activations.

    out[p, j] = x[row(p), perm[e(p), j]]

    x           [T, columns] 16-bit, row(p) = p // top_k; or, per   gmem, 2 bytes a lane, from L1
                pair, [T * top_k, columns] and row(p) = p           and L2: a row is a few KB
    perm        [E, columns] int32                                  gmem, 16 bytes a lane
    ids         [T, top_k] int32                                    gmem, read by all of its threads
    expert_map  [E_global] int32                                    gmem; absent: ids are of experts
    out         [T * top_k, columns] 16-bit, row-major              gmem, written once, 16 bytes a
                                                                    lane

Bits are moved, so fp16 and bf16 are alike. A thread owns 8 columns of a pair. Of a pair whose
expert is none, or elsewhere, nothing is written.

Bound by the time of a launch for few pairs; for many by L1, whose line of 128 bytes a lane reads
for 2.
Limits: columns % 8 == 0.
"""

from dataclasses import dataclass

import numpy as np

from ferrum_numba.contract import Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.kernels.moe import align_tokens as align
from ferrum_numba.kernels.moe.chained import chained_space, refuse_threads
from ferrum_numba.kernels.moe.pairs import PairsKernel, RowsOfPairs
from ferrum_numba.reference.moe import gather_pairs

PARAMETERS = (
    *pointers("x", "perm", "ids", "expert_map", "out"),
    *sizes("num_pairs", "columns", "x_divisor", "num_experts", "num_ids", "has_map"),
)


@dataclass(frozen=True)
class GatherPairsProblem(RowsOfPairs):
    """Sizes and kind of one gather.

    tokens, num_experts, top_k, num_ids, dropped: of the routing, as in `AlignProblem`
    columns:  of x
    per_pair: x has a row a pair, not a row a token
    """

    tokens: int
    num_experts: int
    top_k: int
    columns: int
    per_pair: bool = False
    num_ids: int = 0
    dropped: bool = False


@dataclass(frozen=True)
class GatherPairsConfig:
    """How columns are dealt to threads."""

    num_threads: int = 64  # a small block: few pairs have few columns to deal
    programmatic: bool = False  # starts before its predecessor ends; Hopper and later

    def __post_init__(self):
        refuse_threads(self.num_threads)


def make_inputs(problem, rng):
    """Return rows, a routing, and an order of the columns for each expert."""
    inputs = align.make_inputs(problem.routing, rng)
    rows = problem.tokens * (problem.top_k if problem.per_pair else 1)
    inputs["x"] = rng.standard_normal((rows, problem.columns), np.float32).astype(np.float16)
    orders = [rng.permutation(problem.columns) for _ in range(problem.num_experts)]
    inputs["perm"] = np.stack(orders).astype(np.int32)
    return inputs


def work(problem):
    """Return the rows read once and written, and an order for every expert that there may be."""
    pairs = problem.tokens * problem.top_k
    rows = pairs if problem.per_pair else problem.tokens
    orders = min(pairs, problem.num_experts)
    size_bytes = (2 * (rows + pairs) + 4 * orders) * problem.columns + 4 * pairs
    return Work(flops=0, bytes=size_bytes + 4 * problem.num_ids)


OP = Op(
    name="gather_pairs",
    formula="out[p, j] = x[row(p), perm[e(p), j]]",
    problem=GatherPairsProblem,
    make_inputs=make_inputs,
    reference=lambda problem, inputs: gather_pairs(
        inputs["x"], inputs["ids"], inputs["perm"], inputs.get("expert_map"),
        per_pair=problem.per_pair,
    ),
    output=lambda problem: (
        (problem.tokens * problem.top_k, problem.columns), np.dtype(np.float16),
    ),
    work=work,
    tolerance=lambda problem: Tolerance(0.0, 0.0, "bits are moved"),
    tests=(
        GatherPairsProblem(1, 1, 1, 8),
        GatherPairsProblem(3, 8, 2, 520),
        GatherPairsProblem(7, 60, 4, 72, per_pair=True, dropped=True),
        GatherPairsProblem(2, 128, 8, 2048),
        GatherPairsProblem(9, 16, 8, 64, num_ids=64, dropped=True),
    ),
    activations=frozenset({"x", "ids"}),
)  # fmt: skip


class GatherPairs(PairsKernel):
    """Eight columns a thread, of one pair."""

    name = "gather_pairs"
    op = OP
    config = GatherPairsConfig
    summary = "columns in the order of each pair's expert; 16-byte stores"
    space = chained_space(GatherPairsConfig, num_threads=(64, 128, 256))

    def build(self, config, arch):
        """Return the program. Grid: pairs, columns; Block: 8 columns a thread."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.moe.gather_pairs_program import build

        return Program(build(config), PARAMETERS, config.num_threads)

    def scalars(self, problem):
        """Return the sizes, and how many pairs have a row of x together."""
        return {**super().scalars(problem), "x_divisor": 1 if problem.per_pair else problem.top_k}
