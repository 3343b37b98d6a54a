"""The end of a layer of experts: each token's weighted sum of its pairs' rows.

    out[t] = round(shared[t] + sum_i topk_weights[t, i] * rows[t * top_k + i])

    rows          [T * top_k, columns] fp16 or bf16, row-major  gmem, 16 bytes a lane, once
    ids           [T, top_k] int32                              gmem, read by all of its threads
    topk_weights  [T, top_k] fp32                               the same; absent: rows have them
    shared        [T, columns], the type of rows                gmem, once; absent: 0
    expert_map    [E_global] int32                              gmem; absent: ids are of experts
    out           [T, columns], the type of rows                gmem, written once, 16 bytes a lane

A thread owns 8 columns of a token. It asks for all rows of the token at once, and adds them in fp32
in the order of the places, so the bits are the same in every run and whatever the other tokens are.
Of a pair whose expert is none, or elsewhere, nothing is read: nobody wrote its row.

A programmatic launch reads ids, weights and map while its predecessor still writes rows. So they
must not be written by the launch just before.

Bound by the time of a launch for few tokens, by gmem bandwidth for many.
Limits: columns % 8 == 0.
"""

from dataclasses import dataclass, replace

import numpy as np

from ferrum_numba.contract import Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError
from ferrum_numba.kernels.dtypes import DTYPES, refuse_dtype
from ferrum_numba.kernels.moe import align_tokens as align
from ferrum_numba.kernels.moe.chained import (
    ChainedKernel,
    chained_space,
    even_threads,
    refuse_threads,
)
from ferrum_numba.kernels.moe.pairs import COLUMNS, RowsOfPairs
from ferrum_numba.reference.moe import combine, local_experts

PARAMETERS = (
    *pointers("rows", "ids", "topk_weights", "shared", "expert_map", "out"),
    *sizes(
        "tokens", "columns", "num_experts", "num_ids", "has_weights", "has_shared", "has_map"
    ),
)  # fmt: skip


@dataclass(frozen=True)
class CombineProblem(RowsOfPairs):
    """Sizes and kind of one sum.

    tokens, num_experts, top_k, num_ids, dropped: of the routing, as in `AlignProblem`
    columns:  of rows
    weighted: rows are multiplied by the top-k weights here
    shared:   a row a token is added: what the shared experts gave
    dtype:    "fp16" or "bf16"
    """

    tokens: int
    num_experts: int
    top_k: int
    columns: int
    weighted: bool = True
    shared: bool = False
    num_ids: int = 0
    dropped: bool = False
    dtype: str = "fp16"

    def __post_init__(self):
        super().__post_init__()
        refuse_dtype(self.dtype, ProblemError)


@dataclass(frozen=True)
class CombineConfig:
    """How columns are dealt to threads."""

    num_threads: int = 64  # a small block: few tokens have few columns to deal
    programmatic: bool = False  # starts before its predecessor ends; Hopper and later
    # what the problem dictates: see `Combine.specialise`
    top_k: int = 8
    dtype: str = "fp16"

    def __post_init__(self):
        refuse_threads(self.num_threads)
        refuse_dtype(self.dtype)


def make_inputs(problem, rng):
    """Return rows, NaN where nobody wrote any, and a routing."""
    dtype, pairs = DTYPES[problem.dtype], problem.tokens * problem.top_k
    inputs = align.make_inputs(problem.routing, rng)
    inputs["rows"] = rng.standard_normal((pairs, problem.columns), np.float32).astype(dtype)
    here = local_experts(inputs["ids"], problem.num_experts, inputs.get("expert_map"))
    inputs["rows"][here.reshape(-1) < 0] = np.nan
    if problem.weighted:
        inputs["topk_weights"] = rng.random((problem.tokens, problem.top_k), np.float32)
    if problem.shared:
        shape = (problem.tokens, problem.columns)
        inputs["shared"] = rng.standard_normal(shape, np.float32).astype(dtype)
    return inputs


