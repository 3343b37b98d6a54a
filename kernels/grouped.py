"""The Op of a layer of experts: each token's rows times the int4 weights of its experts.

out[p, n] = round(w[p] * (sum_k x[row(p), k] * W[e(p), k, n] + bias[e(p), n]))

p is a pair of a token and one of its top_k experts, number token * top_k + place; W the weight of
an expert, as w4a16.py has it: scales * (codes - zero points).

x             [T, K] dtype, row(p) = p // top_k; or, per pair, [T * top_k, K] and row(p) = p
ids           [T, top_k] int32, e(p); a pair whose expert is not 0 to E - 1 is dropped
topk_weights  [T, top_k] float32, w(p), where weighted
codes, scales, zero_points, g_idx, bias  [E, ...], each as in w4a16.py
out           [T * top_k, N] dtype; the rows of dropped pairs are not written

Gated, the columns are gate and up in runs of 8, out has N / 2 of them, and silu(gate) * up is
written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.contract import Inputs, Kernel, Op, Tolerance, Work
from ferrum_numba.errors import ProblemError
from ferrum_numba.kernels import w4a16
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.work_list import MOST_BLOCK, max_blocks
from ferrum_numba.kernels.w4a16 import MOST_M, W4A16Problem
from ferrum_numba.layout import Tile
from ferrum_numba.reference.moe import GATE_RUN, align_tokens, grouped_gemm

Array = npt.NDArray[Any]

MOST_EXPERTS, MOST_TOP_K = 1024, 16
ROUTINGS = ("uniform", "skewed")
# what tells a grouped GEMM its rows; with `list_is_new` = 0 the launch before did not write it
LISTS = frozenset(f"list_{block}" for block in range(8, MOST_BLOCK + 1, 8))
SETTLED = LISTS | {"ids"}


@dataclass(frozen=True)
class GroupedProblem:
    """Sizes and kind of one layer's grouped GEMM.

    tokens:      T
    num_experts: E, those that are here
    top_k:       ids of a token, which may be more than E: those of experts elsewhere are dropped
    N, K:        columns and rows of an expert's weight
    group_size, zero_points, act_order, bias, dtype: of every expert, as in `W4A16Problem`
    routing:     how tokens choose: "uniform", or "skewed": the i-th most popular expert is drawn
                 with a probability proportional to 1 / i
    per_pair:    x has a row a pair, not a row a token
    weighted:    rows are multiplied by the top-k weights
    gated:       the columns are gate and up in runs of 8; silu(gate) * up is written
    """

    tokens: int
    num_experts: int
    top_k: int
    N: int
    K: int
    group_size: int = 128
    routing: str = "uniform"
    zero_points: str = "none"
    act_order: bool = False
    bias: bool = False
    dtype: str = "fp16"
    per_pair: bool = False
    weighted: bool = False
    gated: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MOST_M:
            raise ProblemError(f"tokens must be 1 to {MOST_M}; got {self.tokens}")
        if not 1 <= self.num_experts <= MOST_EXPERTS:
            raise ProblemError(f"num_experts must be 1 to {MOST_EXPERTS}; got {self.num_experts}")
        if not 1 <= self.top_k <= MOST_TOP_K:
            raise ProblemError(f"top_k must be 1 to {MOST_TOP_K}; got {self.top_k}")
        if self.routing not in ROUTINGS:
            raise ProblemError(f'routing must be "uniform" or "skewed"; got "{self.routing}"')
        if self.gated and self.N % (2 * GATE_RUN):
            raise ProblemError(
                f"N must be a multiple of {2 * GATE_RUN} where gate and up lie in runs of "
                f"{GATE_RUN}; got N = {self.N}"
            )
        # refuses what no weight can be
        _ = self.expert

    @property
    def num_pairs(self) -> int:
        """Pairs of a token and an expert."""
        return self.tokens * self.top_k

    @property
    def out_columns(self) -> int:
        """Columns of out."""
        return self.N // 2 if self.gated else self.N

    @property
    def expert(self) -> W4A16Problem:
        """One expert's weight, times one row."""
        return W4A16Problem(
            1, self.N, self.K, self.group_size, self.zero_points, self.act_order, self.bias,
            self.dtype,
        )  # fmt: skip


