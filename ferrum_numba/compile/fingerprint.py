"""A digest of a kernel's function that changes whenever the code made from it could.

Numba compiles a function's bytecode and freezes what it refers to: closure cells, globals, helper
functions, instructions. All of it is walked, recursively, and written down. A value of a kind not
known here stops the walk: a kernel that is not cached costs a second, one that is mistaken for
another costs a day. Line numbers and comments are left out (the PTX holds none); renaming a
variable or editing a docstring counts as a change, which only costs a build.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
import sys
from collections.abc import Hashable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import pairwise
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import llvmlite.ir
import numpy as np
from numba.cuda import types
from numba.cuda.dispatcher import CUDADispatcher
from numba.cuda.extending import _Intrinsic

from ferrum_numba.errors import BuildError
from ferrum_numba.ptx.instruction import Instruction

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Named: TypeAlias = type | FunctionType | BuiltinFunctionType | _Intrinsic

# what comes from these is named, not walked: their versions are part of the cache's key
PINNED = frozenset(
    ("builtins", "cmath", "collections", "llvmlite", "math", "numba", "numpy", "operator", "typing")
)
SCALARS = (type(None), bool, int, float, complex, str, bytes, type(...))


class Unknown(BuildError):
    """A value that a function refers to and that cannot be fingerprinted."""


def function_fingerprint(fn: object) -> str:
    """Return the sha256 of a function and of everything it refers to.

    Raises:
        Unknown: it refers to a value of a kind whose meaning to the compiler is not known
    """
    walk = _Walk()
    if isinstance(fn, FunctionType):
        walk.function(fn)
    else:
        walk.value(fn)
    return hashlib.sha256("\n".join(walk.lines).encode()).hexdigest()


class _Walk:
    """Writes values down, a line a fact; a function met again is written as its number.

    compiled: whether the code at hand is compiled by Numba, or run while it compiles (intrinsics)
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.met: dict[Hashable, int] = {}
        self.compiled = True

    def again(self, identity: Hashable) -> bool:
        """Return whether this was met before, and write which it was; notes it if not."""
        if identity not in self.met:
            self.met[identity] = len(self.met)
            return False
        self.lines.append(f"met {self.met[identity]}")
        return True

    def value(self, value: object, names: frozenset[str] = frozenset()) -> None:
        """Write a value; of a module the attributes among `names`, which the code may read."""
        if isinstance(value, ModuleType):
            self.module(value, names)
        elif (text := _plain(value)) is not None:
            self.lines.append(text)
        elif isinstance(value, tuple | frozenset):
            self.collection(value)
        elif isinstance(value, CodeType):
            self.code(value)
        elif isinstance(value, FunctionType | CUDADispatcher | _Intrinsic):
            self.callable(value)
        elif is_dataclass(value) and not isinstance(value, type) and _frozen(value):
            self.record(value)
        else:
            raise _unknown(value)

    def collection(self, values: tuple[Any, ...] | frozenset[Any]) -> None:
        self.lines.append(f"{_qualified(type(values))} {len(values)}")
        # named tuples are read by field
        self.lines.append(repr(getattr(values, "_fields", ())))
        for item in sorted(values, key=repr) if isinstance(values, frozenset) else values:
            self.value(item)

    def record(self, record: DataclassInstance) -> None:
        """Write a frozen dataclass: its fields, and the methods that an intrinsic may call."""
        self.lines.append(f"record {_qualified(type(record))}")
        for field in fields(record):
            self.lines.append(field.name)
            self.value(getattr(record, field.name))
        for name in dir(record):
            member = inspect.getattr_static(record, name)
            method = member.fget if isinstance(member, property) else member
            method = getattr(method, "__func__", method)
            if isinstance(method, FunctionType) and not name.startswith("__"):
                self.lines.append(name)
                self.value(method)

    def module(self, module: ModuleType, names: frozenset[str]) -> None:
        self.lines.append(f"module {module.__name__}")
        if module.__name__.partition(".")[0] in PINNED or self.again((id(module), names)):
            return
        if not names:
            raise _unknown(module)
        for name in sorted(names & vars(module).keys()):
            self.lines.append(name)
            self.value(getattr(module, name), names)

    def callable(self, value: FunctionType | CUDADispatcher | _Intrinsic) -> None:
        """Write a function, a Numba device function, or an intrinsic, once."""
        if self.again(id(value)):
            return
        outer = self.compiled
        if isinstance(value, Instruction):
            self.lines.append(f"instruction {value.fingerprint()!r}")
        elif isinstance(value, CUDADispatcher):
            self.compiled = True
            self.lines.append(repr(sorted(value.targetoptions.items())))
            self.function(value.py_func)
        elif isinstance(value, _Intrinsic):
            self.compiled = False
            self.lines.append(f"intrinsic {value._ctor_kwargs!r} {value._prefer_literal}")
            self.function(value._defn)
        elif self.compiled:
            # it has no meaning of its own there, only what some `overload` gave it
            raise _unknown(value)
        else:
            self.function(value)
        self.compiled = outer

    def function(self, function: FunctionType) -> None:
        code = function.__code__
        self.code(code)
        self.value(function.__defaults__)
        self.value(tuple(sorted((function.__kwdefaults__ or {}).items())))
        reads = set(_reads(code))
        # of a module that is read as a whole, nobody knows which attributes matter
        whole = {name for name, attribute_follows in reads if not attribute_follows}
        names = frozenset(name for part in _codes(code) for name in part.co_names)
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        for name in sorted({name for name, _ in reads} | cells.keys()):
            self.lines.append(f"name {name}")
            wanted = frozenset[str]() if name in whole else names
            if name in cells:
                self.value(_contents(cells[name]), wanted)
            elif name in function.__globals__:
                self.value(function.__globals__[name], wanted)

    def code(self, code: CodeType) -> None:
        self.lines.append(f"code {code.co_name} {code.co_argcount} {code.co_kwonlyargcount}")
        self.lines.append(
            f"{code.co_flags} {code.co_varnames} {code.co_freevars} {code.co_cellvars}"
        )
        self.lines.append(f"{code.co_names} {code.co_exceptiontable.hex()}")
        # co_code comes without the inline caches that running the function fills
        self.lines.append(code.co_code.hex())
        self.collection(code.co_consts)


