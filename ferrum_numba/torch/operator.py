"""The operators: x times a weight, sorted rows times a stack's experts, and a layer of experts.

They take the tensors of a store and its `Layout` as a string, and nothing that belongs to a
process: a graph with them can be saved, exported and captured. What else a call needs is looked up
by that string. On the host they run the reference. No gradient passes through them.
"""

from __future__ import annotations

from typing import Any

import torch

from ferrum_numba.linear.tensors import MISALIGNED
from ferrum_numba.torch import moe as experts_of_a_layer
from ferrum_numba.torch import on_gpu, on_host
from ferrum_numba.torch.layout import Layout, parsed

# the tensors of a store, in the order of `Store.names`, and its layout
OPERANDS = {
    "weight": "Tensor", "scales": "Tensor", "zero_points": "Tensor?", "bias": "Tensor?",
    "order": "Tensor?", "layout": "str",
}  # fmt: skip


def _declared(prefix: str = "") -> str:
    return ", ".join(f"{kind} {prefix}{name}" for name, kind in OPERANDS.items())


LINEAR = f"linear(Tensor x, {_declared()}) -> Tensor"
EXPERTS = f"experts(Tensor x, Tensor counts, {_declared()}) -> Tensor"
# gate and up side by side or in runs of 8, then down
STACKS = f"{_declared('up_')}, {_declared('down_')}"
MOE = f"moe(Tensor x, Tensor ids, Tensor weights, {STACKS}) -> Tensor"

# not custom_op, whose call costs twice as much
_library = torch.library.Library("ferrum_numba", "DEF")
for _schema in (LINEAR, EXPERTS, MOE):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
# a torch without CUDA has none
_current_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)


def linear_on_gpu(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    bias: torch.Tensor | None,
    order: torch.Tensor | None,
    layout: str,
    expert: int = 0,
) -> torch.Tensor:
    """Return x [..., K] times a weight [K, N], one of a stack."""
    device = x.get_device()
    found = on_gpu.known.get((layout, x.dtype, device)) or on_gpu.weights(layout, x.dtype, device)
    at = x.data_ptr()
    if not x.is_contiguous() or at & MISALIGNED:
        x = x.clone(memory_format=torch.contiguous_format)
        at = x.data_ptr()
    shape = x.shape
    if not shape or shape[-1] != found.K:
        raise on_host.wrong_columns(shape, found.K)
    operands = found.operands(weight, scales, zero_points, bias, order, expert)
    if len(shape) == 2:
        M = shape[0]
        out = x.new_empty((M, found.N))
    else:
        M = x.numel() // found.K
        out = x.new_empty((*shape[:-1], found.N))
    if M:
        stream = _current_stream(device)
        plan = found.plans.get(M) or found.plan(M, stream)
        plan(stream, at, out.data_ptr(), operands)
    return out


def experts_on_gpu(
    x: torch.Tensor,
    counts: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    bias: torch.Tensor | None,
    order: torch.Tensor | None,
    layout: str,
) -> torch.Tensor:
    """Return rows of x [S, K], sorted by expert, times their experts: [S, N].

    counts: [E] rows of each expert. Those of a GPU are waited for, except while a graph is
            captured: then every expert multiplies all rows, and each row keeps its own expert's
    """
    operands = weight, scales, zero_points, bias, order
    of = parsed(layout)
    if x.dim() != 2 or x.shape[1] != of.K:
        raise on_host.wrong_columns(x.shape, of.K)
    if counts.is_cuda and torch.cuda.is_current_stream_capturing():
        on_host.check_counts(counts, of.num_experts)
        all_rows = [linear_on_gpu(x, *operands, layout, e) for e in range(of.num_experts)]
        expert_of_row = torch.searchsorted(
            counts.cumsum(0), torch.arange(len(x), device=x.device), right=True
        )
        return torch.stack(all_rows)[expert_of_row, torch.arange(len(x), device=x.device)]
    out = x.new_empty((len(x), of.N))
    for expert, rows in on_host.segments(counts, len(x), of.num_experts):
        out[rows] = linear_on_gpu(x[rows], *operands, layout, expert)
    return out


def moe_on_gpu(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, *stacks: Any
) -> torch.Tensor:
    """Return the experts' sum for each token of x [T, H]: [T, H].

    ids:     [T, top_k] int32; a pair whose id is no expert's is dropped
    weights: [T, top_k] float32
    stacks:  tensors and layout of gate and up, then those of down
    """
    up_tensors, up, down_tensors, down = experts_of_a_layer.split(stacks)
    device, top_k = x.get_device(), ids.shape[-1] if ids.dim() else 0
    found = experts_of_a_layer.experts(up, down, top_k, x.dtype, device)
    experts_of_a_layer.check(x, ids, weights, found.H)
    if not x.is_contiguous() or x.data_ptr() & MISALIGNED:
        x = x.clone(memory_format=torch.contiguous_format)
    ids, weights = ids.contiguous(), weights.contiguous()
    tokens = x.shape[0]
    out = x.new_empty((tokens, found.H))
    if tokens:
        found(
            _current_stream(device), x.data_ptr(), ids.data_ptr(), weights.data_ptr(),
            out.data_ptr(), tokens, (up_tensors, down_tensors),
        )  # fmt: skip
    return out


def moe_fake(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, *stacks: Any
) -> torch.Tensor:
    """Return what the result looks like."""
    _, up, _, down = experts_of_a_layer.split(stacks)
    of = experts_of_a_layer.spec(parsed(up), parsed(down), max(ids.shape[-1], 1), x.dtype)
    experts_of_a_layer.check(x, ids, weights, of.down.N)
    return x.new_empty((x.shape[0], of.down.N))


def linear_fake(x: torch.Tensor, *operands: Any) -> torch.Tensor:
    """Return what the result looks like."""
    layout = _layout_in(operands)
    if x.dim() == 0 or x.shape[-1] != layout.K:
        raise on_host.wrong_columns(x.shape, layout.K)
    return x.new_empty((*x.shape[:-1], layout.N))


def experts_fake(x: torch.Tensor, counts: torch.Tensor, *operands: Any) -> torch.Tensor:
    """Return what the result looks like."""
    on_host.check_counts(counts, _layout_in(operands).num_experts)
    return linear_fake(x, *operands)


def _layout_in(operands: tuple[Any, ...]) -> Layout:
    return parsed(next(each for each in operands if isinstance(each, str)))


_library.impl("linear", linear_on_gpu, "CUDA")
_library.impl("linear", on_host.linear, "CPU")
_library.impl("experts", experts_on_gpu, "CUDA")
_library.impl("experts", on_host.experts, "CPU")
_library.impl("moe", moe_on_gpu, "CUDA")
_library.impl("moe", experts_of_a_layer.on_the_host, "CPU")
torch.library.register_fake("ferrum_numba::linear", linear_fake, lib=_library)
torch.library.register_fake("ferrum_numba::experts", experts_fake, lib=_library)
torch.library.register_fake("ferrum_numba::moe", moe_fake, lib=_library)

linear = torch.ops.ferrum_numba.linear.default
experts = torch.ops.ferrum_numba.experts.default
moe = torch.ops.ferrum_numba.moe.default
