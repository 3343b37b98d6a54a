"""The experts of a block as modules of torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.linear.experts import ExpertStack as OnDevice
from ferrum_numba.torch import operator
from ferrum_numba.torch.buffers import OfStack, type_name
from ferrum_numba.torch.layout import Layout
from ferrum_numba.torch.linear import MarlinLinear


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
    ) -> ExpertStack:
        """Put experts on a device, one after the other as they come.

        Args:
            experts:     such as `GptqCheckpoint.experts` returns
            num_experts: how many will come; without it what has no length is read to its end first
            device, store, dtype: as for `MarlinLinear`

        Raises:
            ProblemError: they differ in K, N, group size or bias, or cannot be held so.
            DeviceError:  no such device.
        """
        made = OnDevice.from_gptq(
            experts, num_experts, device=cls.place(device), store=store, dtype=type_name(dtype)
        )
        return cls.of(made.store, Layout.of(made.store))

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

    gate_up: gate and up, side by side
    down:    back
    act:     of the gate
    """

    def __init__(
        self,
        gate_up: ExpertStack,
        down: ExpertStack,
        act: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self.gate_up, self.down, self.act_fn = gate_up, down, act
        self.num_experts = gate_up.layout.num_experts

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the experts' sum for each token.

        hidden_states: [T, H]
        top_k_index:   [T, k] integers, a token's experts
        top_k_weights: [T, k], their weights
        """
        tokens, top_k = top_k_index.shape
        expert_of = top_k_index.reshape(-1)
        order = expert_of.argsort(stable=True)
        counts = torch.zeros(self.num_experts, dtype=torch.int64, device=expert_of.device)
        counts = counts.scatter_add(0, expert_of, torch.ones_like(expert_of, dtype=torch.int64))
        if _may_wait(counts):
            # once, for both projections
            counts = counts.cpu()
        gate, up = self.gate_up(hidden_states[order // top_k], counts).chunk(2, dim=-1)
        sorted_rows = self.down(self.act_fn(gate) * up, counts)
        rows = torch.empty_like(sorted_rows).index_copy(0, order, sorted_rows)
        weighted = rows * top_k_weights.reshape(-1, 1).to(rows.dtype)
        return weighted.view(tokens, top_k, -1).sum(dim=1)

    def prepare(self, rows: int | Iterable[int]) -> None:
        """Build and load what some numbers of rows of an expert need; a graph has tokens * k."""
        self.gate_up.prepare(rows)
        self.down.prepare(rows)


def _may_wait(counts: torch.Tensor) -> bool:
    if torch.compiler.is_compiling() or not counts.is_cuda:
        return False
    return not torch.cuda.is_current_stream_capturing()
