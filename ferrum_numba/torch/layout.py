"""What the operators must know of a weight besides its tensors, as a string for graphs to hold."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ferrum_numba.errors import ProblemError
from ferrum_numba.linear.select import STORES
from ferrum_numba.linear.stores import Store
from ferrum_numba.linear.weight import Weight

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = {kind: name for name, kind in TYPES.items()}
FLAGS = ("symmetric", "act_order", "bias", "dense", "two_step", "interleaved")
_PATTERN = re.compile(r"(\w+) (\d+)x(\d+)x(\d+)/(\d+)((?: \w+)*)")


@dataclass(frozen=True)
class Layout:
    """What a stack of weights of one shape and kind is, apart from its tensors and their type.

    store:       "marlin" for packed tiles, "raw" for the checkpoint's own layout
    num_experts: weights of the stack; 1 for a linear layer
    K, N:        rows and columns of one
    group_size:  rows that share a scale; K for one group
    symmetric:   every zero point is 8
    act_order:   the rows' groups are permuted
    bias:        there is one
    dense:       very many rows may run with the whole weight dequantised
    two_step:    the bias is added to the rounded result
    interleaved: the columns are gate and up in runs of 8

    Its string is such as `marlin 1x4096x4096/128 symmetric bias`.
    """

    store: str
    num_experts: int
    K: int
    N: int
    group_size: int
    symmetric: bool = True
    act_order: bool = False
    bias: bool = False
    dense: bool = False
    two_step: bool = False
    interleaved: bool = False

    def __str__(self) -> str:
        sizes = f"{self.num_experts}x{self.K}x{self.N}/{self.group_size}"
        return " ".join([self.store, sizes, *(flag for flag in FLAGS if getattr(self, flag))])

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Return the layout of a string.

        Raises:
            ProblemError: it is none.
        """
        match = _PATTERN.fullmatch(text)
        words = match[6].split() if match else []
        if match is None or match[1] not in STORES or not set(words) <= set(FLAGS):
            raise ProblemError(
                f"a layout is such as 'marlin 1x4096x4096/128 symmetric'; got {text!r}"
            )
        num_experts, K, N, group_size = map(int, match.group(2, 3, 4, 5))
        flags = {flag: flag in words for flag in FLAGS}
        return cls(match[1], num_experts, K, N, group_size, **flags)

    @classmethod
    def of(cls, store: Store, *, dense: bool = False, interleaved: bool = False) -> Layout:
        """Return the layout of a store."""
        weight = store.weight
        return cls(
            store.kind, store.num_experts, weight.K, weight.N, weight.group_size,
            weight.symmetric, weight.act_order, weight.bias, dense, weight.two_step, interleaved,
        )  # fmt: skip

    def weight(self, dtype: torch.dtype) -> Weight:
        """Return what its weights are in a type; errors name it by its sizes.

        Raises:
            ProblemError: a type that no kernel has.
        """
        if dtype not in NAMES:
            raise ProblemError(f"a layer is in float16 or bfloat16; got {dtype}")
        return Weight(
            f"linear layer {self.K} x {self.N}", self.K, self.N, self.group_size, NAMES[dtype],
            self.bias, "two_step" if self.two_step else "fused", self.symmetric, self.act_order,
        )  # fmt: skip

    def buffers(self, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and type of the tensors of one weight by name, in the operators' order."""
        shapes = _STORE_OF[self.store].shapes(self.weight(dtype))
        return {
            name: (shape, torch.int32 if words else dtype)
            for name, (shape, words) in shapes.items()
        }


_STORE_OF: dict[str, Any] = dict(STORES)
# every call of an operator brings its string
parsed = cache(Layout.parse)


def num_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return the bytes of a tensor."""
    return math.prod(shape) * dtype.itemsize
