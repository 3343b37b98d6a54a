"""A call of a layer as torch.compile sees it: an operator, opaque, of a tensor and a number.

Imported where torch traces a call. The number is the layer's in this process, so a graph with it
can be run here and not saved: for that, a layer must be a module, as `ferrum_numba.torch` has them.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import torch

from ferrum_numba.errors import LaunchError
from ferrum_numba.linear.layer import Linear

_layers: WeakValueDictionary[int, Linear] = WeakValueDictionary()
_library = torch.library.Library("ferrum_numba_layer", "DEF")
_library.define(
    "call(Tensor x, int layer, int columns) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)


def call(layer: Linear, x: Any) -> Any:
    """Return x times a layer's weight."""
    return torch.ops.ferrum_numba_layer.call(x, _number_of(layer), layer.out_features)


def _numbered(layer: Linear) -> int:
    """Return the number of a layer, the same for as long as it lives."""
    number = id(layer)
    _layers[number] = layer
    return number


# torch asks when it traces a call, and keeps the answer
_number_of = torch.compiler.assume_constant_result(_numbered)


def _call(x: Any, layer: int, columns: int) -> Any:
    found = _layers.get(layer)
    if found is None:
        raise LaunchError("the layer that was compiled is gone; keep it as long as its function")
    return found(x)


def _call_fake(x: Any, layer: int, columns: int) -> Any:
    return x.new_empty((*x.shape[:-1], columns))


_library.impl("call", _call, "CompositeExplicitAutograd")
torch.library.register_fake("ferrum_numba_layer::call", _call_fake, lib=_library)
