"""The kernel's functions, with Numba's names bound to what the interpreter offers instead."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from greenlet import getcurrent
from numba import cuda as numba_cuda
from numba.cuda import types

from ferrum_numba.errors import InterpreterError
from ferrum_numba.interpreter.block import Block, Dim3
from ferrum_numba.interpreter.lane import MARK, LaneGroup, request
from ferrum_numba.interpreter.memory import Fault
from ferrum_numba.interpreter.operands import Plan, plan
from ferrum_numba.ptx.instruction import BLOCKED, Instruction

Cast = Callable[[Any], Any]
CASTS: set[Cast] = set()


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
    """A static shared array, whose accesses are told to the detector of races."""

    def __init__(self, name: str, shape: int | tuple[int, ...], cast: Cast) -> None:
        super().__init__(name, shape, cast)
        self._marks: dict[Any, Any] = {}

    def __getitem__(self, index: Any) -> Any:
        value = super().__getitem__(index)
        getcurrent().block.watch.element(self._marks, index, self.name, writes=False)
        return value

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, value)
        getcurrent().block.watch.element(self._marks, index, self.name, writes=True)


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

    def __init__(self, grid: tuple[int, int, int], num_threads: int) -> None:
        self.gridDim = Dim3(*map(np.int32, grid))
        self.blockDim = Dim3(np.int32(num_threads), np.int32(1), np.int32(1))
        self.types: Any = types
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


def as_cast(dtype: Any) -> Cast:
    """Return the cast to a Numba or NumPy number type; a cast is returned as it is."""
    if dtype in CASTS:
        found: Cast = dtype
        return found
    return _make_cast(np.dtype(str(dtype) if isinstance(dtype, types.Type) else dtype))


@cache
def _make_cast(dtype: np.dtype[Any]) -> Cast:
    scalar = dtype.type
    bits = 8 * dtype.itemsize
    mask = (1 << bits) - 1
    lowest = -(1 << (bits - 1)) if dtype.kind == "i" else 0

    def wrap(value: Any) -> Any:
        if type(value) is scalar:
            return value
        return scalar(((int(value) - lowest) & mask) + lowest)

    cast: Cast = wrap if dtype.kind in "iu" else scalar
    CASTS.add(cast)
    return cast


def rebind(function: Callable[..., Any], cuda: FakeCuda) -> Callable[..., Any]:
    """Return the function, and all it calls, with Numba's names replaced by the interpreter's."""
    return _Rebinder(cuda).function(function)


class _Rebinder:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.cuda.types = _Namespace(types, self.value)
        self.done: dict[int, FunctionType] = {}

    def function(self, function: Any) -> FunctionType:
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

    def value(self, value: Any) -> Any:
        if isinstance(value, types.Number | types.Boolean):
            return as_cast(value)
        if isinstance(value, Instruction):
            return request(self.cuda.switch, plan(value))
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
