"""Which kernels a layer's problem takes, in order, and with which configs; it takes no GPU to know.

The columns of x are gathered first where an act-order weight asks for it; where a layer asks for
8 bits, many rows of x are rounded first, and gathered with that. A bias is added last where it is
added to the rounded result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Protocol

from ferrum_numba.contract import Config, Kernel, Launch, Problem
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels import PACKED_X8
from ferrum_numba.kernels.shared.packed import stored_shape
from ferrum_numba.kernels.tools.add_bias import AddBias, AddBiasProblem
from ferrum_numba.kernels.tools.gather_columns import GatherColumns, GatherProblem
from ferrum_numba.kernels.tools.quantize_rows import QuantizeProblem, QuantizeRows
from ferrum_numba.kernels.tools.repack import Repack, RepackProblem
from ferrum_numba.kernels.w4a8 import W4A8Problem
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.choice import kernel_for
from ferrum_numba.results.decisions import Choice, Decision

REPACK, GATHER, ADD_BIAS, ROUND = Repack(), GatherColumns(), AddBias(), QuantizeRows()
# where nothing was measured, the first that can run a problem
EIGHT_BIT: tuple[Kernel, ...] = tuple(reversed(PACKED_X8))
# rows from which on they are rounded: fewer are bound by the weight's bytes, which are the same.
# Judgement: what rounding and its product take was not measured yet
EIGHT_BIT_ROWS = 64
ELEMENT_BYTES = 2


class Task(Protocol):
    """What is asked of a launch plan; equal tasks have one plan."""

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the buffers whose addresses a call gives, in order, after x and out."""

    def stages(self, decisions: Sequence[Decision], gpu: Gpu) -> Iterator[Stage]:
        """Yield its stages, in order.

        Raises:
            ProblemError: no kernel can run the problem.
        """


@dataclass(frozen=True)
class LayerTask:
    """What a layer asks of a launch plan.

    kernels:  those that can read the layer's weight
    operands: names of the weight's buffers, in the order in which their addresses are given
    gathered: a kernel of its own brings the columns of x into the order of an act-order weight
    two_step: a kernel of its own adds the bias, to the rounded result
    x_dtype:  "fp8" or "int8": many rows are rounded to it first; None: never
    """

    problem: W4A16Problem
    kernels: tuple[Kernel, ...]
    operands: tuple[str, ...] = ()
    gathered: bool = False
    two_step: bool = False
    x_dtype: str | None = None

    def stages(self, decisions: Sequence[Decision], gpu: Gpu) -> Iterator[Stage]:
        """Yield the stages: the columns' order, the product, the bias.

        Raises:
            ProblemError: no kernel can run the problem.
        """
        problem, renamed = self.problem, {}
        eight_bit = rounds(self.x_dtype, problem.M)
        if eight_bit is not None:
            yield rounding(problem, eight_bit, self.gathered, gpu)
            problem = replace(problem, act_order=False)
        elif self.gathered:
            gather = GatherProblem(problem.M, problem.K)
            made = {"gathered": problem.M * problem.K * ELEMENT_BYTES}
            yield default(GATHER, gather, gpu, {"out": "gathered"}, made)
            problem, renamed = replace(problem, act_order=False), {"x": "gathered"}
        if self.two_step:
            problem = replace(problem, bias=False)
        product: Problem = problem
        kernels = self.kernels
        if eight_bit is not None:
            product, kernels = of_eight_bits(problem, eight_bit), EIGHT_BIT
        choice = kernel_for(product, kernels, decisions, gpu)
        yield Stage(choice.kernel, product, choice.config, renamed, choice)
        if self.two_step:
            bias = AddBiasProblem(problem.M, problem.N, problem.dtype)
            yield default(ADD_BIAS, bias, gpu, {"x": "out"})


@dataclass(frozen=True)
class Stage:
    """One launch to be.

    renamed: name of a buffer by the parameter that takes it, where they differ
    choice:  why this kernel, of the one that multiplies; None of a helper
    makes:   bytes of scratch that it writes for later stages, by name
    parts:   what of that has a name of its own, as `Needs` has them
    scalars: in place of the launch's own
    """

    kernel: Kernel
    problem: Problem
    config: Config
    renamed: Mapping[str, str] = field(default_factory=dict)
    choice: Choice | None = None
    makes: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    scalars: Mapping[str, int] = field(default_factory=dict)

    def launch(self, gpu: Gpu) -> Launch:
        """Return its launch."""
        found = self.kernel.launch(self.config, self.problem, gpu)
        return replace(found, scalars={**found.scalars, **self.scalars})


def rounds(x_dtype: str | None, M: int) -> str | None:
    """Return the type that so many rows are rounded to, None where they stay as they are."""
    return x_dtype if M >= EIGHT_BIT_ROWS else None


def of_eight_bits(problem: W4A16Problem, x_dtype: str) -> W4A8Problem:
    """Return the problem of the same weight and rows of 8 bits, in the order of its rows."""
    return W4A8Problem(
        problem.M, problem.N, problem.K, problem.group_size, problem.zero_points,
        problem.bias, problem.dtype, x_dtype,
    )  # fmt: skip


def rounding(problem: W4A16Problem, x_dtype: str, gathered: bool, gpu: Gpu) -> Stage:
    """Return what rounds x to 8 bits, with its columns in the order of an act-order weight."""
    rows = QuantizeProblem(problem.M, problem.K, x_dtype, dtype=problem.dtype, gathers=gathered)
    x8_bytes = rows.M * rows.columns
    # both in one buffer, the scales behind x8; without an order, perm is never read
    renamed = {"out": "x8"} if gathered else {"out": "x8", "perm": "x"}
    made = {"x8": x8_bytes + 4 * prod(rows.scales_shape)}
    return replace(default(ROUND, rows, gpu, renamed, made), parts={"sx": ("x8", x8_bytes)})


def packing(problem: W4A16Problem, gpu: Gpu) -> Stage:
    """Return what packs a problem's weight."""
    shape = stored_shape(problem)
    return default(REPACK, RepackProblem(1, problem.K, problem.N, problem.act_order, *shape), gpu)


def default(
    kernel: Kernel,
    problem: Problem,
    gpu: Gpu,
    renamed: Mapping[str, str] | None = None,
    makes: Mapping[str, int] | None = None,
) -> Stage:
    """Return a stage with a kernel's default config."""
    config = kernel.default(problem, gpu)
    return Stage(kernel, problem, config, renamed or {}, makes=makes or {})
