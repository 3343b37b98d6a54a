"""The product of rows with one weight of a store: launches on a GPU, the reference on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import CaptureError
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.launch import Order
from ferrum_numba.linear.choice import readers
from ferrum_numba.linear.launch_plan import LaunchPlan
from ferrum_numba.linear.pieces import Plan, planned
from ferrum_numba.linear.runtime import Runtime
from ferrum_numba.linear.slabs import Slabs, filling
from ferrum_numba.linear.stages import LayerTask, rounds
from ferrum_numba.linear.stores import Store
from ferrum_numba.reference import w4a8_gemm, w4a16_gemm
from ferrum_numba.reference.quantize_rows import quantize_rows


class GpuGemm:
    """Launches of one weight on its GPU, on any stream, by any thread.

    store:  holds the weight
    expert: which one of a stack
    bias:   [N] in place of the store's own; a copy of it goes to the GPU
    dense:  kernels may run that need scratch for a whole weight
    x_dtype: "fp8" or "int8", which many rows of x are rounded to

    plans:    by rows of x, for all experts that share them
    operands: addresses of the weight's buffers, as plans take them
    """

    def __init__(
        self,
        store: Store,
        expert: int = 0,
        bias: Array | None = None,
        *,
        dense: bool = False,
        x_dtype: str | None = None,
    ) -> None:
        assert store.runtime is not None, "the store is on a GPU"
        self._store = store
        self._runtime: Runtime = store.runtime
        addresses = store.operands.addresses(expert)
        self._kernels, self._x_dtype = readers(store.kind, dense=dense), x_dtype
        # experts of a stack share theirs, unless they ask for other kernels or another problem
        own = dense or bias is not None or x_dtype is not None
        self.plans: dict[int, Plan] = {} if own else self._runtime.plans.of(store)
        self._own_bias: Slabs | None = None
        if bias is not None:
            with filling(self._runtime.device, 1) as self._own_bias:
                self._own_bias.put("bias", 0, store.bias_operand(bias))
            addresses |= self._own_bias.addresses(0)
        self.operands = Order.packed(addresses.get(name, 0) for name in store.names)

    def __call__(self, stream: int, x: int, out: int, M: int) -> None:
        """Launch out = x times the weight; allocates and waits for nothing once it is prepared.

        x, out: addresses of [M, K] and [M, N]

        Raises:
            CaptureError: the stream is being captured, and something is not prepared.
        """
        plan = self.plans.get(M) or self._plan(M, stream)
        try:
            plan(stream, x, out, self.operands)
        except CaptureError as error:
            raise self._unprepared(M, str(error)) from None

    def prepare(self, rows: Iterable[int], stream: int | None) -> None:
        """Build, load and reserve scratch for these numbers of rows.

        stream: whose scratch; None for the default stream's and that of captures to come
        """

        def prepared(M: int) -> LaunchPlan:
            plan = self._runtime.plans.make(self.task(M))
            if plan.needs is not None:
                for each in (0, None) if stream is None else (stream,):
                    self._runtime.scratch.reserve(plan.needs, each)
            return plan

        for M in rows:
            if M:
                self.plans[M] = self._planned(M, prepared)

    def _planned(self, M: int, plan_of: Callable[[int], LaunchPlan]) -> Plan:
        weight = self._store.weight
        return planned(M, weight.K, weight.N, plan_of)

    def task(self, M: int) -> LayerTask:
        """Return what M rows ask of a launch plan."""
        store, problem = self._store, self._store.problem(M)
        if self._own_bias is not None:
            problem = replace(problem, bias=True)
        return LayerTask(
            problem, self._kernels, store.names, store.gathered, store.weight.two_step,
            self._x_dtype,
        )  # fmt: skip

    def _plan(self, M: int, stream: int) -> Plan:
        """Return the plan of a number of rows seen for the first time."""

        def made(rows: int) -> LaunchPlan:
            plan = self._runtime.plans.get(self.task(rows), stream)
            if plan is None:
                raise self._unprepared(M, "a kernel cannot be loaded while a graph is captured")
            return plan

        plan = self.plans[M] = self._planned(M, made)
        return plan

    def _unprepared(self, M: int, reason: str) -> CaptureError:
        return CaptureError(
            f"{self._store.weight.name}: {reason}; call prepare([{M}]) of the layer before each "
            "capture, or once with the stream that is captured"
        )


class HostGemm:
    """The reference on the operands of a store in the host's memory."""

    def __init__(
        self,
        store: Store,
        expert: int = 0,
        bias: Array | None = None,
        x_dtype: str | None = None,
    ) -> None:
        self._store, self._expert, self._bias, self._x_dtype = store, expert, bias, x_dtype

    def __call__(self, x: Array, out: Array) -> None:
        """Compute out [M, N] = x [M, K] times the weight."""
        parts = self._store.parts(self._expert)
        if self._bias is not None:
            parts["bias"] = self._bias
        perm = parts.pop("perm", None)
        if perm is not None:
            x = x[:, perm]
        weight = self._store.weight
        if not weight.two_step:
            out[:] = self._product(x, parts)
            return
        bias, dtype = parts.pop("bias"), DTYPES[weight.dtype]
        product = self._product(x, parts).astype(dtype)
        out[:] = product.astype(np.float32) + bias.astype(np.float32)

    def _product(self, x: Array, parts: Mapping[str, Array]) -> Array:
        """Return x times the weight, of rows rounded to 8 bits where there are many."""
        eight_bit = rounds(self._x_dtype, len(x))
        if eight_bit is None:
            return w4a16_gemm(x, **parts)
        x8, sx = quantize_rows(x, eight_bit)
        # a row with an Inf or a NaN has no scale, and no result
        lost = ~np.isfinite(sx[:, 0])
        product = w4a8_gemm(np.where(lost[:, None], x8.dtype.type(0), x8),
                            np.where(lost[:, None], np.float32(1), sx), **parts)  # fmt: skip
        product[lost] = np.nan
        return product
