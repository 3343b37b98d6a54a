"""A layer of experts at work: launches on a GPU, the references on the host."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import CaptureError
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.launch import Order
from ferrum_numba.linear.gemm import HostGemm
from ferrum_numba.linear.launch_plan import LaunchPlan
from ferrum_numba.linear.layer import Linear
from ferrum_numba.linear.moe_spec import MoeSpec
from ferrum_numba.linear.moe_stages import STACK, MoeTask
from ferrum_numba.linear.slabs import Slabs, filling
from ferrum_numba.linear.stores import Store
from ferrum_numba.reference import moe

Shared = tuple[Linear, Linear]


class GpuMoe:
    """Launches of one layer on its GPU, on any stream, by any thread.

    expert_map: [E_global] int32, of which a copy goes to the GPU; or None
    shared:     gate_up and down of the shared experts, or None
    """

    def __init__(
        self, spec: MoeSpec, gate_up: Store, down: Store, expert_map: Array | None,
        shared: Shared | None,
    ) -> None:  # fmt: skip
        assert gate_up.runtime is not None, "the stores are on a GPU"
        self._spec, self._runtime = spec, gate_up.runtime
        # by number of tokens and type of the logits, None where ids and weights are given
        self._plans: dict[tuple[int, str | None], LaunchPlan] = {}
        self._map: Slabs | None = None
        map_at = 0
        if expert_map is not None:
            with filling(self._runtime.device, 1) as self._map:
                self._map.put("expert_map", 0, expert_map)
            map_at = self._map.addresses(0)["expert_map"]
        self._shared = [linear.gemm for linear in shared or ()]
        # kept alive with the addresses
        self._keep = (gate_up, down, shared)
        stacks = (store.operands.addresses(0) for store in (gate_up, down))
        addresses = [map_at, *(at.get(name, 0) for at in stacks for name in STACK)]
        self._operands = Order.packed(addresses) + b"".join(g.operands for g in self._shared)

    def __call__(
        self, stream: int, x: int, routed: tuple[int, ...], out: int, tokens: int,
        logits: str | None,
    ) -> None:  # fmt: skip
        """Launch a layer; allocates and waits for nothing once it is prepared.

        x, out: addresses of [T, H]
        routed: address of the logits, or those of ids and weights
        logits: type of the logits; None where ids and weights are given

        Raises:
            CaptureError: the stream is being captured, and something is not prepared.
        """
        plan = self._plans.get((tokens, logits)) or self._plan(tokens, logits, stream)
        try:
            plan(stream, x, out, Order.packed(routed) + self._operands)
        except CaptureError as error:
            raise self._unprepared(tokens, str(error)) from None

    def prepare(
        self, tokens: Iterable[int], logits: Iterable[str | None], stream: int | None
    ) -> None:
        """Build, load and reserve scratch for these numbers of tokens and types of logits.

        stream: whose scratch; None for the default stream's and that of captures to come
        """
        kinds = tuple(logits)
        for T in tokens:
            for kind in kinds if T else ():
                plan = self._plans[T, kind] = self._runtime.plans.make(self._task(T, kind))
                assert plan.needs is not None, "results of every stage but the last are scratch"
                for each in (0, None) if stream is None else (stream,):
                    self._runtime.scratch.reserve(plan.needs, each)

    def _task(self, tokens: int, logits: str | None) -> MoeTask:
        shared = [gemm.task(tokens) for gemm in self._shared]
        return self._spec.task(tokens, logits, (shared[0], shared[1]) if shared else None)

    def _plan(self, tokens: int, logits: str | None, stream: int) -> LaunchPlan:
        """Return the plan of a number of tokens that this layer sees for the first time."""
        plan = self._runtime.plans.get(self._task(tokens, logits), stream)
        if plan is None:
            raise self._unprepared(tokens, "a kernel cannot be loaded while a graph is captured")
        self._plans[tokens, logits] = plan
        return plan

    def _unprepared(self, tokens: int, reason: str) -> CaptureError:
        seen = sorted({T for T, _ in self._plans})
        known = f"it was prepared for {', '.join(map(str, seen)) or 'none'}"
        return CaptureError(
            f"{self._spec.name}: {tokens} tokens: {reason}, and {known}; call "
            f"prepare([{tokens}]) of the layer before each capture, or once with the stream that "
            "is captured"
        )


class HostMoe:
    """The references on the stacks of a layer in the host's memory."""

    def __init__(
        self, spec: MoeSpec, gate_up: Store, down: Store, expert_map: Array | None,
        shared: Shared | None,
    ) -> None:  # fmt: skip
        self._spec, self._map, self._shared = spec, expert_map, shared
        self._stores = gate_up, down

    def __call__(self, x: Array, routed: tuple[Array, ...], out: Array) -> None:
        """Compute out [T, H] of x [T, H], and of logits [T, E] or ids and weights [T, top_k]."""
        spec = self._spec
        if len(routed) == 1:
            routed = moe.route_topk(routed[0], spec.top_k, spec.scoring, spec.renormalise)
        ids, weights = routed
        here = moe.local_experts(ids, spec.num_experts, self._map)
        dtype = DTYPES[spec.gate_up.dtype]
        first, second = self._stores
        sums = _grouped(first, x, here)
        if spec.gate_up.two_step:
            sums = sums.astype(dtype)
        if spec.interleaved and not spec.gate_up.two_step:
            hidden = moe.gated_product(*moe.split_gate(sums)).astype(dtype)
        else:
            hidden = moe.silu_mul(sums.astype(dtype), spec.interleaved)
        rows = _grouped(second, hidden, here).astype(dtype)
        out[:] = moe.combine(rows, here, weights, spec.num_experts, self._of_shared(x))

    def _of_shared(self, x: Array) -> Array | None:
        if self._shared is None:
            return None
        gate_up, down = self._shared
        result: Array = down(moe.silu_mul(gate_up(x), interleaved=False))
        return result


def _grouped(store: Store, x: Array, here: Array) -> Array:
    """Return the product of each pair's row with its expert: [P, N] float32, NaN where dropped.

    x: [T, K], or a row a pair
    """
    expert_of, (tokens, top_k) = here.reshape(-1), here.shape
    out = np.full((expert_of.size, store.weight.N), np.nan, np.float32)
    for expert in np.unique(expert_of[expert_of >= 0]):
        (pairs,) = np.nonzero(expert_of == expert)
        product = np.empty((len(pairs), store.weight.N), np.float32)
        HostGemm(store, int(expert))(x[pairs // top_k if len(x) == tokens else pairs], product)
        out[pairs] = product
    return out
