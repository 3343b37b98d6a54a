"""The kernel's functions, with Numba's names bound to what the interpreter offers instead."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from greenlet import getcurrent

from ferrum_numba.errors import InterpreterError
from ferrum_numba.interpreter import numba_types
from ferrum_numba.interpreter.block import Block, Dim3
from ferrum_numba.interpreter.casts import Cast, as_cast
from ferrum_numba.interpreter.functions import Body, Unsupported
from ferrum_numba.interpreter.lane import MARK, LaneGroup, request
from ferrum_numba.interpreter.memory import Fault
from ferrum_numba.interpreter.numba_types import cuda as numba_cuda
from ferrum_numba.interpreter.numba_types import types
from ferrum_numba.interpreter.operands import Plan, plan
from ferrum_numba.interpreter.source import definition, recompiled
from ferrum_numba.interpreter.special import at_once
from ferrum_numba.interpreter.term import UNKNOWN, is_number
from ferrum_numba.interpreter.variables import Local
from ferrum_numba.ptx.instruction import BLOCKED, Instruction


class CheckedArray:
    """A local or static shared array, which refuses reads of what nobody wrote."""

    def __init__(self, name: str, shape: int | tuple[int, ...], cast: Cast) -> None:
        self.name = name
        self.shape = shape if isinstance(shape, tuple) else (shape,)
        self.cast = cast
        self._indices = _indices(self.shape)
        self._values: dict[Any, Any] = {}

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._values[index]
        except KeyError:
            self._check(index, "reads")
            raise Fault(f"reads {self.name}[{_text(index)}], which nobody has written") from None

    def __setitem__(self, index: Any, value: Any) -> None:
        if index not in self._values:
            self._check(index, "writes")
        self._values[index] = self.cast(value)

    def __len__(self) -> int:
        return self.shape[0]

    def _check(self, index: Any, verb: str) -> None:
        if index not in self._indices:
            shape = "x".join(map(str, self.shape))
            raise Fault(f"{verb} {self.name}[{_text(index)}], which has shape {shape}")


class SharedArray(CheckedArray):
    """A static shared array, whose accesses are told to who watches the block."""

    def __init__(self, name: str, shape: int | tuple[int, ...], cast: Cast) -> None:
        super().__init__(name, shape, cast)
        self.item_bytes: int = cast(0).itemsize
        # what the detector of races knows of each element
        self.marks: dict[Any, Any] = {}

    def __getitem__(self, index: Any) -> Any:
        value = super().__getitem__(index)
        getcurrent().block.watch.element(self, index, writes=False)
        return value

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, value)
        getcurrent().block.watch.element(self, index, writes=True)

    def offset_of(self, index: Any) -> int:
        """Return how many bytes an element lies behind the first."""
        place = index if isinstance(index, tuple) else (index,)
        return int(np.ravel_multi_index(tuple(map(int, place)), self.shape)) * self.item_bytes


@cache
def _indices(shape: tuple[int, ...]) -> frozenset[Any]:
    return frozenset(np.ndindex(shape) if len(shape) > 1 else range(shape[0]))


def _text(index: Any) -> str:
    return ", ".join(map(str, index)) if isinstance(index, tuple) else str(index)


def _sync_threads(lanes: LaneGroup) -> Any:
    return None if lanes.block.sync(lanes.thread, 0, None) else BLOCKED


def _sync_warp(lanes: LaneGroup) -> None:
    lanes.block.watch.sync_warp(lanes.thread)


_SYNCTHREADS = Plan("syncthreads", (), (), None, "warp", True, _sync_threads, any_count=True)
_SYNCWARP = Plan("syncwarp", (), (), None, "warp", True, _sync_warp, any_count=True)


class _LocalArrays:
    @staticmethod
    def array(shape: Any, dtype: Any, alignment: int | None = None) -> CheckedArray:
        return CheckedArray("local array", shape, as_cast(dtype))


class _SharedArrays:
    @staticmethod
    def array(shape: Any, dtype: Any, alignment: int | None = None) -> CheckedArray:
        arrays = getcurrent().block.shared_arrays
        frame = sys._getframe(1)
        # one array a place in the source, whoever comes first
        place = (frame.f_code, frame.f_lasti)
        if place not in arrays:
            arrays[place] = SharedArray("shared array", shape, as_cast(dtype))
        found: CheckedArray = arrays[place]
        return found


class FakeCuda:
    """What a kernel finds under the name `cuda`."""

    local = _LocalArrays
    shared = _SharedArrays
    warpsize = np.int32(32)

    def __init__(
        self, grid: tuple[int, int, int], num_threads: int, *, traced: bool = False
    ) -> None:
        self.gridDim = Dim3(*map(np.int32, grid))
        self.blockDim = Dim3(np.int32(num_threads), np.int32(1), np.int32(1))
        self.types: Any = types
        self.traced = traced
        self.switch = getcurrent().switch
        self.syncthreads = request(self.switch, _SYNCTHREADS)
        self.syncwarp = request(self.switch, _SYNCWARP)

    @property
    def threadIdx(self) -> Dim3:
        """Index of the thread in its block; blocks have one dimension."""
        index: Dim3 = getcurrent().threadIdx
        return index

    @property
    def blockIdx(self) -> Dim3:
        """Index of the block in the grid."""
        block: Block = getcurrent().block
        return block.blockIdx

    def __getattr__(self, name: str) -> Any:
        raise InterpreterError(f"uses cuda.{name}, which the interpreter does not have")

    @property
    def laneid(self) -> Any:
        """Index of the lane in its warp."""
        return np.int32(getcurrent().thread % 32)


class _Namespace:
    """A module as a kernel sees it: each of its names is rebound when it is first used."""

    def __init__(self, module: ModuleType, rebound: Callable[[Any], Any]) -> None:
        self._module = module
        self._rebound = rebound

    def __getattr__(self, name: str) -> Any:
        value = self._rebound(getattr(self._module, name))
        setattr(self, name, value)
        return value


def rebind(
    function: Callable[..., Any], cuda: FakeCuda, kinds: Sequence[Any] = (), leaves: Any = None
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """Return the function, and all it calls, with Numba's names replaced by the interpreter's.

    What they compute has the types that numba infers for arguments of the types `kinds`. A
    `return` of the function itself returns `leaves`. With it come the places, file:line, of what
    is computed in doubles.
    """
    rebinder = _Rebinder(cuda)
    assert isinstance(function, FunctionType)
    names = function.__code__.co_varnames
    arguments = {name: (kind, kind, UNKNOWN) for name, kind in zip(names, kinds, strict=False)}
    return rebinder.specialised(function, arguments, leaves)[0], tuple(rebinder.doubles)


class _Rebinder:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.cuda.types = _Namespace(types, self.value)
        # functions as they are, and rewritten ones with type and carrier of their results
        self.done: dict[int, FunctionType] = {}
        # where something is computed in doubles, in order
        self.doubles: dict[str, None] = {}
        self._specialised: dict[Any, tuple[FunctionType, Any, Any]] = {}

    def function(self, function: Any) -> FunctionType:
        """Return a function that computes in the types of NumPy: nobody knows what it is given."""
        if id(function) in self.done:
            return self.done[id(function)]
        namespace: dict[str, Any] = {"__builtins__": builtins, MARK: True}
        cells = tuple(CellType() for _ in function.__closure__ or ())
        copy = FunctionType(
            function.__code__, namespace, function.__name__, function.__defaults__, cells
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        # before what it calls: a function may reach itself
        self.done[id(function)] = copy
        for name in _names(function.__code__):
            if name in function.__globals__:
                namespace[name] = self.value(function.__globals__[name])
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            cell.cell_contents = self.value(old.cell_contents)
        return copy

    def specialised(
        self, function: FunctionType, arguments: Mapping[str, Local], leaves: Any = None
    ) -> tuple[FunctionType, Any, Any]:
        """Return a function for arguments of given types, and type and carrier of its result."""
        key = (
            function,
            *((name, *local[:2], id(local[2])) for name, local in sorted(arguments.items())),
        )
        if key not in self._specialised:
            # what reaches itself is left as it is there
            self._specialised[key] = self.function(function), None, None
            try:
                self._specialised[key] = self._rewritten(function, arguments, leaves)
            except Unsupported:
                code = function.__code__
                raise InterpreterError(
                    f"{code.co_filename}:{code.co_firstlineno}: the source of {code.co_name} is "
                    "not there as it was compiled, so the types of what it computes are not "
                    "known; define it by `def` in a file, without global and nonlocal"
                ) from None
        return self._specialised[key]

    def _rewritten(
        self, function: FunctionType, arguments: Mapping[str, Local], leaves: Any
    ) -> tuple[FunctionType, Any, Any]:
        node, filename = definition(function), function.__code__.co_filename
        outer = _outer(function)
        namespace: dict[str, Any] = {"__builtins__": builtins, MARK: True}
        names: dict[int, str] = {}

        def name(value: Any) -> str:
            known = names.setdefault(id(value), f"_{len(names)}")
            # a value keeps its identity as long as it is known
            kept.append(value)
            # other functions are the interpreter's own, or rewritten before
            namespace[known] = self.value(value) if isinstance(value, Instruction) else value
            return known

        def remark(line: int) -> None:
            self.doubles.setdefault(f"{filename}:{line}")

        kept: list[Any] = []
        given = {**_defaults(function), **arguments}
        body = Body(
            function, given, lambda one: outer.get(one, vars(builtins).get(one, UNKNOWN)),
            name, self.specialised, remark, leaves,
        )  # fmt: skip
        statements = body.rewritten(node.body)
        for one in _free(statements):
            if one in outer:
                namespace[one] = self.value(outer[one])
        copy = recompiled(node, statements, filename, namespace)
        copy.__defaults__, copy.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
        kind, carrier, _ = body.result or (types.none, None, UNKNOWN)
        return copy, kind, carrier

    def value(self, value: Any) -> Any:
        if isinstance(value, types.Number | types.Boolean):
            return as_cast(value)
        if isinstance(value, Instruction):
            asked = request(self.cuda.switch, plan(value))
            return asked if self.cuda.traced else at_once(value, asked)
        if isinstance(value, ModuleType):
            return self.cuda if value is numba_cuda else _Namespace(value, self.value)
        # a Numba dispatcher wraps the function that a lane can run
        inner = getattr(value, "py_func", value)
        return self.function(inner) if isinstance(inner, FunctionType) else value


def _names(code: CodeType) -> Iterator[str]:
    """Return the global names that code uses, also in functions defined inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _free(statements: list[ast.stmt]) -> set[str]:
    """Return the names that statements use, of whatever scope."""
    return {node.id for one in statements for node in ast.walk(one) if isinstance(node, ast.Name)}


def _outer(function: FunctionType) -> dict[str, Any]:
    """Return what a function finds outside: its closure before its module."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {**function.__globals__, **{name: cell.cell_contents for name, cell in cells}}


def _defaults(function: FunctionType) -> dict[str, Local]:
    """Return the types of parameters that are left out."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    values = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    values |= function.__kwdefaults__ or {}
    found: dict[str, Local] = {}
    for name, value in values.items():
        kind = numba_types.of_value(value)
        found[name] = (kind, None, UNKNOWN) if is_number(kind) else (None, None, value)
    return found
