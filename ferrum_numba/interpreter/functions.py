"""Functions of a kernel, rewritten for the types of their arguments as numba compiles them.

A variable may be given values of several types; where ways meet, numba makes one of them, and so
do casts at the end of each way: of a branch, before a loop, at the end of its body.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from ferrum_numba.interpreter.casts import as_cast
from ferrum_numba.interpreter.expressions import Expressions
from ferrum_numba.interpreter.numba_types import types
from ferrum_numba.interpreter.term import PYTHON, UNKNOWN, Term, at, bits, is_number
from ferrum_numba.interpreter.variables import NOTHING, Local, Locals, joined, met


@dataclass
class _Loop:
    """What variables hold where a loop begins a turn, and where it is left by a jump."""

    head: Locals
    continues: list[Locals] = field(default_factory=list)
    breaks: list[Locals] = field(default_factory=list)


class Unsupported(Exception):
    """The source cannot be rewritten; lanes run the function as it is."""


class Body:
    """Rewrites one function for arguments of given types."""

    def __init__(
        self,
        function: FunctionType,
        arguments: Mapping[str, Local],
        outer: Callable[[str], Any],
        name: Callable[[Any], str],
        specialised: Callable[..., tuple[Any, Any, Any]],
        remark: Callable[[int], None],
        leaves: Any = None,
    ) -> None:
        code = function.__code__
        self.filename = code.co_filename
        self.variables = {*code.co_varnames, *code.co_cellvars}
        self.arguments = arguments
        self.outer = outer
        self._name = name
        self._specialised = specialised
        self._remark = remark
        # what a kernel's `return` returns
        self._leaves = leaves
        self.expressions = Expressions(self)
        self.result: Local | None = None
        self.reachable: Locals | None = None
        # variables that were read where nothing is known of them, yet
        self.missed: set[str] = set()
        self._returns_differ = False
        self.loops: list[_Loop] = []

    # what expressions ask

    def local(self, name: str) -> Local | None:
        """Return what a variable of the function holds; None for a name from outside."""
        if name not in self.variables:
            return None
        found = (self.reachable or {}).get(name)
        if found is None:
            self.missed.add(name)
            return NOTHING
        return found

    def name(self, value: Any, place: ast.AST) -> ast.expr:
        """Return an expression of a value that is known before lanes run."""
        found: ast.expr = at(place, ast.Name(self._name(value), ast.Load()))
        return found

    def assign(self, name: str, term: Term) -> None:
        """Note what a variable holds from here on."""
        if self.reachable is not None:
            value = UNKNOWN if is_number(term.type) else term.value
            self.reachable[name] = (term.type, term.carrier, value)

    def specialised(self, function: FunctionType, terms: Mapping[str, Term]) -> Any:
        """Return a device function for these arguments, and type and carrier of its result."""
        given = {
            name: (t.type, t.carrier, UNKNOWN if is_number(t.type) else t.value)
            for name, t in terms.items()
        }
        return self._specialised(function, given)

    def remark(self, node: ast.AST) -> None:
        """Note that what stands here is computed in doubles."""
        self._remark(getattr(node, "lineno", 0))

    @staticmethod
    def is_foreign(function: FunctionType) -> bool:
        """Tell whether a function is numba's or NumPy's own, not the kernel's."""
        return (function.__module__ or "").partition(".")[0] in {"numba", "numpy", "math"}

    # statements

    def rewritten(self, body: Sequence[ast.stmt]) -> list[ast.stmt]:
        """Return the statements of the function; `result` is then what it returns."""
        first = None
        while True:
            self.reachable = dict(self.arguments)
            statements = self._all(body)
            # a `return` met before is to know the types of those behind it
            if self.result == first or not self._returns_differ:
                return statements or [ast.Pass()]
            first = self.result

    def _all(self, nodes: Sequence[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for node in nodes:
            if self.reachable is None:
                break
            rewrite = getattr(self, f"_{type(node).__name__.lower()}", self._other)
            found += rewrite(node)
        return found

    def _other(self, node: ast.stmt) -> list[ast.stmt]:
        """Leave what numba does not compile as it is."""
        if isinstance(node, ast.Global | ast.Nonlocal):
            raise Unsupported
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                self.assign(inner.id, Term(inner))
        return [node]

    def _pass(self, node: ast.Pass) -> list[ast.stmt]:
        return [node]

    def _expr(self, node: ast.Expr) -> list[ast.stmt]:
        if isinstance(node.value, ast.Constant):
            return [node]
        return [at(node, ast.Expr(self.expressions.visit(node.value).node))]

    def _return(self, node: ast.Return) -> list[ast.stmt]:
        left = ast.Constant(None) if self._leaves is None else self.name(self._leaves, node)
        term = Term(at(node, left), types.none)
        if node.value is not None:
            term = self.expressions.visit(node.value)
        here = (term.type, term.carrier, UNKNOWN)
        self._returns_differ |= self.result not in (None, here)
        self.result = here if self.result is None else joined(self.result, here)
        kind = self.result[0]
        if kind != term.type and is_number(kind) and is_number(term.type):
            term = self.expressions.cast(self.expressions.settled(term), kind)
        self.reachable = None
        return [at(node, ast.Return(term.node))]

    # assignments

    def _assign(self, node: ast.Assign) -> list[ast.stmt]:
        term = self.expressions.visit(node.value, self._width(node.targets))
        targets = [self._target(target, term) for target in node.targets]
        return [at(node, ast.Assign(targets, term.node))]

    def _width(self, targets: Sequence[ast.expr]) -> int | None:
        """Return the bits that an array keeps of an integer."""
        (target, *others) = targets
        if others or not isinstance(target, ast.Subscript):
            return None
        kind = self.expressions.visit(target.value).type
        whole = isinstance(kind, types.Array) and isinstance(kind.dtype, types.Integer)
        return bits(kind.dtype) if whole else None

    def _annassign(self, node: ast.AnnAssign) -> list[ast.stmt]:
        if node.value is None:
            return []
        return self._assign(at(node, ast.Assign([node.target], node.value)))

    def _target(self, target: ast.expr, term: Term) -> ast.expr:
        if isinstance(target, ast.Name):
            self.assign(target.id, term)
            return target
        if isinstance(target, ast.Subscript):
            base, index = (self.expressions.visit(part) for part in (target.value, target.slice))
            found: ast.expr = at(target, ast.Subscript(base.node, index.node, ast.Store()))
            return found
        if isinstance(target, ast.Tuple | ast.List):
            for place, part in enumerate(target.elts):
                kind, carrier = None, None
                if isinstance(term.type, types.BaseTuple) and not isinstance(part, ast.Starred):
                    kind, carrier = term.element(place)
                self._target(part, Term(target, kind, carrier))
        return target

    def _augassign(self, node: ast.AugAssign) -> list[ast.stmt]:
        target = node.target
        if isinstance(target, ast.Name):
            load: ast.expr = at(target, ast.Name(target.id, ast.Load()))
            return self._assign(at(node, ast.Assign([target], _binop(load, node))))
        if isinstance(target, ast.Subscript):
            base = self.expressions.visit(target.value)
            if isinstance(base.type, types.Array):
                # the index is computed once
                index = at(target, ast.Name("_index", ast.Store()))
                self.variables.add("_index")
                first = self._assign(at(node, ast.Assign([index], target.slice)))
                again = at(target, ast.Name("_index", ast.Load()))
                place = at(target, ast.Subscript(target.value, again, ast.Store()))
                load = at(target, ast.Subscript(target.value, again, ast.Load()))
                return first + self._assign(at(node, ast.Assign([place], _binop(load, node))))
        value = self.expressions.visit(node.value)
        return [at(node, ast.AugAssign(target, node.op, value.node))]

    # ways that part and meet

    def _if(self, node: ast.If) -> list[ast.stmt]:
        test = self.expressions.visit(node.test)
        if test.is_constant:
            return self._all(node.body if test.value else node.orelse)
        before = dict(self.reachable or {})
        bodies, ends = [], []
        for branch in (node.body, node.orelse):
            self.reachable = dict(before)
            bodies.append(self._all(branch))
            ends.append(self.reachable)
        after = met(ends)
        for body, end in zip(bodies, ends, strict=True):
            body += self._casts(end, after, node)
        self.reachable = after
        body, orelse = bodies
        return [at(node, ast.If(test.node, body or [at(node, ast.Pass())], orelse))]

    def _while(self, node: ast.While) -> list[ast.stmt]:
        def turn() -> tuple[ast.expr, Locals | None]:
            test = self.expressions.visit(node.test)
            endless = test.is_constant and bool(test.value)
            return test.node, None if endless else dict(self.reachable or {})

        def make(test: ast.expr, body: list[ast.stmt]) -> ast.stmt:
            made: ast.stmt = at(node, ast.While(test, body, []))
            return made

        return self._loop(node, turn, make)

    def _for(self, node: ast.For) -> list[ast.stmt]:
        over = self.expressions.visit(node.iter)
        kind, carrier = None, None
        if isinstance(over.type, types.RangeType):
            kind, carrier = over.type.dtype, PYTHON
        elif isinstance(over.type, types.BaseTuple):
            kind, carrier = over.element(None)

        def turn() -> tuple[ast.expr, Locals | None]:
            left = dict(self.reachable or {})
            self._target(node.target, Term(over.node, kind, carrier))
            return node.target, left

        def make(target: ast.expr, body: list[ast.stmt]) -> ast.stmt:
            made: ast.stmt = at(node, ast.For(target, over.node, body, []))
            return made

        return self._loop(node, turn, make)

    def _loop(
        self,
        node: ast.While | ast.For,
        turn: Callable[[], tuple[ast.expr, Locals | None]],
        make: Callable[[ast.expr, list[ast.stmt]], ast.stmt],
    ) -> list[ast.stmt]:
        before = dict(self.reachable or {})
        head, again = before, True
        while again:
            known = head
            loop = _Loop(head)
            self.loops.append(loop)
            self.reachable = dict(head)
            first, left = turn()
            body = self._all(node.body)
            self.loops.pop()
            head = met([head, self.reachable, *loop.continues]) or {}
            # types of one turn may change those of the next, until none does
            changed = {name for name, local in head.items() if known.get(name) != local}
            again = bool(changed & (known.keys() | self.missed))
        body += self._casts(self.reachable, head, node)
        self.reachable = left
        orelse = self._all(node.orelse)
        exits = [self.reachable, *loop.breaks]
        after = met(exits)
        found = [*self._casts(before, head, node), make(first, body or [at(node, ast.Pass())])]
        if orelse:
            found[-1].orelse = orelse  # type: ignore[attr-defined]
        self.reachable = after
        # whichever way it was left
        for one in exits:
            found += self._casts(one, after, node)
        return found

    def _continue(self, node: ast.Continue) -> list[ast.stmt]:
        loop, here = self.loops[-1], dict(self.reachable or {})
        loop.continues.append(here)
        self.reachable = None
        return [*self._casts(here, loop.head, node), node]

    def _break(self, node: ast.Break) -> list[ast.stmt]:
        self.loops[-1].breaks.append(dict(self.reachable or {}))
        self.reachable = None
        return [node]

    def _casts(self, here: Locals | None, there: Locals | None, place: ast.AST) -> list[ast.stmt]:
        """Return statements that give variables the types they have where ways meet."""
        found: list[ast.stmt] = []
        for name in (here or {}).keys() & (there or {}).keys():
            kind = there[name][0]  # type: ignore[index]
            if here[name][0] == kind or not is_number(kind):  # type: ignore[index]
                continue
            load: ast.expr = at(place, ast.Name(name, ast.Load()))
            value = self.expressions.apply(as_cast(kind), [load], place)
            found.append(at(place, ast.Assign([at(place, ast.Name(name, ast.Store()))], value)))
        return found


def _binop(load: ast.expr, node: ast.AugAssign) -> ast.expr:
    found: ast.expr = at(node, ast.BinOp(load, node.op, node.value))
    return found
