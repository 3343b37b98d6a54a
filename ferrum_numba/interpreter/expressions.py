"""Expressions of a kernel, rewritten so that lanes compute them in the types numba infers."""

from __future__ import annotations

import ast
from dataclasses import replace

from ferrum_numba.interpreter import numba_types
from ferrum_numba.interpreter.calls import call
from ferrum_numba.interpreter.numba_types import types
from ferrum_numba.interpreter.operators import RING, Operators
from ferrum_numba.interpreter.term import UNKNOWN, Term, at, is_number


class Expressions(Operators):
    """Rewrites the expressions of one function."""

    def visit(self, node: ast.expr, width: int | None = None) -> Term:
        """Return a rewritten expression; `width`: only its low bits matter, that many."""
        rewrite = getattr(self, f"_{type(node).__name__.lower()}", None)
        if rewrite is None:
            return Term(node)
        found: Term = rewrite(node, width)
        return found

    # leaves

    def _constant(self, node: ast.Constant, width: int | None) -> Term:
        return self.of_value(node.value, node)

    def _name(self, node: ast.Name, width: int | None) -> Term:
        local = self.scope.local(node.id)
        if local is not None:
            return Term(node, *local)
        value = self.scope.outer(node.id)
        return Term(node) if value is UNKNOWN else self.of_value(value, node)

    def _attribute(self, node: ast.Attribute, width: int | None) -> Term:
        base = self.visit(node.value)
        copy = at(node, ast.Attribute(base.node, node.attr, node.ctx))
        kind = numba_types.attribute(base.type, node.attr) if base.type is not None else None
        if is_number(kind):
            return Term(copy, kind, kind)
        value = getattr(base.value, node.attr, UNKNOWN) if base.known else UNKNOWN
        return Term(copy, kind) if value is UNKNOWN else self.of_value(value, copy)

    def _subscript(self, node: ast.Subscript, width: int | None) -> Term:
        base, index = self.visit(node.value), self.visit(node.slice)
        copy = at(node, ast.Subscript(base.node, index.node, node.ctx))
        if isinstance(base.type, types.Array):
            return Term(copy, base.type.dtype, base.type.dtype)
        if isinstance(base.type, types.BaseTuple):
            place = int(index.value) if index.is_constant else None
            if base.known and place is not None and place < len(base.value):
                return self.of_value(base.value[place], copy)
            return Term(copy, *base.element(place))
        return Term(copy)

    def _tuple(self, node: ast.Tuple, width: int | None) -> Term:
        parts = [self.visit(part, width) for part in node.elts]
        copy = at(node, ast.Tuple([part.node for part in parts], node.ctx))
        if any(part.type is None for part in parts):
            return Term(copy)
        kind = types.BaseTuple.from_types([part.type for part in parts])
        return Term(copy, kind, tuple(part.carrier for part in parts))

    # operators

    def _binop(self, node: ast.BinOp, width: int | None) -> Term:
        name = type(node.op).__name__
        cut = width if name in RING else None
        left = self.visit(node.left, cut)
        right = self.visit(node.right, None if name == "LShift" else cut)
        return self.binary(name, left, right, node, cut)

    def _unaryop(self, node: ast.UnaryOp, width: int | None) -> Term:
        name, term = type(node.op).__name__, self.visit(node.operand)
        copy = at(node, ast.UnaryOp(node.op, term.node))
        if name == "Not":
            value = not term.value if term.is_constant else UNKNOWN
            return Term(copy, types.boolean, types.boolean, value)
        if type(term.value) in (int, float) and name == "USub":
            return self.of_value(-term.value, at(node, ast.Constant(-term.value)))
        kind = None if term.type is None else numba_types.unary(name, term.type)
        if kind is None:
            return Term(copy)
        if isinstance(kind, types.Boolean):
            return Term(at(node, ast.UnaryOp(ast.Not(), term.node)), kind, kind)
        # numba computes an integer in its own type and widens it then
        term = self.cast(term, kind if isinstance(term.type, types.Boolean) else term.type)
        return Term(at(node, ast.UnaryOp(node.op, term.node)), kind, term.carrier)

    def _compare(self, node: ast.Compare, width: int | None) -> Term:
        terms = [self.visit(part) for part in (node.left, *node.comparators)]
        names = [type(op).__name__ for op in node.ops]
        if any(name not in numba_types.OPERATORS for name in names):
            nodes = [term.node for term in terms]
            return Term(at(node, ast.Compare(nodes[0], node.ops, nodes[1:])), types.boolean)
        pairs, left = [], terms[0]
        for place, name in enumerate(names):
            right = again = terms[place + 1]
            if place + 1 < len(names) and not isinstance(right.node, ast.Name | ast.Constant):
                # an operand in the middle is computed once
                right, again = self._kept(right, f"_operand{place}")
            pairs.append(self.binary(name, left, right, node))
            left = again
        if len(pairs) == 1:
            return pairs[0]
        return Term(
            at(node, ast.BoolOp(ast.And(), [pair.node for pair in pairs])),
            types.boolean, types.boolean,
        )  # fmt: skip

    def _kept(self, term: Term, name: str) -> tuple[Term, Term]:
        """Return a term that keeps its value under a name, and the one that reads it there."""
        store = at(term.node, ast.Name(name, ast.Store()))
        kept = at(term.node, ast.NamedExpr(store, term.node))
        load = at(term.node, ast.Name(name, ast.Load()))
        return replace(term, node=kept), replace(term, node=load)

    def _boolop(self, node: ast.BoolOp, width: int | None) -> Term:
        terms = [self.visit(part) for part in node.values]
        copy = at(node, ast.BoolOp(node.op, [term.node for term in terms]))
        kind = terms[0].type
        for term in terms[1:]:
            kind = None if None in (kind, term.type) else numba_types.unified(kind, term.type)
        if all(term.is_constant for term in terms):
            value = [term.value for term in terms]
            both = all(value) if isinstance(node.op, ast.And) else any(value)
            if isinstance(kind, types.Boolean):
                return Term(copy, kind, kind, both)
        if is_number(kind) and not all(term.carrier == kind for term in terms):
            return self.cast(Term(copy, kind), kind)
        return Term(copy, kind, kind)

    def _ifexp(self, node: ast.IfExp, width: int | None) -> Term:
        test = self.visit(node.test)
        if test.is_constant:
            return self.visit(node.body if test.value else node.orelse, width)
        first, second = self.visit(node.body), self.visit(node.orelse)
        kind = None
        if first.type is not None and second.type is not None:
            kind = numba_types.unified(first.type, second.type)
        if is_number(kind) and (first.carrier != second.carrier or first.type != second.type):
            # a number of one type becomes one of the other
            first, second = (self.cast(self.settled(term), kind) for term in (first, second))
        copy = at(node, ast.IfExp(test.node, first.node, second.node))
        same = first.carrier == second.carrier
        return Term(copy, kind, first.carrier if same else None)

    def _call(self, node: ast.Call, width: int | None) -> Term:
        return call(self, node)

    def _namedexpr(self, node: ast.NamedExpr, width: int | None) -> Term:
        term = self.visit(node.value)
        self.scope.assign(node.target.id, term)
        return Term(at(node, ast.NamedExpr(node.target, term.node)), term.type, term.carrier)