def reference(problem, inputs):
    """Return [T, columns], the type of rows."""
    return combine(
        inputs["rows"], inputs["ids"], inputs.get("topk_weights"), problem.num_experts,
        inputs.get("shared"), inputs.get("expert_map"),
    )  # fmt: skip


def work(problem):
    """Return the rows of experts here, those of shared, and the routing read; the sums written."""
    pairs = problem.tokens * problem.top_k
    here = ceil_div(pairs * problem.num_experts, problem.routing.most_ids)
    row_bytes = 2 * problem.columns
    size_bytes = (here + (2 if problem.shared else 1) * problem.tokens) * row_bytes
    size_bytes += (8 if problem.weighted else 4) * pairs + 4 * problem.num_ids
    return Work(flops=2 * here * problem.columns, bytes=size_bytes)


def tolerance(problem):
    """Return bounds of one rounding that falls the other way, here and there."""
    last = 2.0**-10 if problem.dtype == "fp16" else 2.0**-7
    return Tolerance(
        last / 8, last, "fp32 sums in one order; a fused multiply-add rounds once less"
    )


OP = Op(
    name="combine",
    formula="out[t] = round(shared[t] + sum_i topk_weights[t, i] * rows[t * top_k + i])",
    problem=CombineProblem,
    make_inputs=make_inputs,
    reference=reference,
    output=lambda problem: ((problem.tokens, problem.columns), DTYPES[problem.dtype]),
    work=work,
    tolerance=tolerance,
    tests=(
        CombineProblem(1, 1, 1, 8),
        CombineProblem(3, 8, 2, 520, dtype="bf16"),
        CombineProblem(7, 60, 4, 72, shared=True, dropped=True),
        CombineProblem(5, 128, 8, 1032, weighted=False, dropped=True),
        CombineProblem(9, 16, 8, 64, shared=True, num_ids=64, dropped=True, dtype="bf16"),
        CombineProblem(2, 32, 16, 256, num_ids=60),
    ),
    activations=frozenset({"rows", "ids", "topk_weights", "shared"}),
)


class Combine(ChainedKernel):
    """Eight columns a thread, all rows of a token at once."""

    name = "combine"
    op = OP
    config = CombineConfig
    summary = "weighted sum of a token's rows in fp32, in a fixed order; 16-byte accesses"
    space = chained_space(CombineConfig, num_threads=(64, 128, 256))

    def specialise(self, config, problem):
        """Return the config for the problem's top_k and type."""
        return replace(config, top_k=problem.top_k, dtype=problem.dtype)

    def default(self, problem, gpu):
        """Return small blocks for few tokens, and larger ones where every SM has some."""
        most = 64 if problem.tokens <= gpu.num_sms else 128
        num_threads = even_threads(problem.columns // COLUMNS, most)
        return self.fitted(CombineConfig(num_threads), problem, gpu)

    def build(self, config, arch):
        """Return the program. Grid: tokens, columns; Block: 8 columns a thread."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.moe.combine_program import build

        return Program(build(config), PARAMETERS, config.num_threads)

    def prepare(self, problem, inputs):
        """Return the inputs, and nothing for those that are absent."""
        nothing = np.zeros(4, np.int32)
        return {**dict.fromkeys(("topk_weights", "shared", "expert_map"), nothing), **inputs}

    def launch(self, config, problem, gpu):
        """Return a thread for every 8 columns of a token."""
        grid = (problem.tokens, ceil_div(problem.columns, COLUMNS * config.num_threads), 1)
        scalars = {
            "tokens": problem.tokens,
            "columns": problem.columns,
            "num_experts": problem.num_experts,
            "num_ids": problem.routing.most_ids,
            "has_weights": int(problem.weighted),
            "has_shared": int(problem.shared),
            "has_map": int(problem.num_ids > 0),
        }
        settled = frozenset({"ids", "topk_weights", "expert_map"})
        return Launch(grid, scalars, programmatic=config.programmatic, settled=settled)
