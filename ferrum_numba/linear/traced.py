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


def call(layer: Any, x: Any) -> Any:
    """Return x times a layer's weight."""
    return torch.ops.ferrum_numba_layer.call(x, layer.number, layer.out_features)


def _call(x: Any, layer: int, columns: int) -> Any:
    found = layers.get(layer)
    if found is None:
        raise LaunchError("the layer that was compiled is gone; keep it as long as its function")
    return found(x)


def _call_fake(x: Any, layer: int, columns: int) -> Any:
    return x.new_empty((*x.shape[:-1], columns))


_library.impl("call", _call, "CompositeExplicitAutograd")
torch.library.register_fake("ferrum_numba_layer::call", _call_fake, lib=_library)