def _plain(value: object) -> str | None:
    """Return the text of a value that holds nothing but itself, None for any other."""
    if type(value) in SCALARS:
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, Enum):
        return f"enum {_qualified(type(value))} {value.name} {value.value!r}"
    if isinstance(value, np.generic | np.ndarray):
        array = np.ascontiguousarray(value)
        return f"array {array.dtype.descr} {np.shape(value)} {array.tobytes().hex()}"
    if isinstance(value, types.Type | llvmlite.ir.Type | np.dtype | np.ufunc):
        return f"{_qualified(type(value))} {value}"
    if isinstance(value, Named) and _pinned(value):
        return f"named {_qualified(value)}"
    return None


def _frozen(record: DataclassInstance) -> bool:
    return bool(record.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _pinned(value: Named) -> bool:
    """Return whether a value is found in a pinned package, where it says that it comes from.

    What `exec` makes says whatever the globals it was given say.
    """
    module = getattr(value, "__module__", None) or ""
    found: object = sys.modules.get(module)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value and module.partition(".")[0] in PINNED


def _qualified(value: Named) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _contents(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return "a name that is not bound yet"


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and those of the functions defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _reads(code: CodeType) -> Iterator[tuple[str, bool]]:
    """Yield the names read from outside, and whether an attribute is taken at once."""
    for part in _codes(code):
        for step, following in pairwise(dis.get_instructions(part)):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"):
                yield step.argval, following.opname in ("LOAD_ATTR", "LOAD_METHOD")


def _unknown(value: object) -> Unknown:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return Unknown(f"a kernel refers to {value!r:.80}, a {kind}, which has no fingerprint")
