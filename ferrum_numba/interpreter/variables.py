"""What variables hold: where they are set, and where ways through a function meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ferrum_numba.interpreter import numba_types
from ferrum_numba.interpreter.term import UNKNOWN, is_number

# what a variable holds at some place: type, carrier and value, as in `Term`
Local = tuple[Any, Any, Any]
Locals = dict[str, Local]
NOTHING: Local = (None, None, UNKNOWN)


def joined(first: Local, second: Local) -> Local:
    """Return what a variable holds that may hold either."""
    if first == second:
        return first
    if first[0] == second[0]:
        carrier = first[1] if first[1] == second[1] else None
        return first[0], carrier, first[2] if first[2] is second[2] else UNKNOWN
    if first[0] is None or second[0] is None:
        return NOTHING
    kind = numba_types.unified(first[0], second[0])
    return (kind, kind if is_number(kind) else None, UNKNOWN)


def met(ways: Sequence[Locals | None]) -> Locals | None:
    """Return what variables hold where ways meet; None for a way that ends before."""
    found: Locals | None = None
    for way in ways:
        if way is None:
            continue
        if found is None:
            found = dict(way)
            continue
        for name, local in way.items():
            # numba makes nothing of a variable that one of the ways has not set
            found[name] = joined(found[name], local) if name in found else local
    return found
