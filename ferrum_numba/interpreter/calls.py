"""Calls of a kernel: casts, instructions, device functions and what numba has of Python's own."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

from ferrum_numba.errors import DECORATE, InterpreterError
from ferrum_numba.interpreter import numba_types
from ferrum_numba.interpreter.arithmetic import maximum, minimum
from ferrum_numba.interpreter.casts import as_cast
from ferrum_numba.interpreter.numba_types import cuda as numba_cuda
from ferrum_numba.interpreter.numba_types import types
from ferrum_numba.interpreter.term import PYTHON, Term, at, bits, is_number
from ferrum_numba.ptx.instruction import Instruction, OperandType

if TYPE_CHECKING:
    from ferrum_numba.interpreter.expressions import Expressions

_ARRAYS = (numba_cuda.local.array, numba_cuda.shared.array)
_EXTREMES = {min: minimum, max: maximum}
_CONVERSIONS = (int, float, bool)


def call(of: Expressions, node: ast.Call) -> Term:
    """Return a rewritten call, with the type of its result."""
    function = of.visit(node.func)
    value = function.value
    if any(isinstance(argument, ast.Starred) for argument in node.args):
        return _as_it_is(of, node, function)
    if callable(value) and getattr(value, "__hash__", None):
        if value in _ARRAYS:
            return _array(of, node, function)
        inner = getattr(value, "py_func", value)
        if inner is value and _is_plain(of, inner):
            raise _refused(of, node, f"{inner.__name__} is a plain Python function", DECORATE)
        if isinstance(value, np.ufunc):
            name = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(value.__name__)
            raise _refused(
                of, node, f"np.{value.__name__} is no function of a kernel",
                f"use math.{name or value.__name__}, or an instruction of ferrum_numba.ptx",
            )  # fmt: skip
        if _is_plain(of, inner):
            return _device(of, node, inner)
    if node.keywords or not function.known:
        return _as_it_is(of, node, function)
    if isinstance(value, Instruction):
        return _instruction(of, node, value)
    target = numba_types.cast_target(value) if len(node.args) == 1 else None
    if is_number(target):
        return _cast(of, node, target)
    return _builtin(of, node, function)


def _is_plain(of: Expressions, function: Any) -> bool:
    return isinstance(function, FunctionType) and not of.scope.is_foreign(function)


def _refused(of: Expressions, node: ast.Call, what: str, remedy: str) -> InterpreterError:
    place = f"{of.scope.filename}:{node.lineno}"
    return InterpreterError(f"{place}: {what}, which numba does not compile; {remedy}")


def _as_it_is(of: Expressions, node: ast.Call, function: Term) -> Term:
    arguments = [
        argument if isinstance(argument, ast.Starred) else of.visit(argument).node
        for argument in node.args
    ]
    keywords = [at(node, ast.keyword(k.arg, of.visit(k.value).node)) for k in node.keywords]
    return Term(at(node, ast.Call(function.node, arguments, keywords)))


def _cast(of: Expressions, node: ast.Call, target: Any) -> Term:
    width = bits(target) if isinstance(target, types.Integer) else None
    term = of.visit(node.args[0], width)
    if is_number(term.type):
        return of.cast(term, target)
    return Term(of.apply(as_cast(target), [term.node], node), target, target)


def _array(of: Expressions, node: ast.Call, function: Term) -> Term:
    found = _as_it_is(of, node, function)
    named = {keyword.arg: keyword.value for keyword in node.keywords}
    shape, dtype = (
        of.visit(node.args[i] if i < len(node.args) else named[name])
        for i, name in enumerate(("shape", "dtype"))
    )
    kind = numba_types.cast_target(dtype.value) if dtype.known else None
    if kind is None:
        return found
    dimensions = len(shape.type) if isinstance(shape.type, types.BaseTuple) else 1
    return Term(found.node, types.Array(kind, dimensions, "C"))


def _device(of: Expressions, node: ast.Call, function: FunctionType) -> Term:
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    terms = [of.visit(argument) for argument in node.args]
    named = {k.arg: of.visit(k.value) for k in node.keywords}
    arguments = dict(zip(names, terms, strict=False)) | {str(k): v for k, v in named.items()}
    copy, kind, carrier = of.scope.specialised(function, arguments)
    keywords = [at(node, ast.keyword(name, term.node)) for name, term in named.items()]
    called = ast.Call(of.scope.name(copy, node), [term.node for term in terms], keywords)
    return Term(at(node, called), kind, carrier)


def _instruction(of: Expressions, node: ast.Call, instruction: Instruction) -> Term:
    kinds = list(instruction.operands.values())
    arguments = [
        _operand(of, argument, kinds[i] if i < len(kinds) else None)
        for i, argument in enumerate(node.args)
    ]
    result = None if instruction.result is None else instruction.result.numba_type
    called = ast.Call(of.scope.name(instruction, node), arguments, [])
    return Term(at(node, called), result, result)


def _operand(of: Expressions, node: ast.expr, kind: Any) -> ast.expr:
    """Return an operand in the type of its register, or in any that the register cuts it from."""
    if not isinstance(kind, OperandType):
        return of.visit(node).node
    if kind.count and isinstance(node, ast.Tuple):
        parts = [_operand(of, part, kind * 0) for part in node.elts]
        made: ast.expr = at(node, ast.Tuple(parts, node.ctx))
        return made
    whole = isinstance(kind.numba, types.Integer)
    term = of.visit(node, bits(kind.numba) if whole else None)
    if not is_number(term.type) or kind.count:
        return term.node
    # a float in place of bits is refused when lanes run, and what is too wide is cut then
    constant = term.is_constant and not isinstance(term.type, types.Float)
    return of.cast(term, kind.numba).node if constant or not whole else term.node


def _builtin(of: Expressions, node: ast.Call, function: Term) -> Term:
    """Return a call of what numba has of Python's functions: `min`, `range`, `math.sqrt`."""
    value = function.value
    terms = [of.visit(argument) for argument in node.args]
    plain = Term(at(node, ast.Call(function.node, [term.node for term in terms], [])))
    if value is len:
        return Term(plain.node, types.int64, PYTHON)
    if not terms or any(not is_number(term.type) for term in terms):
        return plain
    if value in _EXTREMES and len(terms) > 1:
        return _extreme(of, node, value, terms, plain)
    found = numba_types.signature(value, *(term.type for term in terms))
    if found is None:
        return plain
    kind = found.return_type
    if value is range:
        return Term(plain.node, kind)
    if not is_number(kind):
        return plain
    if value in _CONVERSIONS:
        return of.cast(terms[0], kind)
    given = [of.cast(term, wanted) for term, wanted in zip(terms, found.args, strict=False)]
    computed = of.apply(_numpys(value), [term.node for term in given], node)
    return Term(of.apply(as_cast(kind), [computed], node), kind, kind)


def _extreme(
    of: Expressions, node: ast.Call, function: Any, terms: list[Term], plain: Term
) -> Term:
    """Return `min` or `max`: libdevice's of two floats, Python's own in all other cases."""
    floats = len(terms) == 2 and all(isinstance(term.type, types.Float) for term in terms)
    choose = _EXTREMES[function] if floats else function
    best = terms[0]
    for term in terms[1:]:
        kind = numba_types.unified(best.type, term.type)
        if not is_number(kind):
            return plain
        pair = [of.cast(of.settled(one), kind).node for one in (best, term)]
        best = Term(of.apply(choose, pair, node), kind, kind)
    return best


@cache
def _numpys(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return NumPy's function of a name, which knows the type of its argument and no errors."""
    name = getattr(function, "__name__", "")
    if getattr(function, "__module__", "") != "math":
        return function
    name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "pow": "power"}.get(name, name)
    found: Callable[..., Any] | None = getattr(np, name, None)
    if found is not None:
        return _unchecked(found)

    def safe(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError:
            return math.nan
        except OverflowError:
            return math.inf

    return safe


def _unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    def compute(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*arguments)

    return compute
