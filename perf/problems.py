"""The problems to tune and report: linear layers of real models, with the M of decode and prefill.

Fused as engines run them: q, k and v are one GEMM, gate and up another. Sizes are a whole layer's,
on one GPU; so are those of layers of experts, whose down projection has a row a pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ferrum_numba.contract import Problem
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.w4a8 import W4A8Problem
from ferrum_numba.kernels.w4a16 import W4A16Problem

GROUP_SIZE = 128
DECODE = (1, 2, 4, 8, 16, 32)
PREFILL = (64, 128, 256, 512, 1024, 2048)
SWEEP = (*DECODE, *PREFILL)
# of a batch before it is routed
TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
# the M of the published peers
PEER_ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Shape:
    """The weight of one linear layer."""

    K: int
    N: int
    bias: bool = False


@dataclass(frozen=True)
class ExpertShape:
    """The weights of one layer of experts, top_k of them a token."""

    num_experts: int
    top_k: int
    K: int
    N: int
    per_pair: bool = False


# model -> projection -> weight
MODELS: dict[str, dict[str, Shape]] = {
    "llama3-8b": {
        "qkv": Shape(4096, 6144), "o": Shape(4096, 4096), "gate_up": Shape(4096, 28672),
        "down": Shape(14336, 4096),
    },
    "llama3-70b": {
        "qkv": Shape(8192, 10240), "o": Shape(8192, 8192), "gate_up": Shape(8192, 57344),
        "down": Shape(28672, 8192),
    },
    "qwen2.5-32b": {
        "qkv": Shape(5120, 7168, bias=True), "o": Shape(5120, 5120),
        "gate_up": Shape(5120, 55296), "down": Shape(27648, 5120),
    },
    "gemma3-27b": {
        "qkv": Shape(5376, 8192), "o": Shape(4096, 5376), "gate_up": Shape(5376, 43008),
        "down": Shape(21504, 5376),
    },
}  # fmt: skip
# model -> projection -> the experts' weights
MOE_MODELS: dict[str, dict[str, ExpertShape]] = {
    "qwen3-moe": {
        "gate_up": ExpertShape(128, 8, 2048, 1536),
        "down": ExpertShape(128, 8, 768, 2048, per_pair=True),
    },
    "mixtral": {
        "gate_up": ExpertShape(8, 2, 4096, 28672),
        "down": ExpertShape(8, 2, 14336, 4096, per_pair=True),
    },
    "deepseek-v3-moe": {
        "gate_up": ExpertShape(256, 8, 7168, 4096),
        "down": ExpertShape(256, 8, 2048, 7168, per_pair=True),
    },
}
# a curve from one token to a long prompt: the sizes that tiles divide, and one row more
CURVE = (
    1, 2, 4, 8, 9, 12, 16, 17, 24, 32, 33, 48, 64, 65, 96, 128, 129, 192, 256, 257, 384, 512, 768,
    1024, 1536, 2048, 3072, 4096, 8192,
)  # fmt: skip
CURVE_SHAPES = (Shape(4096, 4096), Shape(8192, 8192))
PEER_SHAPES = (
    Shape(4096, 4096), Shape(4096, 14336), Shape(14336, 4096), Shape(8192, 8192),
    Shape(8192, 28672), Shape(28672, 8192),
)  # fmt: skip

# of the peers with fp8 activations
W4A8_SHAPES = (Shape(8192, 8192), Shape(4096, 14336), Shape(8192, 28672), Shape(14336, 4096))
W4A8_ROWS = (1, 16, 64, 256, 1024, 4096)


def cross(
    shapes: Iterable[Shape], rows: Sequence[int], group_size: int = GROUP_SIZE
) -> tuple[W4A16Problem, ...]:
    """Return every weight with every M; the weights outside, because they are dear to make."""
    return tuple(
        W4A16Problem(M, shape.N, shape.K, group_size, bias=shape.bias)
        for shape in shapes
        for M in rows
    )


def eight_bit(
    shapes: Iterable[Shape], rows: Sequence[int], x_dtype: str = "fp8"
) -> tuple[W4A8Problem, ...]:
    """Return every weight with every M, times 8-bit activations."""
    return tuple(
        W4A8Problem(M, shape.N, shape.K, GROUP_SIZE, bias=shape.bias, x_dtype=x_dtype)
        for shape in shapes
        for M in rows
    )


def routed(
    shapes: Iterable[ExpertShape], tokens: Sequence[int] = TOKENS, routing: str = "uniform"
) -> tuple[GroupedProblem, ...]:
    """Return every stack with every number of tokens; the stacks outside, as they are dear."""
    return tuple(
        GroupedProblem(
            count, shape.num_experts, shape.top_k, shape.N, shape.K, GROUP_SIZE, routing,
            per_pair=shape.per_pair,
        )
        for shape in shapes
        for count in tokens
    )  # fmt: skip


# the first is the default of the command line
PROBLEM_SETS: Mapping[str, tuple[Problem, ...]] = {
    **{model: cross(shapes.values(), SWEEP) for model, shapes in MODELS.items()},
    "h200-peers": cross(PEER_SHAPES, PEER_ROWS),
    "curve": cross(CURVE_SHAPES, CURVE),
    "w4a8-peers": eight_bit(W4A8_SHAPES, W4A8_ROWS),
    "llama3-8b-w4a8": eight_bit(MODELS["llama3-8b"].values(), SWEEP),
    **{model: routed(shapes.values()) for model, shapes in MOE_MODELS.items()},
    **{
        f"{model}-skewed": routed(shapes.values(), routing="skewed")
        for model, shapes in MOE_MODELS.items()
    },
    # whether GEMM 1 applies the gate is decided by these and those without it
    **{
        f"{model}-gated": tuple(
            replace(problem, gated=True)
            for problem in routed(shapes.values())
            if not problem.per_pair
        )
        for model, shapes in MOE_MODELS.items()
    },
}
