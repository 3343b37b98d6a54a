"""What a layer of experts launches for some number of tokens, as rows of whole numbers.

A captured graph serves one number of tokens, so a row is for one. The launches, their order and the
buffers they share are those of `linear/moe_stages.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ferrum_numba.errors import ProblemError
from ferrum_numba.export.dispatch import Json, launch_record, packing_record, values_of
from ferrum_numba.export.programs import Programs
from ferrum_numba.kernels import GROUPED
from ferrum_numba.kernels.grouped import GroupedProblem
from ferrum_numba.kernels.moe.route_topk import RouteProblem
from ferrum_numba.kernels.shared.packed import stored_shape
from ferrum_numba.linear.moe_stages import MoeTask
from ferrum_numba.linear.stages import packing
from ferrum_numba.results.decisions import Decision


@dataclass(frozen=True)
class Experts:
    """A layer to export programs for.

    gate_up, down: its stacks, of one token
    bias_mode:     as for `MoeLayer.from_gptq`
    """

    gate_up: GroupedProblem
    down: GroupedProblem
    bias_mode: str = "fused"

    @classmethod
    def of(cls, problem: GroupedProblem, store: str | None, bias_mode: str) -> Experts:
        """Return the layer of which a problem is one of the GEMMs.

        Raises:
            ProblemError: it is none, or should not be packed.
        """
        if store not in (None, "marlin"):
            raise ProblemError(f'experts of a layer are packed; got store "{store}"')
        if not problem.per_pair and problem.N % 2:
            raise ProblemError(f"N must be gate and up, side by side; got N = {problem.N}")
        H, inner = problem.N, problem.K
        if not problem.per_pair:
            H, inner = problem.K, problem.N // 2
        gate_up = replace(
            problem, tokens=1, routing="uniform", per_pair=False, weighted=False, gated=False,
            N=2 * inner, K=H,
        )  # fmt: skip
        down = replace(gate_up, N=H, K=inner)
        return cls(gate_up, down, bias_mode if problem.bias else "fused")

    def task(self, tokens: int, logits: str | None) -> MoeTask:
        """Return what it asks for some tokens; logits: their type, or None."""
        up, two_step = self.gate_up, self.gate_up.bias and self.bias_mode == "two_step"
        route = None
        if logits is not None:
            route = RouteProblem(tokens, up.num_experts, up.top_k, dtype=logits)
        first, second = (replace(each, tokens=tokens) for each in (up, self.down))
        return MoeTask(first, second, GROUPED, route, two_step=(two_step, two_step))

    def key(self) -> Json:
        """Return what says which layers it is."""
        up = self.gate_up
        return {
            "num_experts": up.num_experts, "top_k": up.top_k, "H": up.K, "inner": self.down.K,
            "group_size": up.group_size, "zero_points": up.zero_points,
            "act_order": up.act_order, "bias": up.bias, "dtype": up.dtype,
            "bias_mode": self.bias_mode,
        }  # fmt: skip


def experts_rows(
    layer: Experts, asked: Iterable[int], decisions: Sequence[Decision], programs: Programs
) -> Iterator[Json]:
    """Yield the rows of a layer: of each number of tokens for each way to be routed."""
    for tokens in sorted(set(asked)):
        for logits in dict.fromkeys((layer.gate_up.dtype, "fp32", None)):
            yield _row(layer, tokens, logits, decisions, programs)


def experts_repacks(layer: Experts, programs: Programs) -> Iterator[Json]:
    """Yield the rows that pack an expert's words, of gate and up and of down."""
    for stack in (layer.gate_up, layer.down):
        stage = replace(packing(stack.expert, programs.gpu), renamed={"out": "packed"})
        yield packing_record(stage, stack, stored_shape(stack.expert), programs)


def _row(
    layer: Experts,
    tokens: int,
    logits: str | None,
    decisions: Sequence[Decision],
    programs: Programs,
) -> Json:
    task = layer.task(tokens, logits)
    stages = tuple(task.stages(decisions, programs.gpu))
    scratch: dict[str, int] = {}
    parts: dict[str, Any] = {}
    launches, rules = [], []
    for stage in stages:
        for name, size_bytes in stage.makes.items():
            scratch[name] = max(size_bytes, scratch.get(name, 0))
        parts |= {name: {"of": of, "at": at} for name, (of, at) in stage.parts.items()}
        if stage.choice is not None:
            rules.append(stage.choice)
            programs.add(stage, tuned=stage.choice.measured)
        launch = stage.launch(programs.gpu)
        launches.append(launch_record(stage, launch, values_of(launch), programs))
    return {
        "problem": layer.key(),
        "tokens": tokens,
        "logits": logits,
        "operands": ["x", "out", *task.operands],
        "rules": {"gate_up": rules[0].rule, "down": rules[1].rule},
        "tuned": all(rule.measured for rule in rules),
        "scratch": scratch,
        "parts": parts,
        "launches": launches,
    }
