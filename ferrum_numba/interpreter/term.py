"""An expression of a kernel with the type that numba infers for it, and what carries its value."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ferrum_numba.interpreter.casts import scalar_type
from ferrum_numba.interpreter.numba_types import types

UNKNOWN = object()
# carried by a Python int: an index of a loop, or a constant
PYTHON = "a Python int"


@dataclass(frozen=True)
class Term:
    """A rewritten expression.

    node:    computes the value
    type:    what numba infers, None where it is not known: NumPy decides then
    carrier: what holds the value when lanes run: a Numba type (the NumPy scalar of it), PYTHON,
             for a tuple one of each element, or None for whatever comes. It holds the same number
             as `type` would, though it may be narrower: `a & b` of two uint32 is a uint64 to numba,
             and needs no more than 32 bits
    value:   the value itself, where it is known before lanes run
    """

    node: ast.expr
    type: Any = None
    carrier: Any = None
    value: Any = UNKNOWN

    @property
    def known(self) -> bool:
        """Whether the value is known before lanes run."""
        return self.value is not UNKNOWN

    @property
    def is_constant(self) -> bool:
        """Whether it is a number that is known before lanes run."""
        return isinstance(self.value, int | float | np.number | np.bool_)

    @property
    def is_integer(self) -> bool:
        """Whether numba takes it for an integer of any width; a bool is none."""
        return isinstance(self.type, types.Integer)

    def element(self, index: int | None) -> tuple[Any, Any]:
        """Return type and carrier of an element of a tuple; index None: of any of them."""
        kinds = tuple(self.type)
        carriers = self.carrier if isinstance(self.carrier, tuple) else (None,) * len(kinds)
        if self.carrier == self.type:
            carriers = kinds
        if index is not None and -len(kinds) <= index < len(kinds):
            return kinds[index], carriers[index]
        if index is None and len(set(kinds)) == 1:
            return kinds[0], carriers[0] if len(set(carriers)) == 1 else None
        return None, None


def is_number(kind: Any) -> bool:
    """Tell whether values of a type are scalars: integers, floats, bools."""
    return isinstance(kind, types.Integer | types.Float | types.Boolean)


@cache
def bits(kind: Any) -> int:
    """Return the width of a number type."""
    return 8 * scalar_type(kind).itemsize


@cache
def promoted(a: Any, b: Any) -> Any:
    """Return the type in which NumPy computes with two, None if that is no integer."""
    found = np.promote_types(scalar_type(a), scalar_type(b))
    return getattr(types, found.name) if found.kind in "iu" else None


@cache
def holds(wide: Any, narrow: Any) -> bool:
    """Tell whether a number type has every value of another, so that NumPy's own cast will do."""
    return bool(np.can_cast(scalar_type(narrow), scalar_type(wide), "safe"))


def in_bits(value: int, kind: Any) -> int:
    """Return an integer as it is in a register of a type."""
    dtype = scalar_type(kind)
    lowest = -(1 << (8 * dtype.itemsize - 1)) if dtype.kind == "i" else 0
    return ((value - lowest) & ((1 << 8 * dtype.itemsize) - 1)) + lowest


def at(place: ast.AST, node: Any) -> Any:
    """Give a new node the place in the source of another."""
    return ast.copy_location(node, place)
