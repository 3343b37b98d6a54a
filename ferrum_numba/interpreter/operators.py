"""Operators between numbers, computed by NumPy in the types that numba infers.

NumPy's scalars do most of it: where both would give the same number, an operator stays what it
is. Casts are added where they would not: `uint32 + uint32` is 64 bits wide to numba, a float
literal is a double, `uint64 < int64` compares doubles. What goes straight into a cast of w bits,
as in `uint32(a + b)`, needs only w bits right.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ferrum_numba.errors import InterpreterError
from ferrum_numba.interpreter import numba_types
from ferrum_numba.interpreter.arithmetic import SAFE_OPERATORS, floor_divide_signed
from ferrum_numba.interpreter.casts import as_cast, scalar_type
from ferrum_numba.interpreter.numba_types import types
from ferrum_numba.interpreter.term import (
    PYTHON,
    Term,
    at,
    bits,
    holds,
    in_bits,
    is_number,
    promoted,
)

if TYPE_CHECKING:
    from ferrum_numba.interpreter.functions import Body

# the low bits of their result depend on the low bits of their operands only
RING = {"Add", "Sub", "Mult", "BitAnd", "BitOr", "BitXor", "LShift"}
# of unsigned numbers of one width, they give no number that is wider
_NARROW = {"BitAnd", "BitOr", "BitXor", "RShift", "FloorDiv", "Mod"}
# of signed ones, too
_NARROW_SIGNED = _NARROW - {"FloorDiv"}
_ORDER = ("Lt", "LtE", "Gt", "GtE", "Eq", "NotEq")
_FOLDED: dict[str, Any] = {
    name: numba_types.OPERATORS[name] for name in (*RING, "RShift", "FloorDiv", "Mod", *_ORDER)
}


class Operators:
    """Rewrites operators and casts of one function."""

    def __init__(self, scope: Body) -> None:
        self.scope = scope

    # casts

    def constant(self, value: Any, kind: Any, place: ast.AST) -> Term:
        """Return a number of a type, made before lanes run."""
        scalar = as_cast(kind)(value)
        return Term(self.scope.name(scalar, place), kind, kind, scalar)

    def cast(self, term: Term, kind: Any) -> Term:
        """Return the value of a term in a type, carried by it."""
        if term.carrier == kind:
            return replace(term, type=kind)
        if term.is_constant and is_number(kind):
            return self.constant(term.value, kind, term.node)
        # NumPy's own constructor is faster, where it does not have to cut
        plain = is_number(term.carrier) and holds(kind, term.carrier)
        convert = scalar_type(kind).type if plain else as_cast(kind)
        return Term(self.apply(convert, [term.node], term.node), kind, kind)

    def settled(self, term: Term) -> Term:
        """Return a number carried by its own type, or by a Python int where that is an int64."""
        if not is_number(term.type) or (term.carrier == PYTHON and term.type == types.int64):
            return term
        return self.cast(term, term.type)

    def apply(self, function: Any, arguments: list[ast.expr], place: ast.AST) -> ast.expr:
        """Return a call of a function that is known before lanes run."""
        called: ast.expr = at(place, ast.Call(self.scope.name(function, place), arguments, []))
        return called

    # constants

    def of_value(self, value: Any, node: ast.expr) -> Term:
        """Return what is known before lanes run."""
        if isinstance(value, bool):
            return Term(node, types.boolean, types.boolean, value)
        if isinstance(value, int):
            small = -(1 << 63) <= value < 1 << 63
            return Term(node, types.int64 if small else types.uint64, PYTHON, value)
        if isinstance(value, float):
            # the value of a literal stays Python's, by which it is told from that of a cast
            return replace(self.constant(value, types.float64, node), value=value)
        if isinstance(value, np.number | np.bool_):
            kind = numba_types.of_value(value)
            return Term(node, kind, kind, value)
        if isinstance(value, tuple):
            parts = [self.of_value(part, node) for part in value]
            if parts and all(is_number(part.type) for part in parts):
                kind = types.BaseTuple.from_types([part.type for part in parts])
                return Term(node, kind, tuple(part.carrier for part in parts), value)
        asked = isinstance(value, ModuleType | type | types.Type)
        return Term(node, numba_types.of_named(value) if asked else None, None, value)

    # operators

    def binary(
        self, name: str, left: Term, right: Term, node: ast.AST, width: int | None = None
    ) -> Term:
        """Return an operator of the AST, by the name of its class, between two terms."""
        if left.type is None or right.type is None:
            return Term(binary_node(name, left, right, node))
        if left.is_constant and right.is_constant and name in _FOLDED:
            folded = self._fold(name, left, right, node)
            if folded is not None:
                return folded
        wanted = right.type
        if name == "Pow" and isinstance(right.value, int):
            wanted = types.IntegerLiteral(right.value)
        found = numba_types.signature(numba_types.OPERATORS[name], left.type, wanted)
        if found is None or not is_number(found.return_type):
            kind = None if found is None else found.return_type
            return Term(binary_node(name, left, right, node), kind)
        if isinstance(found.return_type, types.Integer) and name != "Pow":
            return self._integers(name, left, right, node, found.return_type, width)
        return self._others(name, left, right, node, found)

    def _fold(self, name: str, left: Term, right: Term, node: ast.AST) -> Term | None:
        """Compute with two literals: of ints anything, of others whether they are equal or less.

        A branch on it is left out, as numba does before it knows types.
        """
        kinds = {type(left.value), type(right.value)}
        if kinds != {int} and not (kinds <= {int, float} and name in _ORDER):
            return None
        try:
            value = _FOLDED[name](left.value, right.value)
        except (ArithmeticError, ValueError, MemoryError):
            return None
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            return None
        return self.of_value(value, at(node, ast.Constant(value)))

    def _integers(
        self, name: str, left: Term, right: Term, node: ast.AST, kind: Any, width: int | None
    ) -> Term:
        """Compute an integer of type `kind`, or no more than its low `width` bits."""
        if width is not None:
            return self._cut(name, left, right, node, kind, width)
        left, right = self._alike(left, right)
        carrier = self._native(name, left, right, kind)
        if carrier is None:
            left, right, carrier = self.cast(left, kind), self.cast(right, kind), kind
        if name == "LShift" and carrier == PYTHON:
            left, carrier = self.cast(left, kind), kind
        if name == "FloorDiv" and carrier == types.int64 and not right.is_constant:
            quotient = self.apply(floor_divide_signed, [left.node, right.node], node)
            return Term(quotient, kind, carrier)
        return Term(binary_node(name, left, right, node), kind, carrier)

    def _alike(self, left: Term, right: Term) -> tuple[Term, Term]:
        """Give a Python int that is a constant the other's type, where it fits into it."""
        for one, other in ((left, right), (right, left)):
            fits = (
                one.is_constant
                and one.carrier == PYTHON
                and isinstance(other.carrier, types.Integer)
                and in_bits(one.value, other.carrier) == one.value
            )
            if fits:
                typed = self.constant(one.value, other.carrier, one.node)
                return (typed, right) if one is left else (left, typed)
        return left, right

    def _native(self, name: str, left: Term, right: Term, kind: Any) -> Any:
        """Return what carries NumPy's result where that is numba's number, or None."""
        if left.carrier != right.carrier or left.carrier is None:
            return None
        if left.carrier == PYTHON:
            return PYTHON if kind == types.int64 else None
        if left.carrier == kind:
            return kind
        if not isinstance(left.carrier, types.Integer) or not holds(kind, left.carrier):
            return None
        narrow = _NARROW_SIGNED if left.carrier.signed else _NARROW
        return left.carrier if name in narrow else None

    def _cut(
        self, name: str, left: Term, right: Term, node: ast.AST, kind: Any, width: int
    ) -> Term:
        """Compute in any type that has the bits that matter."""
        if name != "LShift":
            left, right = (
                self._low_bits(left, right.carrier, width),
                self._low_bits(right, left.carrier, width),
            )
        elif right.is_constant and isinstance(left.carrier, types.Integer):
            right = self.cast(right, left.carrier)
        both = isinstance(left.carrier, types.Integer) and isinstance(right.carrier, types.Integer)
        carrier = promoted(left.carrier, right.carrier) if both else None
        if carrier is None or bits(carrier) < width:
            carrier = types.uint64 if width > 32 else types.uint32
            left, right = self.cast(left, carrier), self.cast(right, carrier)
        return Term(binary_node(name, left, right, node), kind, carrier)

    def _low_bits(self, term: Term, carrier: Any, width: int) -> Term:
        """Give a constant the type of the other operand, if that has the bits that matter."""
        if term.is_constant and term.carrier == PYTHON and isinstance(carrier, types.Integer):
            return self.constant(term.value, carrier, term.node) if bits(carrier) >= width else term
        return term

    def _others(self, name: str, left: Term, right: Term, node: ast.AST, found: Any) -> Term:
        """Compute a float, a bool or a power."""
        kind = found.return_type
        if types.float16 in found.args:
            raise InterpreterError(
                f"{self.scope.filename}:{getattr(node, 'lineno', 0)}: computes with float16, for "
                "which numba calls functions that are not linked; use float32, or the f16x2 "
                "instructions of ferrum_numba.ptx"
            )
        if types.float64 in (kind, *found.args):
            self.scope.remark(node)
        if name == "Pow":
            static = isinstance(found.args[1], types.Integer) and right.is_constant
            base = kind if static else found.args[0]
            left, right = self.cast(left, base), self.cast(right, types.unliteral(found.args[1]))
        elif isinstance(kind, types.Boolean) and self._same_order(left, right, found.args):
            return Term(binary_node(name, *self._alike(left, right), node), kind, kind)
        else:
            left, right = self.cast(left, found.args[0]), self.cast(right, found.args[1])
            if name == "Div":
                left, right = self.cast(left, kind), self.cast(right, kind)
        if name in SAFE_OPERATORS:
            compute = self.apply(SAFE_OPERATORS[name], [left.node, right.node], node)
            if name == "Pow":
                compute = self.apply(as_cast(kind), [compute], node)
        else:
            compute = binary_node(name, left, right, node)
        return Term(compute, kind, kind)

    def _same_order(self, left: Term, right: Term, arguments: Any) -> bool:
        """Tell whether numbers compare as they do in the types that numba compares them in."""
        whole = (types.Integer, types.Boolean)
        if not all(isinstance(kind, whole) for kind in arguments):
            return False
        # numba compares bools and whole numbers by their bits
        return all(
            term.carrier == PYTHON or isinstance(term.carrier, types.Integer | types.Boolean)
            for term in (left, right)
        ) and all(
            holds(kind, term.type) or term.is_constant
            for kind, term in zip(arguments, (left, right), strict=True)
        )


def binary_node(name: str, left: Term, right: Term, node: ast.AST) -> ast.expr:
    """Return the syntax of an operator of the AST, by the name of its class."""
    op = getattr(ast, name)()
    if isinstance(op, ast.cmpop):
        made: ast.expr = ast.Compare(left.node, [op], [right.node])
    else:
        made = ast.BinOp(left.node, op, right.node)
    placed: ast.expr = at(node, made)
    return placed
