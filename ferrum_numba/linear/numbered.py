"""The layers of this process by number, by which a traced call finds its layer."""

from __future__ import annotations

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

layers: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = count(1)


def number(layer: Any) -> int:
    """Return a new layer's number; the layer is found by it for as long as it lives."""
    given = next(_numbers)
    layers[given] = layer
    return given
