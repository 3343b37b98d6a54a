"""Operands and results: from one Python value a lane to one array for all lanes, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from inspect import Signature
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from ferrum_numba.interpreter.memory import Array, Fault
from ferrum_numba.ptx.instruction import Instruction, OperandType, Scope
from ferrum_numba.words import counted

# longer vectors stay rows of one array, because 128 lanes of 128 scalars take a millisecond
_LONGEST_TUPLE = 8


class Vector:
    """A long vector in the registers of one lane; indexed like a tuple."""

    __slots__ = ("row",)

    def __init__(self, row: Array) -> None:
        self.row = row

    def __getitem__(self, index: int) -> Any:
        return self.row[index]

    def __len__(self) -> int:
        return len(self.row)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.row)


@dataclass(frozen=True, eq=False)
class Plan:
    """How lanes execute an instruction together.

    operands:   type of each operand, None for an immediate
    immediates: where they, and operands that lanes have alike, stand in a request
                (plan, *operands)
    names:      of the operands
    text:       of the instruction, as in its template
    takes:      the operands with their types, in words
    any_count:  may run with fewer than 32 lanes if those are all the warp has left
    """

    name: str
    operands: tuple[OperandType | None, ...]
    immediates: tuple[int, ...]
    result: OperandType | None
    scope: Scope
    wants_lanes: bool
    twin: Callable[..., Any]
    any_count: bool = False
    names: tuple[str, ...] = ()
    text: str = ""
    takes: str = ""

    @cached_property
    def key(self) -> Callable[[tuple[Any, ...]], Any]:
        """What is equal in the requests of lanes that are executed together."""
        return itemgetter(0, *self.immediates)

    def prepare(self, requests: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the operands as arrays over the lanes; immediates as ints."""
        if len(requests[0]) != self._length:
            given = counted(len(requests[0]) - 1, "argument")
            raise Fault(f"takes {self.takes}; got {given}")
        _, *columns = zip(*requests, strict=True)
        try:
            return [make(column) for make, column in zip(self._makers, columns, strict=False)]
        except Fault as error:
            raise self._unlike(columns, error) from None

    def _unlike(self, columns: Sequence[tuple[Any, ...]], error: Fault) -> Fault:
        """Return the fault of the first operand that is none of its type, with its name."""
        named = zip(self.names, self.operands, columns, strict=False)
        for name, kind, column in named:
            try:
                if kind is not None:
                    _coerce(kind, column)
            except Fault:
                return Fault(f"{error}, for its {name}; it takes {self.takes}", error.row)
        return error

    @cached_property
    def _length(self) -> int:
        # of a request without operands: greenlet passes several values on as a tuple
        return 1 + max(1, len(self.operands))

    def refusal(self, request: Any) -> str | None:
        """Return why a lane cannot have asked so: it gives fewer operands than there are, or more.

        request: the plan alone, where nothing is given
        """
        given = 0 if request is self else len(request) - 1
        if given == len(self.operands) or not self.operands:
            return None
        return f"{self.name} takes {self.takes}; got {counted(given, 'argument')}"

    @cached_property
    def _makers(self) -> tuple[Callable[[tuple[Any, ...]], Any], ...]:
        """What makes each operand of the lanes' values."""
        return tuple(_first if kind is None else partial(_coerce, kind) for kind in self.operands)

    def results(self, out: Any, count: int) -> Sequence[Any]:
        """Return each lane's result: NumPy scalars, or tuples of them."""
        if self.result is None:
            return [None] * count
        array = np.asarray(out, self.result.dtype)
        if self.result.count > _LONGEST_TUPLE:
            return [Vector(row) for row in array]
        if self.result.count:
            return list(zip(*[iter(array.reshape(-1))] * self.result.count, strict=True))
        return list(array)


@cache
def plan(instruction: Instruction) -> Plan:
    """Return the plan of an instruction."""
    kinds = tuple(k if isinstance(k, OperandType) else None for k in instruction.operands.values())
    return Plan(
        instruction.name,
        kinds,
        # the plan itself is the first element of a request
        tuple(
            i + 1
            for i, (name, kind) in enumerate(zip(instruction.operands, kinds, strict=True))
            if kind is None or name in instruction.alike
        ),
        instruction.result,
        instruction.scope,
        instruction.wants_lanes,
        instruction.twin,
        names=tuple(instruction.operands),
        text=instruction.template,
        takes=str(instruction.__signature__.replace(return_annotation=Signature.empty)),
    )


def _first(column: tuple[Any, ...]) -> int:
    return int(column[0])


def _coerce(kind: OperandType, column: tuple[Any, ...]) -> Array:
    """Return the values of all lanes as [lanes] or [lanes, count] of the register's type."""
    if not kind.count:
        return _scalars(kind, column)
    try:
        lengths = set(map(len, column))
    except TypeError:
        lengths = set()
    if lengths != {kind.count}:
        raise Fault(f"needs a tuple of {kind.count} values; got {column[0]!r}")
    if all(isinstance(value, Vector) for value in column):
        rows = np.array([value.row for value in column])
        if rows.dtype == kind.dtype:
            return rows
    return _scalars(kind, tuple(chain.from_iterable(column))).reshape(-1, kind.count)


def _scalars(kind: OperandType, values: tuple[Any, ...]) -> Array:
    if set(map(type, values)) == {kind.dtype}:
        # NumPy's scalars lend their bytes, in half the time that reading their values takes
        return np.frombuffer(bytearray().join(values), kind.dtype)
    if np.dtype(kind.dtype).kind == "f":
        return np.array([float(value) for value in values], kind.dtype)
    mask = (1 << 8 * np.dtype(kind.dtype).itemsize) - 1
    for row, value in enumerate(values):
        if not isinstance(value, int | np.integer | np.bool_):
            raise Fault(f"needs an integer for {kind.name}; got {value!r}", row)
    unsigned = np.dtype(f"u{np.dtype(kind.dtype).itemsize}")
    return np.array([int(value) & mask for value in values], unsigned).view(kind.dtype)
