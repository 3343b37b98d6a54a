"""Stacks of experts: one buffer an operand for all, and a linear layer that is a view of one.

ferrum-kernels names an expert by the first of its columns in the stack, `expert_offset`. What is no
multiple of an expert's columns, or not of this stack, is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sized
from typing import Any, Literal

from ferrum_numba.errors import ProblemError
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.linear import arrays
from ferrum_numba.linear.layer import Linear
from ferrum_numba.linear.select import make_store
from ferrum_numba.linear.stores import Store
from ferrum_numba.linear.weight import rounded


class ExpertStack:
    """The experts of a block, all of one shape, in one store.

    store: holds all of them
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @classmethod
    def from_gptq(
        cls,
        experts: Iterable[GptqTensors],
        num_experts: int | None = None,
        *,
        device: Any = "cuda",
        store: Literal["marlin", "raw"] | None = None,
        dtype: str = "fp16",
        bias_mode: Literal["fused", "two_step"] = "fused",
    ) -> ExpertStack:
        """Put experts on a device, one after the other as they come.

        Zero points and orders of rows that only some of them have are made explicit for all.

        Args:
            experts:     such as `GptqCheckpoint.experts` returns
            num_experts: how many will come; without it what has no length is read to its end first
            device, store, dtype, bias_mode: as for `MarlinLinear`

        Raises:
            ProblemError: they differ in K, N, group size or bias, or cannot be held so.
            DeviceError:  no such device.
        """
        if num_experts is None:
            if not isinstance(experts, Sized):
                experts = list(experts)
            num_experts = len(experts)
        made = make_store(
            experts, num_experts, store=store, device=device, dtype=dtype, bias_mode=bias_mode
        )
        return cls(made)

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return self.store.num_experts

    @property
    def in_features(self) -> int:
        """Rows of an expert's weight, K."""
        return self.store.weight.K

    @property
    def out_features(self) -> int:
        """Columns of an expert's weight, N."""
        return self.store.weight.N

    def __len__(self) -> int:
        return self.num_experts

    def expert(self, index: int) -> MarlinStackedExpertLinear:
        """Return one expert, a view of the stack's memory."""
        try:
            number = operator.index(index)
        except TypeError:
            number = -1
        if isinstance(index, bool) or not 0 <= number < self.num_experts:
            raise ProblemError(
                f"{self.store.weight.name}: expert must be 0..{self.num_experts - 1}; got {index!r}"
            )
        N, K = self.out_features, self.in_features
        return MarlinStackedExpertLinear(self.store, number * N, N, K)

    def prepare(self, rows: int | Iterable[int], stream: Any = None) -> None:
        """Build and load what some numbers of rows need, for all experts; see `Linear.prepare`."""
        self.expert(0).prepare(rows, stream)


class MarlinStackedExpertLinear(Linear):
    """One expert of a stack: a view, no copy.

    store:         the stack's
    expert_offset: the expert's first column among those of all
    expert_n, k:   columns and rows of an expert
    bias:          [expert_n] in place of the stack's own
    """

    def __init__(
        self, store: Store, expert_offset: int, expert_n: int, k: int, bias: Any = None
    ) -> None:
        weight, index = store.weight, expert_index(store, expert_offset, expert_n, k)
        name = f"expert {index} of the stack of {weight.name}"
        if bias is not None:
            bias = rounded(name, "bias", arrays.copy_to_host(bias), weight.dtype)
            if bias.shape != (expert_n,):
                raise ProblemError(f"{name}: bias must be [{expert_n}]; got {list(bias.shape)}")
        super().__init__(name, store, index, bias)

    @property
    def expert(self) -> int:
        """Its number in the stack."""
        return self._expert


def expert_index(store: Store, expert_offset: int, expert_n: int, k: int | None = None) -> int:
    """Return the number of the expert whose columns begin at an offset.

    Raises:
        ProblemError: no expert of this stack begins there, or has these sizes.
    """
    weight, total = store.weight, store.num_experts * store.weight.N
    numbers = (
        f"got expert_offset = {expert_offset}, expert_n = {expert_n}"
        f"{'' if k is None else f', k = {k}'}; the stack has {store.num_experts} experts of N = "
        f"{weight.N}, K = {weight.K}"
    )
    if expert_n != weight.N:
        raise ProblemError(f"{weight.name}: expert_n must be the stack's N; {numbers}")
    if k is not None and k != weight.K:
        raise ProblemError(f"{weight.name}: k must be the stack's K; {numbers}")
    if not 0 <= expert_offset <= total - expert_n:
        raise ProblemError(f"{weight.name}: expert_offset is out of range; {numbers}")
    if expert_offset % expert_n:
        raise ProblemError(
            f"{weight.name}: expert_offset must be a multiple of expert_n; {numbers}"
        )
    return expert_offset // expert_n
