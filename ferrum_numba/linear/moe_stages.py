"""Which kernels a layer of experts takes, in order, and with which configs; no GPU is needed.

    [shared experts] -> route_topk -> align_tokens -> [gather_pairs] -> GEMM 1 -> [add_bias_pairs]
    -> [silu_mul] -> [gather_pairs] -> GEMM 2 -> [add_bias_pairs] -> combine

What is given instead of logits needs no route, and what reads ids directly no list. Two GEMMs that
read lists of other blocks have two. On Hopper each launch begins before the one before it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ferrum_numba.contract import Kernel
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.grouped import LISTS, GroupedKernel, GroupedProblem
from ferrum_numba.kernels.moe.add_bias_pairs import AddBiasPairs, PairBiasProblem
from ferrum_numba.kernels.moe.align_tokens import AlignProblem, AlignTokens
from ferrum_numba.kernels.moe.combine import Combine, CombineProblem
from ferrum_numba.kernels.moe.gather_pairs import GatherPairs, GatherPairsProblem
from ferrum_numba.kernels.moe.route_topk import RouteProblem, RouteTopk
from ferrum_numba.kernels.moe.silu_mul import SiluMul, SiluProblem
from ferrum_numba.kernels.shared.work_list import list_dtype
from ferrum_numba.linear.moe_choice import grouped_choice, is_fused
from ferrum_numba.linear.stages import ELEMENT_BYTES, LayerTask, Stage, default
from ferrum_numba.results.decisions import Choice, Decision

ROUTE, ALIGN, SILU, COMBINE = RouteTopk(), AlignTokens(), SiluMul(), Combine()
GATHER, ADD_BIAS = GatherPairs(), AddBiasPairs()
# of a stack's buffers, in this order
STACK = ("packed", "scales", "zero_points", "bias", "perm")
LOGITS, ROUTED = ("logits",), ("topk_ids", "topk_weights")
WORD_BYTES = 4


@dataclass(frozen=True)
class MoeTask:
    """What a layer of experts asks of a launch plan.

    gate_up, down: the two GEMMs, of these tokens; act_order and bias as the stacks have them
    kernels:       those that may run them
    route:         how logits become ids and weights; None where these are given
    num_ids:       ids that a map takes to experts; 0: no map
    two_step:      whose bias is added to the rounded result: of gate_up, of down
    interleaved:   gate and up lie in runs of 8, else side by side
    invariant:     a token's row has the same bits whatever the others are
    shared:        gate_up and down of the shared experts
    """

    gate_up: GroupedProblem
    down: GroupedProblem
    kernels: tuple[GroupedKernel, ...]
    route: RouteProblem | None = None
    num_ids: int = 0
    two_step: tuple[bool, bool] = (False, False)
    interleaved: bool = True
    invariant: bool = False
    shared: tuple[LayerTask, LayerTask] | None = None

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the buffers whose addresses a call gives, in order, after x and out."""
        names = [*(ROUTED if self.route is None else LOGITS), "expert_map"]
        for stack in ("gate_up", "down"):
            names += (f"{stack}.{name}" for name in STACK)
        for which, task in zip(("gate_up", "down"), self.shared or (), strict=False):
            names += (f"shared.{which}.{name}" for name in task.operands)
        return tuple(names)

    def stages(self, decisions: Sequence[Decision], gpu: Gpu) -> Iterator[Stage]:
        """Yield the stages.

        Raises:
            ProblemError: no kernel can run one of the problems.
        """
        yield from _told_of_lists(list(_Stages(self, decisions, gpu)))


