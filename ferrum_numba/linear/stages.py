"""Which kernels a layer's problem takes, in order, and with which configs; it takes no GPU to know.

The columns of x are gathered first where an act-order weight asks for it, and a bias is added last
where it is added to the rounded result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ferrum_numba.contract import Config, Kernel, Launch, Problem
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.shared.packed import stored_shape
from ferrum_numba.kernels.tools.add_bias import AddBias, AddBiasProblem
from ferrum_numba.kernels.tools.gather_columns import GatherColumns, GatherProblem
from ferrum_numba.kernels.tools.repack import Repack, RepackProblem
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.choice import kernel_for
from ferrum_numba.results.decisions import Choice, Decision

REPACK, GATHER, ADD_BIAS = Repack(), GatherColumns(), AddBias()


@dataclass(frozen=True)
class LayerTask:
    """What a layer asks of a launch plan.

    kernels:  those that can read the layer's weight
    operands: names of the weight's buffers, in the order in which their addresses are given
    gathered: a kernel of its own brings the columns of x into the order of an act-order weight
    two_step: a kernel of its own adds the bias, to the rounded result
    """

    problem: W4A16Problem
    kernels: tuple[Kernel, ...]
    operands: tuple[str, ...] = ()
    gathered: bool = False
    two_step: bool = False


@dataclass(frozen=True)
class Stage:
    """One launch to be.

    renamed: name of a buffer by the parameter that takes it, where they differ
    choice:  why this kernel, of the one that multiplies; None of a helper
    """

    kernel: Kernel
    problem: Problem
    config: Config
    renamed: Mapping[str, str] = field(default_factory=dict)
    choice: Choice | None = None

    def launch(self, gpu: Gpu) -> Launch:
        """Return its launch."""
        return self.kernel.launch(self.config, self.problem, gpu)


def stages(task: LayerTask, decisions: Sequence[Decision], gpu: Gpu) -> Iterator[Stage]:
    """Yield the stages of a task.

    Raises:
        ProblemError: no kernel can run the problem.
    """
    problem, renamed = task.problem, {}
    if task.gathered:
        gather = GatherProblem(problem.M, problem.K)
        yield default(GATHER, gather, gpu, {"out": "gathered"})
        problem, renamed = replace(problem, act_order=False), {"x": "gathered"}
    if task.two_step:
        problem = replace(problem, bias=False)
    choice = kernel_for(problem, task.kernels, decisions, gpu)
    yield Stage(choice.kernel, problem, choice.config, renamed, choice)
    if task.two_step:
        bias = AddBiasProblem(problem.M, problem.N, problem.dtype)
        yield default(ADD_BIAS, bias, gpu, {"x": "out"})


def packing(problem: W4A16Problem, gpu: Gpu) -> Stage:
    """Return what packs a problem's weight."""
    shape = stored_shape(problem)
    return default(REPACK, RepackProblem(1, problem.K, problem.N, problem.act_order, *shape), gpu)


def default(
    kernel: Kernel, problem: Problem, gpu: Gpu, renamed: Mapping[str, str] | None = None
) -> Stage:
    """Return a stage with a kernel's default config."""
    return Stage(kernel, problem, kernel.default(problem, gpu), renamed or {})
