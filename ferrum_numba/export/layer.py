"""What a layer launches: the kernel that was decided on, and the helpers around it.

The launches, their order and the buffers they share are those of `linear/stages.py`; here nothing
is loaded, so no GPU is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ferrum_numba.contract import Launch
from ferrum_numba.errors import ProblemError
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.shared.packed import stored_shape
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.linear.choice import READERS, refusal
from ferrum_numba.linear.stages import ELEMENT_BYTES, LayerTask, Stage, packing
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
    problem = replace(layer.problem, M=M)
    task = LayerTask(problem, READERS[layer.store], (), layer.gathered, layer.two_step)
    found = tuple(task.stages(decisions, gpu))
    main = next(stage for stage in found if stage.choice is not None)
    assert main.choice is not None, "it was found by it"
    row_bytes = {"gathered": ELEMENT_BYTES * problem.K} if layer.gathered else {}
    return Chosen(found, main, row_bytes, main.choice)


def launch_of_rows(stage: Stage, M: int, gpu: Gpu) -> Launch:
    """Return a stage's launch for M rows; `repack` has none."""
    problem = replace(stage.problem, M=M) if hasattr(stage.problem, "M") else stage.problem
    return replace(stage, problem=problem).launch(gpu)


def repack_stage(layer: Layer, gpu: Gpu) -> Stage | None:
    """Return what makes the packed weight of a checkpoint's words, None where it stays as it is."""
    if layer.store != "marlin":
        return None
    return replace(packing(layer.problem, gpu), renamed={"out": "packed"})


def _refusal(kind: str, problem: W4A16Problem) -> str | None:
    # packed rows are in the order of their groups, and so are the columns of x that kernels get
    return refusal(kind, replace(problem, act_order=False) if kind == "marlin" else problem)
