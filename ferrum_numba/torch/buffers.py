"""Modules whose buffers are the operands of a stack of weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import nn

from ferrum_numba.errors import ProblemError
from ferrum_numba.linear.select import STORES
from ferrum_numba.linear.stores import Store
from ferrum_numba.torch import on_gpu
from ferrum_numba.torch.layout import NAMES, TYPES, Layout


def type_name(dtype: torch.dtype | str) -> str:
    """Return our name of a type: "fp16" or "bf16"; others are left for the layer to refuse."""
    return dtype if isinstance(dtype, str) else NAMES.get(dtype, str(dtype))


Stack = TypeVar("Stack", bound="OfStack")


class OfStack(nn.Module):
    """A stack of weights in buffers, [E, ...] each, by the names that kernels have for them.

    layout: what the weights are
    """

    def __init__(
        self, layout: Layout, *, dtype: torch.dtype = torch.float16, device: Any = None
    ) -> None:
        super().__init__()
        self.layout, self.layout_text = layout, str(layout)
        self.in_features, self.out_features = layout.K, layout.N
        self._names = STORES[layout.store].names
        known = layout.buffers(dtype)
        for name in self._names:
            tensor = None
            if name in known:
                shape, kind = known[name]
                tensor = torch.empty((layout.num_experts, *shape), dtype=kind, device=device)
            self.register_buffer(name, tensor)

    @classmethod
    def of(cls, store: Store, layout: Layout) -> Self:
        """Return a module with a copy of a store's operands."""
        made = cls(layout, dtype=TYPES[store.weight.dtype], device="meta")
        for name in store.operands:
            setattr(made, name, _tensor(store, name))
        return made

    @staticmethod
    def place(device: Any) -> str:
        """Return a device of torch's in words, with the number of the GPU.

        Raises:
            ProblemError: neither the CPU nor a GPU of CUDA.
        """
        device = torch.device(device)
        if device.type == "cpu":
            return "cpu"
        if device.type != "cuda":
            raise ProblemError(f"a layer runs on cuda or cpu; got {device}")
        return f"cuda:{torch.cuda.current_device() if device.index is None else device.index}"

    def view(self, kind: type[Stack], index: int) -> Stack:
        """Return a module of one of the weights, on the same memory."""
        one = kind(replace(self.layout, num_experts=1), dtype=self.scales.dtype, device="meta")
        for name, tensor in self._buffers.items():
            if tensor is not None:
                setattr(one, name, tensor[index : index + 1])
        return one

    def operands(self) -> tuple[torch.Tensor | None, ...]:
        """Return the buffers in the operators' order."""
        buffers = self._buffers
        # spelled out, because every call comes here
        weight, scales, zero_points, bias, order = self._names
        return (
            buffers[weight], buffers[scales], buffers[zero_points], buffers[bias], buffers[order],
        )  # fmt: skip

    def prepare(self, rows: int | Iterable[int]) -> None:
        """Build and load what some numbers of rows need: for a capture, or to wait for it now."""
        scales = self.scales
        device = scales.get_device()
        if device < 0:
            return
        found = on_gpu.weights(self.layout_text, scales.dtype, device)
        for M in rows if isinstance(rows, Iterable) else [rows]:
            if M and M not in found.plans:
                found.plan(M, torch.cuda.current_stream(device).cuda_stream)

    def extra_repr(self) -> str:
        """Return the layout."""
        return self.layout_text


def from_array(array: Any) -> torch.Tensor:
    """Return a NumPy array as a tensor on its memory, or of a read-only one on a copy."""
    if array.dtype.name == "bfloat16":
        return from_array(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _tensor(store: Store, name: str) -> torch.Tensor:
    """Return a copy of an operand of all experts, in memory of torch's, on the store's device."""
    if store.runtime is None:
        return from_array(store.operands.whole(name)).clone()
    shared = store.operands.whole(name)
    device = torch.device("cuda", store.runtime.device.index)
    tensor = torch.as_tensor(shared, device=device).clone()
    # before the store's memory goes
    torch.cuda.current_stream(device).synchronize()
    floats = TYPES[store.weight.dtype]
    return tensor.view(floats) if tensor.dtype.itemsize == floats.itemsize else tensor
