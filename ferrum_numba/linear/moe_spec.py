"""What a layer of experts is, whatever the number of tokens, and what it asks for some of them."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum_numba.errors import ProblemError
from ferrum_numba.kernels import GROUPED
from ferrum_numba.kernels.grouped import MOST_EXPERTS, MOST_TOP_K, GroupedProblem
from ferrum_numba.kernels.moe.route_topk import SCORINGS, RouteProblem
from ferrum_numba.linear.moe_stages import MoeTask
from ferrum_numba.linear.stages import LayerTask
from ferrum_numba.linear.weight import Weight
from ferrum_numba.reference.moe import GATE_RUN


@dataclass(frozen=True)
class MoeSpec:
    """A layer of experts.

    gate_up, down: an expert's weights, [H, 2 * I] and [I, H]
    num_experts:   E, those that are here
    top_k:         experts of a token
    scoring, renormalise: how logits become weights, as in `RouteProblem`
    num_ids:       ids that a map takes to experts; 0: no map, ids are of experts
    interleaved:   gate and up lie in runs of 8, else side by side
    invariant:     a token's row has the same bits whatever the others are
    """

    gate_up: Weight
    down: Weight
    num_experts: int
    top_k: int
    scoring: str = "softmax"
    renormalise: bool = True
    num_ids: int = 0
    interleaved: bool = True
    invariant: bool = False

    def __post_init__(self) -> None:
        up, down, name = self.gate_up, self.down, self.name
        if down.N != up.K or 2 * down.K != up.N:
            raise ProblemError(
                f"{name}: gate_up must be [H, 2 * I] and down [I, H]; got "
                f"[{up.K}, {up.N}] and [{down.K}, {down.N}]"
            )
        if down.K % GATE_RUN:
            raise ProblemError(
                f"{name}: an expert must have a multiple of {GATE_RUN} inner columns; got {down.K}"
            )
        if up.dtype != down.dtype:
            raise ProblemError(
                f"{name}: gate_up and down must be of one type; got {up.dtype} and {down.dtype}"
            )
        most = min(MOST_TOP_K, self.most_ids)
        if not 1 <= self.top_k <= most:
            raise ProblemError(
                f"{name}: top_k must be 1 to {most}, of {self.most_ids} experts; got {self.top_k}"
            )
        if self.most_ids > MOST_EXPERTS:
            raise ProblemError(
                f"{name}: there may be up to {MOST_EXPERTS} experts; got {self.most_ids}"
            )
        if self.scoring not in SCORINGS:
            known = " or ".join(f'"{scoring}"' for scoring in SCORINGS)
            raise ProblemError(f"{name}: scoring must be {known}; got {self.scoring!r}")

    @property
    def name(self) -> str:
        """Of the first expert; every error has it."""
        return self.gate_up.name

    @property
    def most_ids(self) -> int:
        """Ids that may stand for an expert, here or elsewhere: columns of the logits."""
        return self.num_ids or self.num_experts

    def task(
        self, tokens: int, logits: str | None, shared: tuple[LayerTask, LayerTask] | None = None
    ) -> MoeTask:
        """Return what is asked for some tokens.

        logits: their type; None where ids and weights are given

        Raises:
            ProblemError: too many tokens.
        """
        route = None
        if logits is not None:
            route = RouteProblem(
                tokens, self.most_ids, self.top_k, self.scoring, self.renormalise, logits
            )
        up, down = self.gate_up, self.down
        return MoeTask(
            self._problem(up, tokens), self._problem(down, tokens), GROUPED, route, self.num_ids,
            (up.two_step, down.two_step), self.interleaved, self.invariant, shared,
        )  # fmt: skip

    def _problem(self, weight: Weight, tokens: int) -> GroupedProblem:
        one = weight.problem(1)
        try:
            return GroupedProblem(
                tokens, self.num_experts, self.top_k, one.N, one.K, one.group_size,
                zero_points=one.zero_points, act_order=one.act_order, bias=one.bias,
                dtype=one.dtype,
            )  # fmt: skip
        except ProblemError as error:
            raise ProblemError(f"{self.name}: {error}") from None
