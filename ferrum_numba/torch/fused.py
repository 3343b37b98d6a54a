"""Projections of one x that are multiplied at once, where the model still calls them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ferrum_numba.torch.linear import MarlinLinear


class Fused(nn.Module):
    """Projections side by side in one weight.

    linear: all of them
    sizes:  columns of each
    """

    def __init__(self, linear: MarlinLinear, sizes: Sequence[int]) -> None:
        super().__init__()
        self.linear, self.sizes = linear, list(sizes)
        # the x that was multiplied last and what it was then, its results, and which of them
        # nobody took so far
        self._last: tuple[torch.Tensor, Any, Any, frozenset[int]] | None = None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return x [..., K] times each projection: views [..., N] of one result."""
        return self.linear(x).split(self.sizes, dim=-1)

    def part(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Return x times a projection; the others' results wait for who asks with the same x."""
        last, now = self._last, self._state(x)
        if last is None or last[0] is not x or last[1] != now or index not in last[3]:
            last = x, now, self(x), frozenset(range(len(self.sizes)))
        _, _, results, left = last
        left -= {index}
        # nothing is kept when all were taken
        self._last = (x, now, results, left) if left else None
        return results[index]

    def _state(self, x: torch.Tensor) -> Any:
        """Return what changes when x or the weight is written to, or a capture begins or ends."""
        if torch.compiler.is_compiling():
            # a trace has no versions, and makes a graph of one call of the model
            return None
        capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
        return capturing, _version(x), _version(self.linear.operands()[0])


def _version(tensor: torch.Tensor | None) -> int | None:
    # torch counts no changes of a tensor that was made for inference
    return None if tensor is None or tensor.is_inference() else tensor._version


class Part(nn.Module):
    """One projection of a `Fused`, which is a module of the model's elsewhere.

    Its result is a view: rows are as far apart as those of all projections.
    """

    def __init__(self, fused: Fused, index: int) -> None:
        super().__init__()
        # in a tuple, so that its buffers are not this module's too
        self._of = (fused,)
        self.index = index
        self.in_features, self.out_features = fused.linear.in_features, fused.sizes[index]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [..., K] times the projection: [..., N]."""
        return self._of[0].part(x, self.index)
