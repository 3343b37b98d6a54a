"""What numba infers: the types of constants, operators and calls, asked of numba itself.

The interpreter has what is numba's from here, and from nowhere else.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

from numba import cuda as cuda
from numba.core.errors import NumbaError as CoreError
from numba.cuda import types as types
from numba.cuda.core.errors import NumbaError
from numba.cuda.descriptor import cuda_target

# what numba raises for operands that it has no operator for
_NO_SIGNATURE = (
    NumbaError, CoreError, NotImplementedError, TypeError, ValueError, AssertionError, KeyError,
)  # fmt: skip

OPERATORS = {
    "Add": operator.add, "Sub": operator.sub, "Mult": operator.mul, "Div": operator.truediv,
    "FloorDiv": operator.floordiv, "Mod": operator.mod, "Pow": operator.pow,
    "LShift": operator.lshift, "RShift": operator.rshift,
    "BitAnd": operator.and_, "BitOr": operator.or_, "BitXor": operator.xor,
    "Lt": operator.lt, "LtE": operator.le, "Gt": operator.gt, "GtE": operator.ge,
    "Eq": operator.eq, "NotEq": operator.ne,
    "USub": operator.neg, "UAdd": operator.pos, "Invert": operator.invert,
}  # fmt: skip


@cache
def typing_context() -> Any:
    """Return what numba types device code with; raises whatever comes where numba does not work."""
    context = cuda_target.typing_context
    context.refresh()
    return context


@cache
def signature(function: Any, *arguments: Any) -> Any:
    """Return the signature numba picks for a call with arguments of these types, None for none."""
    context = typing_context()
    try:
        kind = context.resolve_value_type(function)
        return context.resolve_function_type(kind, arguments, {})
    except _NO_SIGNATURE:
        return None


def unary(name: str, argument: Any) -> Any:
    """Return the type of an operator of one operand, None for none."""
    found = signature(OPERATORS[name], argument)
    return None if found is None else found.return_type


@cache
def attribute(kind: Any, name: str) -> Any:
    """Return the type of an attribute of a value, such as `threadIdx.x`; None for none."""
    try:
        return typing_context().resolve_getattr(kind, name)
    except _NO_SIGNATURE:
        return None


@cache
def of_named(value: Any) -> Any:
    """Return the type of a module or a type, which stays what it is."""
    return of_value(value)


def of_value(value: Any) -> Any:
    """Return the type of a constant; an int is an int64. None for what numba has none for."""
    try:
        return types.unliteral(typing_context().resolve_value_type(value))
    except _NO_SIGNATURE:
        return None


@cache
def unified(first: Any, second: Any) -> Any:
    """Return the type of a variable that is given values of these two; None for none."""
    if first == second:
        return first
    try:
        return typing_context().unify_types(first, second)
    except _NO_SIGNATURE:
        return None


@cache
def cast_target(function: Any) -> Any:
    """Return the type that a call of this, such as `uint32` or `np.int64`, converts to, or None."""
    if not isinstance(function, type | types.Type):
        return None
    kind = of_value(function)
    return kind.instance_type if isinstance(kind, types.NumberClass) else None
