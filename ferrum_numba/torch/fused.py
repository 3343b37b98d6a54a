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
        # the x that was multiplied last, its results, and which of them nobody took so far
        self._last: tuple[torch.Tensor, Any, frozenset[int]] | None = None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return x [..., K] times each projection: views [..., N] of one result."""
        return self.linear(x).split(self.sizes, dim=-1)

    def part(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Return x times a projection; the others' results wait for who asks with the same x."""
        last = self._last
        if last is None or last[0] is not x or index not in last[2]:
            last = x, self(x), frozenset(range(len(self.sizes)))
        _, results, left = last
        left -= {index}
        # nothing is kept when all were taken
        self._last = (x, results, left) if left else None
        return results[index]


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
