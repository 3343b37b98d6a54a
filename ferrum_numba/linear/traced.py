"""A call of a layer as torch.compile sees it: an operator, opaque, of a tensor and a number.

Imported where torch traces a call. The number is the layer's in this process, so a graph with it
can be run here and not saved: for that, a layer must be a module, as `ferrum_numba.torch` has them.
"""

from __future__ import annotations

from typing import Any

import torch

from ferrum_numba.errors import LaunchError
from ferrum_numba.linear.numbered import layers

_library = torch.library.Library("ferrum_numba_layer", "DEF")
_library.define(
    "call(Tensor x, int layer, int columns) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)
_library.define(
    "experts(Tensor x, Tensor? router_logits, Tensor? topk_ids, Tensor? topk_weights, int layer) "
    "-> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


def call(layer: Any, x: Any) -> Any:
    """Return x times a layer's weight."""
    return torch.ops.ferrum_numba_layer.call(x, layer.number, layer.out_features)


def call_experts(layer: Any, x: Any, router_logits: Any, topk_ids: Any, topk_weights: Any) -> Any:
    """Return what a layer of experts makes of tokens."""
    return torch.ops.ferrum_numba_layer.experts(
        x, router_logits, topk_ids, topk_weights, layer.number
    )


def _call(x: Any, layer: int, columns: int) -> Any:
    return _found(layer)(x)


def _experts(x: Any, router_logits: Any, topk_ids: Any, topk_weights: Any, layer: int) -> Any:
    return _found(layer)(x, router_logits, topk_ids=topk_ids, topk_weights=topk_weights)


def _found(layer: int) -> Any:
    found = layers.get(layer)
    if found is None:
        raise LaunchError("the layer that was compiled is gone; keep it as long as its function")
    return found


def _call_fake(x: Any, layer: int, columns: int) -> Any:
    return x.new_empty((*x.shape[:-1], columns))


def _experts_fake(x: Any, *others: Any) -> Any:
    return x.new_empty(x.shape)


_library.impl("call", _call, "CompositeExplicitAutograd")
_library.impl("experts", _experts, "CompositeExplicitAutograd")
torch.library.register_fake("ferrum_numba_layer::experts", _experts_fake, lib=_library)
torch.library.register_fake("ferrum_numba_layer::call", _call_fake, lib=_library)