def make_routing(problem: GroupedProblem, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return ids [T, top_k] int32 and weights [T, top_k] float32, which add up to 1 a token.

    The largest of log p + Gumbel noise are a draw without replacement.
    """
    # where tokens choose more than there are, the rest are experts elsewhere: too large
    T, k, E = problem.tokens, problem.top_k, max(problem.num_experts, problem.top_k)
    popularity = np.ones(E)
    if problem.routing == "skewed":
        popularity = 1 / (1 + rng.permutation(E))
    scores = np.log(popularity) + rng.gumbel(size=(T, E))
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)
    chosen = rng.random((T, k), np.float32) + np.float32(0.1)
    return ids, chosen / chosen.sum(axis=1, keepdims=True)


@lru_cache(maxsize=64)
def experts_hit(problem: GroupedProblem) -> int:
    """Return how many experts the measured routing hits: that of generator 0."""
    rng = np.random.default_rng(0)
    draw_seed(rng)
    ids, _ = make_routing(problem, rng)
    return len(np.unique(ids[ids < problem.num_experts]))


def expected_hits(problem: GroupedProblem) -> float:
    """Return how many experts a uniform routing hits, as is to be expected."""
    chosen = min(1.0, problem.top_k / problem.num_experts)
    missed: float = (1 - chosen) ** problem.tokens
    return problem.num_experts * (1 - missed)


def draw_seed(rng: np.random.Generator) -> int:
    """Return the seed of the weights: drawn first, so that it is the same for every routing."""
    return int(rng.integers(2**32))


def make_inputs(problem: GroupedProblem, rng: np.random.Generator) -> dict[str, Array]:
    """Return activations, routing and the experts' weights; the weights' arrays are read-only.

    Generators of equal state give equal weights for all tokens, routings and uses of one stack.
    """
    seed = draw_seed(rng)
    ids, topk_weights = make_routing(problem, rng)
    rows = problem.num_pairs if problem.per_pair else problem.tokens
    x = rng.standard_normal((rows, problem.K), np.float32).astype(DTYPES[problem.dtype])
    stack = replace(
        problem, tokens=1, routing="uniform", per_pair=False, weighted=False, gated=False, top_k=1
    )
    routed = {"x": x, "ids": ids, **_make_stack(stack, seed)}
    return {**routed, "topk_weights": topk_weights} if problem.weighted else routed


@lru_cache(maxsize=1)
def _make_stack(problem: GroupedProblem, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    experts = [
        w4a16.make_inputs(problem.expert, np.random.default_rng(rng.integers(2**32)))
        for _ in range(problem.num_experts)
    ]
    stack = {name: np.stack([e[name] for e in experts]) for name in experts[0] if name != "x"}
    for array in stack.values():
        array.flags.writeable = False
    return stack


def reference(problem: GroupedProblem, inputs: Inputs) -> Array:
    """Return [T * top_k, columns] float32, the exact product rounded once; NaN where dropped."""
    shared = problem.expert.ordered_groups
    g_idx = np.broadcast_to(shared, (problem.num_experts, problem.K))
    arrays = {"g_idx": g_idx, **inputs}
    return grouped_gemm(**arrays, per_pair=problem.per_pair, gated=problem.gated)


def output(problem: GroupedProblem) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of the result."""
    return (problem.num_pairs, problem.out_columns), DTYPES[problem.dtype]


def expert_bytes(problem: GroupedProblem) -> int:
    """Return the bytes of one expert's operands."""
    # less the one row of x and of out
    return w4a16.work(problem.expert).bytes - 2 * (problem.K + problem.N)


def weight_bytes_read(problem: GroupedProblem) -> int:
    """Return the bytes of the experts that the measured routing hits."""
    return experts_hit(problem) * expert_bytes(problem)


def work(problem: GroupedProblem) -> Work:
    """Return 2*P*N*K operations, the experts that are hit once, and x and the result once."""
    P, N, K = problem.num_pairs, problem.N, problem.K
    rows = P if problem.per_pair else problem.tokens
    size_bytes = weight_bytes_read(problem) + 2 * rows * K + 2 * P * problem.out_columns + 4 * P
    if problem.weighted:
        size_bytes += 4 * P
    return Work(flops=2 * P * N * K, bytes=size_bytes)


def tolerance(problem: GroupedProblem) -> Tolerance:
    """Return that of one weight, and twice as much for a product of two columns."""
    one = w4a16.tolerance(problem.expert)
    if not problem.gated:
        return one
    return Tolerance(
        2 * one.rel, 2 * one.max,
        f"silu(gate) * up has the errors of two sums: twice that of one weight: {one.reason}",
    )  # fmt: skip


def _tests() -> tuple[GroupedProblem, ...]:
    """Return small problems: few and many experts, empty and crowded ones, and every kind."""
    sizes = (
        GroupedProblem(1, 8, 2, 128, 128),
        GroupedProblem(3, 3, 1, 128, 256),
        GroupedProblem(7, 8, 3, 192, 128),
        GroupedProblem(17, 3, 2, 128, 256),
        GroupedProblem(40, 5, 2, 256, 128, routing="skewed"),
        GroupedProblem(65, 4, 1, 128, 256),
    )
    kinds = (
        GroupedProblem(5, 4, 2, 128, 256, 64, zero_points="gptq"),
        GroupedProblem(9, 4, 2, 128, 128, -1, bias=True, weighted=True),
        GroupedProblem(6, 4, 2, 128, 256, 32, zero_points="gptq_v2", bias=True, gated=True),
        GroupedProblem(5, 4, 3, 128, 256, dtype="bf16", per_pair=True, weighted=True),
        GroupedProblem(11, 4, 2, 256, 256, dtype="bf16", gated=True),
        GroupedProblem(4, 60, 4, 136, 200, 64, per_pair=True),
    )
    return sizes + kinds


OP = Op(
    name="grouped_gemm",
    formula="out[p, n] = w[p] * (sum_k x[row(p), k] * W[e(p), k, n] + bias[e(p), n])",
    problem=GroupedProblem,
    make_inputs=make_inputs,
    reference=reference,
    output=output,
    work=work,
    tolerance=tolerance,
    tests=_tests(),
    activations=frozenset({"x", "ids", "topk_weights"}) | LISTS,
    weight_bytes_read=weight_bytes_read,
)

# n and k are those of the packed weight, x has x_columns and out out_columns; row id // x_divisor
# of x is a pair's
OPERANDS = ("x", "packed", "scales", "zero_points", "bias", "out", "topk_weights")
SIZES = (
    "n", "k", "x_columns", "out_columns", "x_divisor", "num_experts", "num_pairs", "max_blocks",
    "has_bias", "has_weights", "list_is_new",
)  # fmt: skip


class GroupedKernel(Kernel):
    """What every grouped GEMM on the packed layout does alike.

    blocks: of the work lists that its configs read
    """

    op = OP
    blocks: tuple[int, ...]

    def refuses(self, problem: GroupedProblem) -> str | None:
        """Return why no config can run this problem, with the nearest that can, or None."""
        if problem.act_order:
            return (
                f"{self.name} needs the columns of x in the order of the packed rows, as "
                "MoeLayer gathers them; got act_order = True"
            )
        return layout.refuse_groups(self.name, problem.expert)

    def specialise(self, config: Any, problem: GroupedProblem) -> Any:
        """Return the config for the problem's groups, type, zero points and epilogue."""
        return replace(
            config,
            group_size=layout.group_size_of(problem.expert),
            dtype=problem.dtype,
            has_zero_points=problem.zero_points != "none",
            gated=problem.gated,
        )

    def tiles(self, config: Any) -> tuple[Tile, ...]:
        """Return who holds what of a tile of the packed weight."""
        return (layout.packed_tile(),)

    def reads(self, config: Any) -> str:
        """Return the parameter that says whose rows are multiplied: a list, or "ids" itself."""
        return f"list_{config.tile_m}"

    def is_invariant(self, config: Any) -> bool:
        """Return whether a pair's row has the same bits whatever the other tokens are.

        Where a sum over K may be cut at other places for other routings, it has not.
        """
        return not getattr(config, "stripes", True)

    def scalars(self, problem: GroupedProblem, block: int, **own: int) -> dict[str, int]:
        """Return `SIZES` for a list with such blocks, and a design's own."""
        K, N = layout.stored_shape(problem.expert)
        return {
            "n": N,
            "k": K,
            "x_columns": problem.K,
            "out_columns": problem.out_columns,
            "x_divisor": 1 if problem.per_pair else problem.top_k,
            "num_experts": problem.num_experts,
            "num_pairs": problem.num_pairs,
            "max_blocks": max_blocks(problem.num_pairs, problem.num_experts, block),
            "has_bias": int(problem.bias),
            "has_weights": int(problem.weighted),
            # as SETTLED says; who chains launches says where one did
            "list_is_new": 0,
            **own,
        }

    def prepare(self, problem: GroupedProblem, inputs: Inputs) -> dict[str, Array]:
        """Return x, the routing and its lists, and the packed stack."""
        nothing = np.zeros(4, np.int32)
        absent = dict.fromkeys(("zero_points", "bias", "topk_weights"), nothing)
        routed = {name: inputs[name] for name in ("x", "ids", "topk_weights") if name in inputs}
        lists = {
            f"list_{block}": _as_words(align_tokens(inputs["ids"], problem.num_experts, block))
            for block in self.blocks
        }
        return {**absent, **routed, **lists, **pack_stack(problem, inputs)}


def _as_words(found: Array) -> Array:
    words: Array = np.frombuffer(found.tobytes(), np.int32)
    return words


# a model's stack takes seconds, and every kernel and batch of a sweep has the same one
_last: list[tuple[Array, dict[str, Array]]] = []


def pack_stack(problem: GroupedProblem, inputs: Inputs) -> dict[str, Array]:
    """Return the operands of all experts by name, [E, ...] each; see kernels/shared/packed.py."""
    if _last and _last[0][0] is inputs["codes"]:
        return _last[0][1]
    names = ("codes", "scales", "zero_points", "g_idx", "bias")
    experts = [
        layout.pack_operands(problem.expert, {n: inputs[n][e] for n in names if n in inputs})
        for e in range(problem.num_experts)
    ]
    stack = {name: np.stack([e[name] for e in experts]) for name in experts[0]}
    _last[:] = [(inputs["codes"], stack)]
    return stack
