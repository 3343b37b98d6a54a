"""What a layer launches: the kernel that was decided on, and the helpers around it.

The launches, their order and the buffers they share are those of `linear/launch_plan.py`, which
runs them; here nothing is loaded, so no GPU is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ferrum_numba.contract import Config, Kernel, Launch, Problem
from ferrum_numba.errors import ProblemError
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.shared.packed import stored_shape
from ferrum_numba.kernels.tools.add_bias import AddBias, AddBiasProblem
from ferrum_numba.kernels.tools.gather_columns import GatherColumns, GatherProblem
from ferrum_numba.kernels.tools.repack import Repack, RepackProblem
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.choice import READERS, kernel_for, refusal
from ferrum_numba.linear.launch_plan import ELEMENT_BYTES
from ferrum_numba.results.decisions import Choice, Decision

BIAS_MODES = ("fused", "two_step")


@dataclass(frozen=True)
class Layer:
    """A weight to export programs for.

    problem:   of one row of x
    store:     "marlin" for packed tiles, "raw" for the checkpoint's own layout
    bias_mode: as for `MarlinLinear.from_gptq`
    """

    problem: W4A16Problem
    store: str
    bias_mode: str = "fused"

    @classmethod
    def of(cls, problem: W4A16Problem, store: str | None, bias_mode: str) -> Layer:
        """Return the layer of a problem, in the store asked for, else packed where it can be.

        Raises:
            ProblemError: no kernel can run it so.
        """
        # as stores name one group
        size = -1 if problem.num_groups == 1 else problem.group_size
        problem = replace(problem, M=1, group_size=size)
        kinds = tuple(READERS) if store is None else (store,)
        refusals = {kind: _refusal(kind, problem) for kind in kinds}
        for kind, reason in refusals.items():
            if reason is None:
                return cls(problem, kind, bias_mode if problem.bias else "fused")
        raise ProblemError("; ".join(f"not {k}, because {r}" for k, r in refusals.items()))

    @property
    def gathered(self) -> bool:
        """Whether a kernel of its own brings the columns of x into the order of the weight."""
        return self.store == "marlin" and self.problem.act_order

    @property
    def two_step(self) -> bool:
        """Whether a kernel of its own adds the bias."""
        return self.problem.bias and self.bias_mode == "two_step"

    def key(self) -> dict[str, Any]:
        """Return what says which weights it is."""
        problem = {name: value for name, value in asdict(self.problem).items() if name != "M"}
        return {**problem, "store": self.store, "bias_mode": self.bias_mode}

    def stored(self) -> tuple[int, int]:
        """Return K and N of the weight as it is stored."""
        shape = self.problem.K, self.problem.N
        return stored_shape(self.problem) if self.store == "marlin" else shape


@dataclass(frozen=True)
class Stage:
    """One launch of a layer, for any number of rows.

    problem: of the rows that its config was chosen for
    renamed: name of a buffer by the parameter that takes it, where they differ
    """

    kernel: Kernel
    config: Config
    problem: Problem
    renamed: Mapping[str, str] = field(default_factory=dict)

    def launch(self, M: int, gpu: Gpu) -> Launch:
        """Return its launch for M rows; `repack` has none."""
        problem = replace(self.problem, M=M) if hasattr(self.problem, "M") else self.problem
        return self.kernel.launch(self.config, problem, gpu)


@dataclass(frozen=True)
class Chosen:
    """The launches of a layer, as they were chosen for some number of rows.

    stages:    in order
    main:      the one of them that multiplies
    row_bytes: scratch by name, bytes a row of x
    """

    stages: tuple[Stage, ...]
    main: Stage
    row_bytes: Mapping[str, int]
    choice: Choice


def choose_stages(layer: Layer, M: int, decisions: Sequence[Decision], gpu: Gpu) -> Chosen:
    """Return what a layer launches for M rows."""
    problem, stages, renamed = replace(layer.problem, M=M), [], {}
    row_bytes = {}
    if layer.gathered:
        gather = GatherProblem(M, problem.K)
        stages.append(_default(GatherColumns(), gather, gpu, {"out": "gathered"}))
        row_bytes["gathered"] = ELEMENT_BYTES * problem.K
        problem, renamed = replace(problem, act_order=False), {"x": "gathered"}
    if layer.two_step:
        problem = replace(problem, bias=False)
    choice = kernel_for(problem, READERS[layer.store], decisions, gpu)
    main = Stage(choice.kernel, choice.config, problem, renamed)
    stages.append(main)
    if layer.two_step:
        bias = AddBiasProblem(M, problem.N, problem.dtype)
        stages.append(_default(AddBias(), bias, gpu, {"x": "out"}))
    return Chosen(tuple(stages), main, row_bytes, choice)


def repack_stage(layer: Layer, gpu: Gpu) -> Stage | None:
    """Return what makes the packed weight of a checkpoint's words, None where it stays as it is."""
    if layer.store != "marlin":
        return None
    problem = layer.problem
    repack = RepackProblem(1, problem.K, problem.N, problem.act_order, *layer.stored())
    return _default(Repack(), repack, gpu, {"out": "packed"})


def _default(kernel: Kernel, problem: Problem, gpu: Gpu, renamed: Mapping[str, str]) -> Stage:
    return Stage(kernel, kernel.default(problem, gpu), problem, renamed)


def _refusal(kind: str, problem: W4A16Problem) -> str | None:
    # packed rows are in the order of their groups, and so are the columns of x that kernels get
    return refusal(kind, replace(problem, act_order=False) if kind == "marlin" else problem)
