"""What every step computes, and what the steps' kernels have in common.

out[m, n] = round(sum_k x[m, k] * (code[k, n] - 8) * scales[k // 128, n])

x        [M, K] fp16, row-major: the activations
qweight  [K/8, N] uint32, row-major; nibble i of a word is the code of row 8r + i, as GPTQ has it
scales   [K/128, N] fp16, row-major
out      [M, N] fp16, row-major
"""

from dataclasses import dataclass

import numpy as np

from ferrum_numba import Kernel, Op, Tolerance, Work, pointers, sizes
from ferrum_numba.errors import ProblemError
from ladder.reference import GROUP, WORD_ROWS, int4_gemm

# columns of a block in most steps: four warps of 32
COLUMNS = 128
# elements of an operand are numbered in 32 bits
MOST_ELEMENTS = 2**32
# the order is that of the kernels' own arguments
PARAMETERS = (*pointers("x", "qweight", "scales", "out"), *sizes("M", "N", "K"))


@dataclass(frozen=True)
class Problem:
    """Rows of x, columns of the weight, rows of the weight."""

    M: int
    N: int
    K: int

    def __post_init__(self):
        if self.M < 1:
            raise ProblemError(f"M must be at least 1; got {self.M}")
        for name, size, unit in (("N", self.N, COLUMNS), ("K", self.K, GROUP)):
            if size < 1 or size % unit:
                raise ProblemError(f"{name} must be a multiple of {unit}; got {size}")
        most = max(self.M, self.N // WORD_ROWS) * max(self.N, self.K)
        if most > MOST_ELEMENTS:
            raise ProblemError(f"an operand has at most {MOST_ELEMENTS} elements; got {most}")


def make_weight(problem, rng):
    """Return random words and scales; the weights are of the size of a trained layer's."""
    N, K = problem.N, problem.K
    return {
        "qweight": rng.integers(0, 2**32, (K // WORD_ROWS, N), np.uint32),
        "scales": rng.uniform(0.005, 0.015, (K // GROUP, N)).astype(np.float16),
    }


def make_inputs(problem, rng):
    """Return operands of a test, in the Op's own layout."""
    weight = make_weight(problem, rng)
    x = rng.standard_normal((problem.M, problem.K), np.float32)
    return {"x": x.astype(np.float16), **weight}


def weight_bytes(problem):
    """Return the bytes of the codes and the scales."""
    return problem.K * problem.N // 2 + 2 * problem.K // GROUP * problem.N


def tolerance(problem):
    """Return what two roundings to fp16 on top of an fp32 sum cost."""
    return Tolerance(
        rel=5e-4,
        max=2e-3,
        reason="a kernel may round each dequantised weight to fp16, and rounds the result",
    )


OP = Op(
    name="int4_gemm",
    formula="out[m, n] = sum_k x[m, k] * (code[k, n] - 8) * scales[k // 128, n]",
    problem=Problem,
    make_inputs=make_inputs,
    reference=lambda problem, inputs: int4_gemm(**inputs),
    output=lambda problem: ((problem.M, problem.N), np.dtype(np.float16)),
    # the least work, whatever the kernel: each input read once, each output written once
    work=lambda problem: Work(
        flops=2 * problem.M * problem.N * problem.K,
        bytes=weight_bytes(problem) + 2 * problem.M * (problem.K + problem.N),
    ),
    tolerance=tolerance,
    # a row and three groups; two rows and two blocks. What else is an edge, a step knows
    tests=(Problem(1, 128, 384), Problem(2, 256, 128)),
    # what changes with every call; the other inputs are weights
    activations=frozenset({"x"}),
)


class Step(Kernel):
    """What the steps' kernels do alike: the Op, one config, operands as they are."""

    op = OP

    def configs(self, gpu):
        """Return the space: one config, until a step has more."""
        return (self.config(),)

    def refuses(self, problem):
        """Return None: what no step can run is no Problem."""
        return None

    def prepare(self, problem, inputs):
        """Return the operands in the kernel's layout: the Op's, until a step has its own."""
        return dict(inputs)
