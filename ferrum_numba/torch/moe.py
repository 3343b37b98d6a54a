"""A layer of experts for the operators: what a call on a GPU looks up, and the references' call."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import torch

from ferrum_numba.errors import CaptureError, LaunchError, ProblemError
from ferrum_numba.launch.interop import HOST
from ferrum_numba.linear.launch_plan import LaunchPlan
from ferrum_numba.linear.moe_arguments import Arguments
from ferrum_numba.linear.moe_run import HostMoe
from ferrum_numba.linear.moe_spec import MoeSpec
from ferrum_numba.linear.runtime import runtime
from ferrum_numba.torch import on_gpu, on_host
from ferrum_numba.torch.layout import Layout, parsed

# tensors of a stack, and its layout
STACK_ARGUMENTS = 6
# of ids, weights and no map
_ROUTED = struct.Struct("=3Q")
# by layouts, top_k, type and number of the GPU
known: dict[tuple[str, str, int, torch.dtype, int], Experts] = {}


def refuse_misfit(gate_up: Layout, down: Layout) -> None:
    """Raise ProblemError unless two stacks can be gate and up, and down."""
    E, up = down.num_experts, [gate_up.num_experts, gate_up.K, gate_up.N]
    if up != [E, down.N, 2 * down.K]:
        raise ProblemError(
            f"gate_up must be [E, H, 2 * I] and down [E, I, H]; got {up} and {[E, down.K, down.N]}"
        )


def why_not(gate_up: Layout, down: Layout) -> str | None:
    """Return why no grouped GEMM runs two stacks as gate and up, and down; None where they do."""
    for stack in (gate_up, down):
        if stack.store != "marlin":
            return f'experts must be packed; got store "{stack.store}"'
    try:
        spec(gate_up, down, 1, torch.float16)
    except ProblemError as error:
        return str(error)
    return None


def spec(gate_up: Layout, down: Layout, top_k: int, dtype: torch.dtype) -> MoeSpec:
    """Return what a layer of two stacks is.

    Raises:
        ProblemError: stacks that do not fit each other, or a top_k or type that no kernel has.
    """
    return MoeSpec(
        gate_up.weight(dtype), down.weight(dtype), down.num_experts, top_k,
        interleaved=gate_up.interleaved,
    )  # fmt: skip


def experts(gate_up: str, down: str, top_k: int, dtype: torch.dtype, device: int) -> Experts:
    """Return the experts of two layouts on a GPU, the same again."""
    key = gate_up, down, top_k, dtype, device
    if key not in known:
        known[key] = Experts(*key)
    return known[key]


class Experts:
    """Layers of two stacks of some layouts, of one type and top_k on one GPU.

    H: columns of x and of the result
    """

    def __init__(
        self, gate_up: str, down: str, top_k: int, dtype: torch.dtype, device: int
    ) -> None:
        on = runtime(device)
        assert on is not None, "a number is a GPU"
        self._spec = spec(parsed(gate_up), parsed(down), top_k, dtype)
        self._runtime, self.H = on, self._spec.down.N
        self._stacks = [on_gpu.weights(text, dtype, device) for text in (gate_up, down)]
        self._plans: dict[int, LaunchPlan] = {}

    def __call__(
        self, stream: int, x: int, ids: int, weights: int, out: int, tokens: int, stacks: Any
    ) -> None:
        """Launch a layer on addresses, and on the tensors of both stacks.

        Raises:
            CaptureError: the stream is being captured, and a kernel would have to be loaded.
            ProblemError: tensors that are not the layouts'.
            LaunchError:  they are elsewhere, or not contiguous.
        """
        operands = _ROUTED.pack(ids, weights, 0)
        for found, tensors in zip(self._stacks, stacks, strict=True):
            operands += found.operands(*tensors)
        plan = self._plans.get(tokens) or self.plan(tokens, stream)
        plan(stream, x, out, operands)

    def plan(self, tokens: int, stream: int) -> LaunchPlan:
        """Return the plan of a number of tokens that was not seen before.

        Raises:
            CaptureError: the stream is being captured, and a kernel would have to be loaded.
        """
        made = self._runtime.plans.get(self._spec.task(tokens, None), stream)
        if made is None:
            raise CaptureError(
                f"{self._spec.name}: a kernel cannot be loaded while a graph is captured; "
                f"before it, call the experts with {tokens} tokens, or their "
                f"prepare([{tokens}], {self._spec.top_k})"
            )
        self._plans[tokens] = made
        return made


def split(arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], str, tuple[Any, ...], str]:
    """Return the tensors and layouts of both stacks, of the operator's arguments."""
    first, second = arguments[:STACK_ARGUMENTS], arguments[STACK_ARGUMENTS:]
    return first[:-1], first[-1], second[:-1], second[-1]


def check(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, H: int) -> None:
    """Raise unless tokens and their routing fit each other.

    Raises:
        ProblemError: other shapes or types.
        LaunchError:  they are not on one device.
    """
    if x.dim() != 2 or x.shape[1] != H:
        raise ProblemError(f"x must be [T, {H}]; got {list(x.shape)}")
    for name, tensor, dtype in (("ids", ids, torch.int32), ("weights", weights, torch.float32)):
        if tensor.dim() != 2 or tensor.shape[0] != x.shape[0] or tensor.shape != ids.shape:
            raise ProblemError(
                f"{name} must be [{x.shape[0]}, top_k] for x of {list(x.shape)}; "
                f"got {list(tensor.shape)}"
            )
        if tensor.dtype is not dtype:
            raise ProblemError(f"{name} must be {dtype}; got {tensor.dtype}")
        if tensor.get_device() != x.get_device():
            raise LaunchError(f"{name} must be on {x.device} like x; it is on {tensor.device}")


def on_the_host(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, *stacks: Any
) -> torch.Tensor:
    """Return the experts' sum for each token [T, H], by the references."""
    up_tensors, up, down_tensors, down = split(stacks)
    found = spec(parsed(up), parsed(down), max(ids.shape[-1], 1), x.dtype)
    check(x, ids, weights, found.down.N)
    first, second = (
        on_host.store(parsed(text), x.dtype, list(tensors))
        for text, tensors in ((up, up_tensors), (down, down_tensors))
    )
    x, ids, weights = x.contiguous(), ids.contiguous(), weights.contiguous()
    out = torch.empty_like(x)
    if len(x):
        routed: tuple[np.ndarray[Any, Any], ...] = ids.numpy(), weights.numpy()
        Arguments(found, HOST, allow_dropped=False).refuse_ids(routed[0])
        HostMoe(found, first, second, None, None)(on_host.array(x), routed, on_host.array(out))
    return out
