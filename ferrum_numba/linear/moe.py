"""A layer of experts: routing, two grouped GEMMs with the gate between them, and the sum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import LaunchError, ProblemError
from ferrum_numba.gptq.tensors import GptqTensors
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.launch import Buffer, stream_handle
from ferrum_numba.launch.interop import HOST
from ferrum_numba.linear import arrays
from ferrum_numba.linear.arrays import Seen
from ferrum_numba.linear.layer import Linear
from ferrum_numba.linear.moe_arguments import ROUTED_TYPES, Arguments, Routed
from ferrum_numba.linear.moe_run import GpuMoe, HostMoe
from ferrum_numba.linear.moe_spec import MoeSpec
from ferrum_numba.linear.moe_stacks import GateUp, checked_map, make_stacks
from ferrum_numba.linear.numbered import number
from ferrum_numba.linear.stores import Store
from ferrum_numba.linear.tensors import Tensors


class MoeLayer:
    """out[t] = sum over the experts e of token t of w * down_e(silu(gate_e(x[t])) * up_e(x[t])).

    Made by `from_gptq`. It holds the weights on their device; results between its kernels are
    scratch, which all layers of a stream share.

    spec:          what it is
    gate_up, down: hold the weights
    allow_dropped: ids that are no expert's are dropped on the host too
    """

    def __init__(
        self,
        spec: MoeSpec,
        gate_up: Store,
        down: Store,
        *,
        expert_map: Array | None = None,
        shared: tuple[Linear, Linear] | None = None,
        allow_dropped: bool = False,
    ) -> None:
        self.spec, self.name = spec, spec.name
        self.gate_up, self.down = gate_up, down
        self._H, self._dtype = spec.down.N, spec.down.dtype
        self._runtime = gate_up.runtime
        self._device = HOST if self._runtime is None else self._runtime.device.index
        self.number, self._tensors = number(self), Tensors(self._dtype, self._device)
        self._arguments = Arguments(spec, self._device, allow_dropped)
        if shared is not None:
            self._arguments.refuse_shared(*shared)
        parts = (spec, gate_up, down, expert_map, shared)
        self._on_host = HostMoe(*parts) if self._runtime is None else None
        self._on_gpu = None if self._runtime is None else GpuMoe(*parts)

    @classmethod
    def from_gptq(
        cls,
        gate_up: Iterable[GateUp],
        down: Iterable[GptqTensors],
        *,
        top_k: int,
        num_experts: int | None = None,
        scoring: Literal["softmax", "sigmoid"] = "softmax",
        renormalize: bool = True,
        act: Literal["silu"] = "silu",
        device: Any = "cuda",
        dtype: str = "fp16",
        bias_mode: Literal["fused", "two_step"] = "fused",
        expert_map: Any = None,
        shared: tuple[Linear, Linear] | None = None,
        allow_dropped: bool = False,
        batch_invariant: bool = False,
    ) -> MoeLayer:
        """Put the experts of a block on a device, one after the other as they come.

        Args:
            gate_up:     of each expert gate and up side by side, such as `GptqCheckpoint.experts`
                         returns; or a pair of both
            down:        of each expert
            top_k:       experts of a token
            num_experts: how many will come; without it what has no length is read to its end first
            scoring:     how logits become scores: "softmax" over all experts, "sigmoid" of each
            renormalize: the weights of a token add up to 1
            act:         of the gate
            device, dtype, bias_mode: as for `MarlinLinear`
            expert_map:  [E_global] integers, where only some experts are here: of each id the
                         number of its expert in the stacks, or -1; the result lacks the others'
            shared:      two `MarlinLinear` on the same device, gate and up side by side and down,
                         whose result for each token is added
            allow_dropped: ids that are no expert's are dropped, as -1 is on a GPU; without it the
                         host, where it sees the ids, refuses them
            batch_invariant: only kernels whose result for a token has the same bits whatever the
                         other tokens are

        Raises:
            ProblemError: stacks that do not fit each other, or cannot be held packed.
            DeviceError:  no such device.
        """
        if act != "silu":
            raise ProblemError(f'act must be "silu"; got {act!r}')
        first, second = make_stacks(
            gate_up, down, num_experts, device=device, dtype=dtype, bias_mode=bias_mode
        )
        try:
            name = first.weight.name
            here = checked_map(name, expert_map, first.num_experts)
            spec = MoeSpec(
                first.weight, second.weight, first.num_experts, top_k, scoring, renormalize,
                0 if here is None else len(here), invariant=batch_invariant,
            )  # fmt: skip
            return cls(
                spec, first, second, expert_map=here, shared=shared, allow_dropped=allow_dropped
            )
        except BaseException:
            first.operands.free()
            second.operands.free()
            raise

    def forward(
        self,
        x: Any,
        router_logits: Any,
        out: Any,
        stream: Any = None,
        *,
        topk_ids: Any = None,
        topk_weights: Any = None,
    ) -> None:
        """Compute the experts' sum for each token; on a GPU, when the stream gets there.

        On a GPU nothing is allocated and nobody waits, once so many tokens and the stream were seen
        before or `prepare` was called for them; then it can be captured in a graph, which serves
        any routing of so many tokens.

        Args:
            x:             [..., H] contiguous, of the layer's type, on its device
            router_logits: [..., E], fp16, bf16 or fp32; or None, and instead
            topk_ids, topk_weights: [..., top_k], int32 and fp32; a pair whose id is no expert's
                           here is dropped
            out:           [..., H] like x, of which it may be the memory
            stream:        handle or stream object; by default that on which x's library works now

        Raises:
            ProblemError: shapes or types that are not the layer's, or ids that may not be.
            LaunchError:  arrays elsewhere, not contiguous or overlapping.
            CaptureError: the stream is being captured, and something is not prepared.
        """
        handle = self._arguments.handle(x, stream)
        seen, target = self._arguments.see("x", x, handle), self._arguments.see("out", out, handle)
        tokens = self._arguments.tokens(seen)
        self._arguments.refuse_out(seen, target)
        routed = self._arguments.routed(seen, (router_logits, topk_ids, topk_weights), handle)
        for what in routed.arrays:
            self._arguments.refuse_overlap(target, what)
        if tokens:
            self._run(handle, tokens, seen, routed, target)

    def __call__(
        self, x: Any, router_logits: Any = None, *, topk_ids: Any = None, topk_weights: Any = None
    ) -> Any:
        """Return the experts' sum for each token, [..., H], as an array of the kind of x.

        Arguments as `forward` has them; NumPy arrays are copied to a GPU and back.
        """
        if self._tensors.kind is None:
            # torch may have been imported since
            self._tensors = Tensors(self._dtype, self._device)
        tensors = self._tensors
        if type(x) is tensors.kind and tensors.compiling():
            from ferrum_numba.linear import traced

            return traced.call_experts(self, x, router_logits, topk_ids, topk_weights)
        x, *given = (
            None if each is None else arrays.contiguous(each)
            for each in (x, router_logits, topk_ids, topk_weights)
        )  # fmt: skip
        if isinstance(x, np.ndarray) and self._device != HOST:
            return self._through_the_gpu(x, given)
        self._arguments.tokens(self._arguments.see("x", x, self._arguments.handle(x, None)))
        out = arrays.empty_like(x, tuple(x.shape))
        if out is None:
            raise LaunchError(
                f"{self.name}: cannot make an output of {type(x).__name__}; call forward with one "
                "of your own"
            )
        logits, ids, weights = given
        self.forward(x, logits, out, topk_ids=ids, topk_weights=weights)
        return out

    def prepare(
        self,
        tokens: int | Iterable[int],
        stream: Any = None,
        *,
        logits: Iterable[str | None] | None = None,
    ) -> None:
        """Build and load what some numbers of tokens need, and reserve its scratch, for captures.

        stream: that will be captured, once or often; by default the next new one that is
        logits: types of logits that will come, None among them for ids and weights; by default the
                layer's own type, fp32, and ids and weights
        """
        if self._on_gpu is not None:
            handle = None if stream is None else stream_handle(stream)
            kinds = dict.fromkeys((self._dtype, "fp32", None) if logits is None else logits)
            self._on_gpu.prepare(
                tokens if isinstance(tokens, Iterable) else [tokens], kinds, handle
            )

    def _run(self, stream: int | None, tokens: int, x: Seen, routed: Routed, out: Seen) -> None:
        if self._on_gpu is not None:
            assert stream is not None, "a GPU has streams"
            places = tuple(array.address for array in routed.arrays)
            self._on_gpu(stream, x.address, places, out.address, tokens, routed.logits)
            return
        assert self._on_host is not None, "the layer is somewhere"
        given = tuple(
            arrays.host_array(a.address, (tokens, a.shape[-1]), ROUTED_TYPES[a.dtype])
            for a in routed.arrays
        )
        if routed.logits is None:
            self._arguments.refuse_ids(given[0])
        rows, result = (
            arrays.host_array(a.address, (tokens, self._H), DTYPES[self._dtype]) for a in (x, out)
        )
        self._on_host(rows, given, result)

    def _through_the_gpu(self, x: Array, given: Iterable[Any]) -> Array:
        """Return the result for NumPy arrays, copied to the GPU and back."""
        assert self._runtime is not None, "it is on a GPU"
        device = self._runtime.device
        # as their copies will be
        seen = self._arguments.see("x", x, None)._replace(device=self._device, address=0)
        tokens = self._arguments.tokens(seen)
        host = tuple(None if a is None else np.asarray(a) for a in given)
        copies = self._arguments.routed(seen, host, None, copied=True)
        if host[1] is not None:
            self._arguments.refuse_ids(host[1])
        if tokens == 0:
            return np.empty(x.shape, x.dtype)
        with device.activated():
            source, target = Buffer.from_array(device, x), Buffer.empty(device, x.nbytes)
            buffers = [Buffer.from_array(device, a) for a in host if a is not None]
            there = tuple(
                a._replace(address=b.pointer) for a, b in zip(copies.arrays, buffers, strict=True)
            )
            at = seen._replace(address=source.pointer)
            self._run(
                0, tokens, at, copies._replace(arrays=there), at._replace(address=target.pointer)
            )
            return target.read(x.shape, x.dtype)
