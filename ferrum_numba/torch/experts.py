"""The experts of a block as modules of torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any, Literal

import torch
from torch import nn

from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.fused import interleaved
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.kernels.grouped import MOST_TOP_K
from ferrum_numba.linear.experts import ExpertStack as OnDevice
from ferrum_numba.torch import moe, operator
from ferrum_numba.torch.buffers import OfStack, type_name
from ferrum_numba.torch.layout import Layout
from ferrum_numba.torch.linear import MarlinLinear

# columns of gate, then of up, that lie side by side where both are interleaved
GATE_RUN = 8


class ExpertStack(OfStack):
    """The experts of a block, all of one shape: rows that are sorted by expert, times theirs."""

    @classmethod
    def from_gptq(
        cls,
        experts: Iterable[GptqTensors],
        num_experts: int | None = None,
        *,
        device: Any = "cuda",
        store: Literal["marlin", "raw"] | None = None,
        dtype: torch.dtype | str = torch.float16,
        bias_mode: Literal["fused", "two_step"] = "fused",
        interleave: bool = False,
    ) -> ExpertStack:
        """Put experts on a device, one after the other as they come.

        Args:
            experts:     such as `GptqCheckpoint.experts` returns
            num_experts: how many will come; without it what has no length is read to its end first
            device, store, dtype, bias_mode: as for `MarlinLinear`
            interleave:  columns are gate and up, side by side: put them in turn, in runs of 8, so
                         that `GatedExperts` can apply the gate where it has both

        Raises:
            ProblemError: they differ in K, N, group size or bias, or cannot be held so.
            DeviceError:  no such device.
        """
        if num_experts is None:
            experts = experts if isinstance(experts, Sized) else list(experts)
            num_experts = len(experts)
        if interleave:
            experts = map(interleaved, experts)
        made = OnDevice.from_gptq(
            experts, num_experts, device=cls.place(device), store=store, dtype=type_name(dtype),
            bias_mode=bias_mode,
        )  # fmt: skip
        return cls.of(made.store, Layout.of(made.store, interleaved=interleave))

    def forward(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return rows of x [S, K], sorted by expert, times their experts: [S, N].

        counts: [E] integers, rows of each expert. On a GPU the host waits for them, except in a
                capture: a graph multiplies all rows by every expert
        """
        return operator.experts(x, counts, *self.operands(), self.layout_text)

    def expert(self, index: int) -> MarlinLinear:
        """Return one expert, a view of the stack's memory."""
        num_experts = self.layout.num_experts
        if not 0 <= index < num_experts:
            raise ProblemError(f"expert must be 0..{num_experts - 1}; got {index}")
        return self.view(MarlinLinear, index)


class GatedExperts(nn.Module):
    """Experts of two projections each, the first gated: what a Mixtral's or a Qwen's block has.

    y = sum over a token's experts of w * down(act(gate(x)) * up(x))

    Packed experts with a SiLU are one operator, of a few launches, however the tokens are routed:
    it can be captured, and compiled. Others run one after the other: the host waits to know how
    many rows each has, and in a graph every expert multiplies all rows.

    gate_up: gate and up, side by side, or interleaved
    down:    back
    act:     of the gate
    """

    def __init__(
        self,
        gate_up: ExpertStack,
        down: ExpertStack,
        act: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Put a block together.

        Raises:
            ProblemError: stacks that do not fit each other.
        """
        super().__init__()
        moe.refuse_misfit(gate_up.layout, down.layout)
        self.gate_up, self.down, self.act_fn = gate_up, down, act
        self.num_experts = gate_up.layout.num_experts
        self.grouped = is_silu(act) and moe.why_not(gate_up.layout, down.layout) is None

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the experts' sum for each token.

        hidden_states: [T, H]
        top_k_index:   [T, k] integers, a token's experts
        top_k_weights: [T, k], their weights
        """
        if self.grouped and top_k_index.shape[1] <= MOST_TOP_K:
            return operator.moe(
                hidden_states, top_k_index.to(torch.int32), top_k_weights.to(torch.float32),
                *self.gate_up.operands(), self.gate_up.layout_text,
                *self.down.operands(), self.down.layout_text,
            )  # fmt: skip
        return self._one_by_one(hidden_states, top_k_index, top_k_weights)

    def _one_by_one(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        tokens, top_k = top_k_index.shape
        expert_of = top_k_index.reshape(-1)
        order = expert_of.argsort(stable=True)
        counts = torch.zeros(self.num_experts, dtype=torch.int64, device=expert_of.device)
        counts = counts.scatter_add(0, expert_of, torch.ones_like(expert_of, dtype=torch.int64))
        if _may_wait(counts):
            # once, for both projections
            counts = counts.cpu()
        gate, up = self._gate_and_up(self.gate_up(hidden_states[order // top_k], counts))
        sorted_rows = self.down(self.act_fn(gate) * up, counts)
        rows = torch.empty_like(sorted_rows).index_copy(0, order, sorted_rows)
        weighted = rows * top_k_weights.reshape(-1, 1).to(rows.dtype)
        return weighted.view(tokens, top_k, -1).sum(dim=1)

    def _gate_and_up(self, both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.gate_up.layout.interleaved:
            gate, up = both.chunk(2, dim=-1)
            return gate, up
        runs = both.view(len(both), -1, 2, GATE_RUN)
        return runs[:, :, 0].reshape(len(both), -1), runs[:, :, 1].reshape(len(both), -1)

    def prepare(self, tokens: int | Iterable[int], top_k: int) -> None:
        """Build and load what some numbers of tokens with so many experts each need."""
        numbers = list(tokens) if isinstance(tokens, Iterable) else [tokens]
        scales = self.gate_up.scales
        device = scales.get_device()
        if not self.grouped or top_k > MOST_TOP_K:
            # in a graph every expert has all pairs' rows
            self.gate_up.prepare(T * top_k for T in numbers)
            self.down.prepare(T * top_k for T in numbers)
        elif device >= 0:
            texts = self.gate_up.layout_text, self.down.layout_text
            found = moe.experts(*texts, top_k, scales.dtype, device)
            for T in filter(None, numbers):
                found.plan(T, torch.cuda.current_stream(device).cuda_stream)


def is_silu(act: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Tell whether a gate's function is x * sigmoid(x), as torch or transformers have it."""
    names = ("SiLU", "SiLUActivation", "silu")
    return getattr(act, "__name__", type(act).__name__) in names


def _may_wait(counts: torch.Tensor) -> bool:
    if torch.compiler.is_compiling() or not counts.is_cuda:
        return False
    return not torch.cuda.is_current_stream_capturing()
