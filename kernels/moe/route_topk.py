"""The experts of each token: its top_k largest logits, and their weights.

    topk_ids[t, i] = the expert with the i-th largest logit of token t
    topk_weights[t, i] = softmax(logits[t])[topk_ids[t, i]]   or sigmoid; over their sum, or not

    logits        [T, E] fp16, bf16 or fp32, row-major  gmem, read once, an element a lane
    topk_ids      [T, top_k] int32                      gmem, written once
    topk_weights  [T, top_k] fp32                       gmem, written once, behind topk_ids

A warp has a token. A lane keeps every 32nd logit in a register, as a word that is larger for a
larger logit; a place is two reductions of the warp: the largest word, and the smallest id that has
it. So logits are compared, not rounded scores, and of equal ones the smaller id is first; NaN
counts as -inf. Lane i keeps the i-th, and computes its score when all are found. Renormalised, a
softmax needs no sum over all experts.

Weights are exact to 2^-20 + |d| * 2^-23, relative, for an expert whose logit is d below the largest
(softmax) or d itself (sigmoid): ex2.approx and rcp.approx, and the rounding of its exponent.

Bound by the time of a launch, a load and 2 * top_k reductions of a warp.
Limits: E <= 1024, top_k <= 16.
"""

from dataclasses import dataclass, replace

import numpy as np

from ferrum_numba.contract import Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.kernels.grouped import MOST_EXPERTS, MOST_TOP_K
from ferrum_numba.kernels.moe.chained import ChainedKernel, chained_space
from ferrum_numba.kernels.w4a16 import MOST_M
from ferrum_numba.reference.moe import route_topk

SCORINGS = ("softmax", "sigmoid")
LOGITS = {**DTYPES, "fp32": np.dtype(np.float32)}
PARAMETERS = (
    *pointers("logits", "out"),
    *sizes("tokens", "num_experts", "top_k", "is_sigmoid", "renormalise"),
)


@dataclass(frozen=True)
class RouteProblem:
    """Sizes and kind of one routing.

    tokens:      T
    num_experts: E, and top_k of them a token
    scoring:     "softmax" over all E, or "sigmoid" of each
    renormalise: the weights of a token add up to 1
    dtype:       of the logits: "fp16", "bf16" or "fp32"
    """

    tokens: int
    num_experts: int
    top_k: int
    scoring: str = "softmax"
    renormalise: bool = True
    dtype: str = "fp16"

    def __post_init__(self):
        if not 1 <= self.tokens <= MOST_M:
            raise ProblemError(f"tokens must be 1 to {MOST_M}; got {self.tokens}")
        if not 1 <= self.num_experts <= MOST_EXPERTS:
            raise ProblemError(f"num_experts must be 1 to {MOST_EXPERTS}; got {self.num_experts}")
        if not 1 <= self.top_k <= min(self.num_experts, MOST_TOP_K):
            raise ProblemError(
                f"top_k must be 1 to {MOST_TOP_K}, and no more than the experts; got top_k = "
                f"{self.top_k}, num_experts = {self.num_experts}"
            )
        if self.scoring not in SCORINGS:
            raise ProblemError(f'scoring must be "softmax" or "sigmoid"; got "{self.scoring}"')
        if self.dtype not in LOGITS:
            raise ProblemError(f'dtype must be "fp16", "bf16" or "fp32"; got "{self.dtype}"')


@dataclass(frozen=True)
class RouteConfig:
    """How tokens are dealt to blocks."""

    num_warps: int = 4  # tokens a block
    programmatic: bool = False  # starts before its predecessor ends; Hopper and later
    # what the problem dictates: see `RouteTopk.specialise`
    logits_per_lane: int = 4  # E / 32, rounded up so that few programs serve all E
    dtype: str = "fp16"

    def __post_init__(self):
        if not 1 <= self.num_warps <= 32:
            raise ConfigError(f"num_warps must be 1 to 32; got num_warps = {self.num_warps}")


def output(problem):
    """Return the fields of the result."""
    shape = (problem.tokens, problem.top_k)
    fields = [("topk_ids", np.int32, shape), ("topk_weights", np.float32, shape)]
    return (), np.dtype(fields)


def make_inputs(problem, rng):
    """Return logits of which, in narrow types, some are equal."""
    logits = rng.standard_normal((problem.tokens, problem.num_experts), np.float32) * 2
    return {"logits": logits.astype(LOGITS[problem.dtype])}


def reference(problem, inputs):
    """Return ids and weights as one structure."""
    out = np.empty(*output(problem))
    out["topk_ids"], out["topk_weights"] = route_topk(
        inputs["logits"], problem.top_k, problem.scoring, problem.renormalise
    )
    return out


def work(problem):
    """Return the logits read and the results written once."""
    logits = problem.tokens * problem.num_experts * LOGITS[problem.dtype].itemsize
    return Work(flops=0, bytes=logits + 8 * problem.tokens * problem.top_k)


OP = Op(
    name="route_topk",
    formula="ids[t] = the top_k largest of logits[t]; weights[t, i] = score(logits[t, ids[t, i]])",
    problem=RouteProblem,
    make_inputs=make_inputs,
    reference=reference,
    output=output,
    work=work,
    tolerance=lambda problem: Tolerance(
        2e-6, 2e-6, "ex2.approx, rcp.approx and the rounding of an exponent: 2^-20, and 2^-23 for "
        "each 1 of the distance from the largest logit",
    ),
    tests=(
        RouteProblem(1, 1, 1),
        RouteProblem(5, 3, 2, "sigmoid", dtype="bf16"),
        RouteProblem(3, 8, 8, renormalise=False, dtype="fp32"),
        RouteProblem(9, 60, 4, dtype="bf16"),
        RouteProblem(4, 127, 7, "sigmoid", False),
        RouteProblem(2, 128, 8, dtype="fp32"),
        RouteProblem(2, 256, 6, renormalise=False, dtype="bf16"),
        RouteProblem(1, 512, 16, "sigmoid"),
        RouteProblem(1, 1024, 16, dtype="fp32"),
    ),
    activations=frozenset({"logits"}),
)  # fmt: skip


class RouteTopk(ChainedKernel):
    """A token a warp; a place is two reductions of the warp."""

    name = "route_topk"
    op = OP
    config = RouteConfig
    summary = "top-k experts and their weights; a warp a token, logits in registers"
    space = chained_space(RouteConfig, num_warps=(4, 1, 2, 8))

    def specialise(self, config, problem):
        """Return the config for the problem's type and number of experts."""
        per_lane = ceil_div(problem.num_experts, 32)
        power = 1 << (per_lane - 1).bit_length()
        return replace(config, logits_per_lane=power, dtype=problem.dtype)

    def default(self, problem, gpu):
        """Return one token a block as long as that leaves SMs idle, then four."""
        config = RouteConfig(1 if problem.tokens <= gpu.num_sms else 4)
        return self.fitted(config, problem, gpu)

    def build(self, config, arch):
        """Return the program. Grid: tokens; Block: a warp a token."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.moe.route_topk_program import build

        return Program(build(config), PARAMETERS, 32 * config.num_warps)

    def prepare(self, problem, inputs):
        """Return the logits as they are."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return a warp for every token."""
        scalars = {
            "tokens": problem.tokens,
            "num_experts": problem.num_experts,
            "top_k": problem.top_k,
            "is_sigmoid": int(problem.scoring == "sigmoid"),
            "renormalise": int(problem.renormalise),
        }
        grid = (ceil_div(problem.tokens, config.num_warps), 1, 1)
        return Launch(grid, scalars, programmatic=config.programmatic)