class _Stages:
    """The stages of a task, one after the other."""

    def __init__(self, task: MoeTask, decisions: Sequence[Decision], gpu: Gpu) -> None:
        self._task, self._decisions, self._gpu = task, decisions, gpu
        first = task.gate_up
        self._tokens, self._top_k, self._pairs = first.tokens, first.top_k, first.num_pairs
        self._num_experts, self._dtype = first.num_experts, first.dtype
        # of out, and of what GEMM 2 multiplies
        self._H, self._I = task.down.N, task.down.K
        self._kind: dict[str, Any] = {"num_ids": task.num_ids}

    def __iter__(self) -> Iterator[Stage]:
        task = self._task
        plain = self._problem(task.gate_up, task.two_step[0])
        may_be = task.interleaved and not task.two_step[0]
        fused = may_be and is_fused(plain, task.kernels, self._decisions)
        first = self._choose(replace(plain, gated=fused))
        second = self._choose(self._problem(task.down, task.two_step[1], per_pair=True))
        if task.shared is not None:
            yield from self._shared(*task.shared)
        if task.route is not None:
            yield self._route(task.route)
        yield from self._lists(first, second)
        yield from self._gemm("gate_up", first, "x", "hidden" if fused else "both")
        if not fused:
            silu = SiluProblem(self._pairs, self._I, task.interleaved, self._dtype)
            yield self._small(SILU, silu, {"x": "both", "out": "hidden"}, self._rows(self._I))
        yield from self._gemm("down", second, "hidden", "rows")
        yield self._combine()

    def _problem(
        self, problem: GroupedProblem, two_step: bool, per_pair: bool = False
    ) -> GroupedProblem:
        """Return what a grouped GEMM is asked, when others have done their part."""
        return replace(
            problem, act_order=False, per_pair=per_pair or problem.act_order,
            bias=problem.bias and not two_step,
        )  # fmt: skip

    def _choose(self, problem: GroupedProblem) -> tuple[GroupedProblem, Choice]:
        task = self._task
        choice = grouped_choice(
            problem, task.kernels, self._decisions, self._gpu,
            num_ids=task.num_ids, invariant=task.invariant,
        )  # fmt: skip
        return problem, choice

    def _route(self, problem: RouteProblem) -> Stage:
        ids_bytes = WORD_BYTES * self._pairs
        stage = default(ROUTE, problem, self._gpu, {"out": "routing"}, {"routing": 2 * ids_bytes})
        parts = {"topk_ids": ("routing", 0), "topk_weights": ("routing", ids_bytes)}
        return replace(stage, parts=parts)

    def _lists(self, *gemms: tuple[GroupedProblem, Choice]) -> Iterator[Stage]:
        """Yield what sorts pairs into blocks, once for each size of a block."""
        for name in dict.fromkeys(_reads(choice) for _, choice in gemms):
            if name not in LISTS:
                continue
            block = int(name.removeprefix("list_"))
            problem = AlignProblem(
                self._tokens, self._num_experts, self._top_k, block, **self._kind
            )
            size = list_dtype(self._pairs, self._num_experts, block).itemsize
            yield self._small(ALIGN, problem, {"ids": "topk_ids", "out": name}, {name: size})

    def _gemm(
        self, stack: str, chosen: tuple[GroupedProblem, Choice], x: str, out: str
    ) -> Iterator[Stage]:
        """Yield a grouped GEMM, and what its weights ask for before and after."""
        problem, choice = chosen
        of = {"gate_up": self._task.gate_up, "down": self._task.down}[stack]
        two_step = self._task.two_step[("gate_up", "down").index(stack)]
        names = {name: f"{stack}.{name}" for name in STACK}
        routing = (self._tokens, self._num_experts, self._top_k)
        if of.act_order:
            gather = GatherPairsProblem(*routing, of.K, per_pair=stack == "down", **self._kind)
            renamed = {"x": x, "ids": "topk_ids", "out": "gathered", "perm": names["perm"]}
            yield self._small(GATHER, gather, renamed, {"gathered": self._bytes(of.K)})
            x = "gathered"
        renamed = {**names, "x": x, "ids": "topk_ids", "out": out}
        makes = {out: self._bytes(problem.out_columns)}
        yield Stage(choice.kernel, problem, choice.config, renamed, choice, makes)
        if two_step:
            bias = PairBiasProblem(*routing, of.N, dtype=self._dtype, **self._kind)
            renamed = {"x": out, "out": out, "ids": "topk_ids", "bias": names["bias"]}
            yield self._small(ADD_BIAS, bias, renamed, {})

    def _combine(self) -> Stage:
        shared = self._task.shared is not None
        problem = CombineProblem(
            self._tokens, self._num_experts, self._top_k, self._H, shared=shared,
            dtype=self._dtype, **self._kind,
        )  # fmt: skip
        # what is absent is never read, and named all the same
        renamed = {"ids": "topk_ids", "shared": "shared.rows" if shared else "rows"}
        return self._small(COMBINE, problem, renamed, {})

    def _shared(self, gate_up: LayerTask, down: LayerTask) -> Iterator[Stage]:
        """Yield the stages of the shared experts, whose gate and up lie side by side."""
        columns = down.problem.K
        silu = SiluProblem(self._tokens, columns, False, self._dtype)
        yield from self._within("gate_up", gate_up, "x", "shared.both")
        renamed = {"x": "shared.both", "out": "shared.hidden"}
        hidden = {"shared.hidden": self._tokens * columns * ELEMENT_BYTES}
        yield self._small(SILU, silu, renamed, hidden)
        yield from self._within("down", down, "shared.hidden", "shared.rows")

    def _within(self, which: str, task: LayerTask, x: str, out: str) -> Iterator[Stage]:
        """Yield the stages of a layer in this one, with names of this one's buffers."""
        names = {name: f"shared.{which}.{name}" for name in task.operands} | {"x": x, "out": out}
        makes = {out: task.problem.M * task.problem.N * ELEMENT_BYTES}
        for stage in task.stages(self._decisions, self._gpu):
            others = {taker: names.get(name, name) for taker, name in stage.renamed.items()}
            yield replace(stage, renamed={**names, **others}, makes={**makes, **stage.makes})

    def _small(
        self, kernel: Kernel, problem: object, renamed: Mapping[str, str], makes: Mapping[str, int]
    ) -> Stage:
        return default(kernel, problem, self._gpu, renamed, makes)

    def _rows(self, columns: int) -> dict[str, int]:
        return {"hidden": self._bytes(columns)}

    def _bytes(self, columns: int) -> int:
        return self._pairs * columns * ELEMENT_BYTES


def _reads(choice: Choice) -> str:
    """Return the buffer that says a grouped GEMM whose rows it multiplies."""
    assert isinstance(choice.kernel, GroupedKernel), "it is a grouped GEMM's"
    found = choice.kernel.reads(choice.config)
    return "topk_ids" if found == "ids" else found


def _told_of_lists(stages: Sequence[Stage]) -> Iterable[Stage]:
    """Yield the stages; each grouped GEMM knows whether what it reads was written just before.

    What was written two launches ago is there: every launch waits for the one before it, and lets
    the next one begin only then. What a call gives may be new to the first launch.
    """
    for before, stage in zip((None, *stages), stages, strict=False):
        if isinstance(stage.kernel, GroupedKernel) and stage.choice is not None:
            reads = _reads(stage.choice)
            new = before is None or reads in {**before.makes, **before.parts}
            stage = replace(stage, scalars={"list_is_new": int(new)})
        yield stage
