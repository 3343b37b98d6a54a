"""What a call of the operators on a GPU looks up: plans, by layout, type, device and rows."""

from __future__ import annotations

import math
import struct

import torch

from ferrum_numba.errors import CaptureError, LaunchError
from ferrum_numba.linear.choice import readers
from ferrum_numba.linear.launch_plan import LaunchPlan
from ferrum_numba.linear.pieces import Plan, planned
from ferrum_numba.linear.runtime import runtime
from ferrum_numba.linear.select import STORES
from ferrum_numba.linear.stages import LayerTask
from ferrum_numba.linear.tensors import MISALIGNED
from ferrum_numba.torch.layout import Layout
from ferrum_numba.torch.on_host import check

# by layout, type and number of the GPU
known: dict[tuple[str, torch.dtype, int], Weights] = {}


def weights(layout: str, dtype: torch.dtype, device: int) -> Weights:
    """Return the weights of a layout and type on a GPU, the same again.

    Raises:
        ProblemError: no layout, or a type that no kernel has.
    """
    key = layout, dtype, device
    if key not in known:
        known[key] = Weights(Layout.parse(layout), dtype, device)
    return known[key]


class Weights:
    """Weights of one layout and type on one GPU; errors name them by their sizes.

    K, N:  rows and columns
    plans: by rows of x
    """

    def __init__(self, layout: Layout, dtype: torch.dtype, device: int) -> None:
        on = runtime(device)
        assert on is not None, "a number is a GPU"
        self.K, self.N = layout.K, layout.N
        self.plans: dict[int, Plan] = {}
        self._layout, self._dtype, self._device, self._runtime = layout, dtype, device, on
        self._weight, self._kind = layout.weight(dtype), STORES[layout.store]
        self._kernels = readers(layout.store, dense=layout.dense)
        buffers = layout.buffers(dtype)
        self._buffers = [buffers.get(name) for name in self._kind.names]
        self._bytes = [0 if b is None else math.prod(b[0]) * b[1].itemsize for b in self._buffers]
        self._pack = struct.Struct(f"={len(self._kind.names)}Q").pack
        # addresses of tensors that were looked at together
        self._checked: set[tuple[int, ...]] = set()

    def operands(
        self,
        weight: torch.Tensor,
        scales: torch.Tensor,
        zero_points: torch.Tensor | None,
        bias: torch.Tensor | None,
        order: torch.Tensor | None,
        expert: int = 0,
    ) -> bytes:
        """Return the addresses of an expert's tensors, packed.

        Raises:
            ProblemError: tensors that are not this layout's.
            LaunchError:  they are elsewhere, or not contiguous.
        """
        first = (
            weight.data_ptr(),
            scales.data_ptr(),
            0 if zero_points is None else zero_points.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if order is None else order.data_ptr(),
        )
        # a type may change where it is
        if first not in self._checked or scales.dtype is not self._dtype:
            self._check(weight, scales, zero_points, bias, order)
            self._checked.add(first)
        if not expert:
            return self._pack(*first)
        return self._pack(*(a + expert * n for a, n in zip(first, self._bytes, strict=True)))

    def plan(self, M: int, stream: int) -> Plan:
        """Return the plan of a number of rows that was not seen before.

        Raises:
            CaptureError: the stream is being captured, and a kernel would have to be loaded.
        """
        gathered = self._layout.store == "marlin" and self._layout.act_order
        weight, names = self._weight, self._kind.names

        def made(rows: int) -> LaunchPlan:
            problem = weight.problem(rows)
            task = LayerTask(problem, self._kernels, names, gathered, weight.two_step)
            plan = self._runtime.plans.get(task, stream)
            if plan is None:
                raise CaptureError(
                    f"{self._weight.name}: a kernel cannot be loaded while a graph is captured; "
                    f"before it, call the layer with {M} rows, or its prepare([{M}])"
                )
            return plan

        plan = self.plans[M] = planned(M, self.K, self.N, made)
        return plan

    def _check(self, *tensors: torch.Tensor | None) -> None:
        for what, tensor, known in zip(self._kind.names, tensors, self._buffers, strict=True):
            name = f"{self._weight.name}: {what}"
            check(name, tensor, known, self._layout.num_experts)
            if tensor is None:
                continue
            if tensor.get_device() != self._device:
                raise LaunchError(
                    f"{name} must be on cuda:{self._device} like x; it is on {tensor.device}"
                )
            if tensor.data_ptr() & MISALIGNED:
                raise LaunchError(f"{name} must begin at a multiple of {MISALIGNED + 1} bytes")
