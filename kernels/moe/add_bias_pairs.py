"""Each expert's bias added to the rows of its pairs, which were rounded before: the second step.

    out[p, n] = round(fp32(x[p, n]) + fp32(bias[e(p), n]))

    x           [T * top_k, columns] fp16 or bf16, row-major  gmem, read once, 16 bytes a lane
    bias        [E, columns], the type of x, plain order      gmem, 16 bytes a lane
    ids         [T, top_k] int32                              gmem, read by all of its threads
    expert_map  [E_global] int32                              gmem; absent: ids are of experts
    out         [T * top_k, columns], the type of x           gmem, written once, 16 bytes a lane;
                                                              may be x itself

A thread reads what it will overwrite and nothing else, so in place is the usual call: x = out. Of a
pair whose expert is none, or elsewhere, nothing is written.

Bound by the time of a launch for few pairs, by gmem bandwidth for many.
Limits: columns % 8 == 0.
"""

from dataclasses import dataclass, replace

import numpy as np

from ferrum_numba.contract import Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.errors import ProblemError
from ferrum_numba.kernels.dtypes import DTYPES, refuse_dtype
from ferrum_numba.kernels.moe import align_tokens as align
from ferrum_numba.kernels.moe.chained import chained_space, refuse_threads
from ferrum_numba.kernels.moe.pairs import PairsKernel, RowsOfPairs
from ferrum_numba.reference.moe import add_bias_pairs

PARAMETERS = (
    *pointers("x", "bias", "ids", "expert_map", "out"),
    *sizes("num_pairs", "columns", "num_experts", "num_ids", "has_map"),
)


@dataclass(frozen=True)
class PairBiasProblem(RowsOfPairs):
    """Sizes and kind of one sum.

    tokens, num_experts, top_k, num_ids, dropped: of the routing, as in `AlignProblem`
    columns: of x
    dtype:   "fp16" or "bf16"
    """

    tokens: int
    num_experts: int
    top_k: int
    columns: int
    num_ids: int = 0
    dropped: bool = False
    dtype: str = "fp16"

    def __post_init__(self):
        super().__post_init__()
        refuse_dtype(self.dtype, ProblemError)


@dataclass(frozen=True)
class PairBiasConfig:
    """How columns are dealt to threads."""

    num_threads: int = 64  # a small block: few pairs have few columns to deal
    programmatic: bool = False  # starts before its predecessor ends; Hopper and later
    # what the problem dictates: see `AddBiasPairs.specialise`
    dtype: str = "fp16"

    def __post_init__(self):
        refuse_threads(self.num_threads)
        refuse_dtype(self.dtype)


def make_inputs(problem, rng):
    """Return rows of pairs, a routing, and biases of the size that layers have."""
    inputs, dtype = align.make_inputs(problem.routing, rng), DTYPES[problem.dtype]
    shape = (problem.tokens * problem.top_k, problem.columns)
    inputs["x"] = rng.standard_normal(shape, np.float32).astype(dtype)
    shape = (problem.num_experts, problem.columns)
    inputs["bias"] = rng.standard_normal(shape, np.float32).astype(dtype)
    return inputs


def work(problem):
    """Return the rows read and written, and a bias for every expert that there may be."""
    pairs = problem.tokens * problem.top_k
    biases = min(pairs, problem.num_experts)
    size_bytes = (4 * pairs + 2 * biases) * problem.columns + 4 * (pairs + problem.num_ids)
    return Work(flops=pairs * problem.columns, bytes=size_bytes)


OP = Op(
    name="add_bias_pairs",
    formula="out[p, n] = round(fp32(x[p, n]) + fp32(bias[e(p), n]))",
    problem=PairBiasProblem,
    make_inputs=make_inputs,
    reference=lambda problem, inputs: add_bias_pairs(
        inputs["x"], inputs["ids"], inputs["bias"], inputs.get("expert_map")
    ),
    output=lambda problem: (
        (problem.tokens * problem.top_k, problem.columns), DTYPES[problem.dtype],
    ),
    work=work,
    tolerance=lambda problem: Tolerance(0.0, 0.0, "one fp32 sum, rounded once, to nearest even"),
    tests=(
        PairBiasProblem(1, 1, 1, 8),
        PairBiasProblem(3, 8, 2, 520, dtype="bf16"),
        PairBiasProblem(7, 60, 4, 72, dropped=True),
        PairBiasProblem(2, 128, 8, 2048),
        PairBiasProblem(9, 16, 8, 64, num_ids=64, dropped=True, dtype="bf16"),
    ),
    activations=frozenset({"x", "ids"}),
)  # fmt: skip


class AddBiasPairs(PairsKernel):
    """Eight columns a thread, of one pair."""

    name = "add_bias_pairs"
    op = OP
    config = PairBiasConfig
    summary = "x plus the bias of each pair's expert, in fp32, rounded once; 16-byte accesses"
    space = chained_space(PairBiasConfig, num_threads=(64, 128, 256))

    def specialise(self, config, problem):
        """Return the config for the problem's type."""
        return replace(config, dtype=problem.dtype)

    def build(self, config, arch):
        """Return the program. Grid: pairs, columns; Block: 8 columns a thread."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.moe.add_bias_pairs_program import build

        return Program(build(config), PARAMETERS, config.num_threads)
