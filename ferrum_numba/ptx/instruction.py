"""One PTX instruction, declared once: its template for the compiler and its NumPy twin.

    @instruction("lop3.b32 <d>, <a>, <b>, <c>, <lut>;")
    def lop3(a: U32, b: U32, c: U32, lut: IMMEDIATE) -> U32:
        ...                       # the twin: NumPy on arrays of lanes

The parameters of the function are the operands, its annotations their types, its body the twin.
In the template `<a>` is an operand, `<a.1>` an element of a vector operand, `<d>` the result; a
vector operand without an index is written `{...}` as PTX wants it.

The object is a Numba intrinsic when a kernel is compiled and a plain callable when the same kernel
runs under the interpreter, where all lanes that reach it together execute the twin once.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from greenlet import getcurrent
from llvmlite import ir
from numba.cuda import types
from numba.cuda.core.errors import RequireLiteralValue, TypingError
from numba.cuda.extending import _Intrinsic
from numba.cuda.typing import signature

from ferrum_numba.ptx.described import help_text
from ferrum_numba.ptx.described import signature as shown_signature

Array = npt.NDArray[Any]
# pure: depends on its operands only, so the compiler may move or merge it
# volatile: executed where it stands, touches no memory the compiler knows
# memory: volatile, and no load or store may be moved across it
Effect = Literal["pure", "volatile", "memory"]
# lane: lanes may execute it apart; warp, warpgroup: all 32 or 128 lanes must execute it together
Scope = Literal["lane", "warp", "warpgroup"]


@dataclass(frozen=True)
class OperandType:
    """A scalar in a register, or a vector of `count` of them (count 0: a scalar)."""

    name: str
    dtype: Any
    numba: Any
    constraint: str
    llvm: Any
    count: int = 0

    def __mul__(self, count: int) -> OperandType:
        """Return the vector type of `count` elements."""
        return OperandType(
            f"{self.name}x{count}", self.dtype, self.numba, self.constraint, self.llvm, count
        )

    @property
    def numba_type(self) -> Any:
        """The Numba type a kernel sees: a scalar, or a UniTuple."""
        return types.UniTuple(self.numba, self.count) if self.count else self.numba


class _Immediate:
    """An integer fixed when the kernel is compiled."""


if TYPE_CHECKING:
    # a twin sees arrays of lanes: [lanes] for a scalar, [lanes, count] for a vector
    U16: TypeAlias = Any
    U32: TypeAlias = Any
    S32: TypeAlias = Any
    U64: TypeAlias = Any
    F32: TypeAlias = Any
    U16x2: TypeAlias = Any
    U32x2: TypeAlias = Any
    U32x4: TypeAlias = Any
    U64x2: TypeAlias = Any
    F32x2: TypeAlias = Any
    F32x4: TypeAlias = Any
    S32x4: TypeAlias = Any
    IMMEDIATE: TypeAlias = int
else:
    U16 = OperandType("u16", np.uint16, types.uint16, "h", ir.IntType(16))
    U32 = OperandType("u32", np.uint32, types.uint32, "r", ir.IntType(32))
    S32 = OperandType("s32", np.int32, types.int32, "r", ir.IntType(32))
    U64 = OperandType("u64", np.uint64, types.uint64, "l", ir.IntType(64))
    F32 = OperandType("f32", np.float32, types.float32, "f", ir.FloatType())
    U16x2, U32x2, U32x4, U64x2, F32x2, F32x4 = U16 * 2, U32 * 2, U32 * 4, U64 * 2, F32 * 2, F32 * 4
    S32x4 = S32 * 4
    IMMEDIATE = _Immediate()


class Lanes(Protocol):
    """What a twin may ask of the lanes that execute it together; given by the interpreter.

    A twin whose first parameter is named `lanes` receives it. Addresses are arrays, one a lane.
    """

    # index of each executing lane within its block: [lanes] int64
    thread: Array
    # the thread block they belong to (shared memory, barriers, asynchronous copies, cluster)
    block: Any

    def only(self, rows: Array) -> Lanes:
        """Return the lanes of some rows, for accesses that only these make."""
        ...

    def strong(self) -> Lanes:
        """Return the same lanes, whose accesses are `.relaxed` or stronger, of the GPU's scope."""
        ...

    def load_global(self, address: Array, size_bytes: int) -> Array:
        """Return [lanes, size_bytes] uint8; refuses what is out of bounds, unaligned, unwritten."""
        ...

    def store_global(self, address: Array, data: Array) -> None:
        """Write [lanes, size_bytes] uint8 at each lane's address."""
        ...

    def load_shared(self, address: Array, size_bytes: int) -> Array:
        """Return [lanes, size_bytes] uint8 from the block's shared memory."""
        ...

    def load_products(self, address: Array, size_bytes: int) -> Array:
        """Return [n, size_bytes] uint8 of shared memory that a warpgroup's wgmma reads."""
        ...

    def store_shared(self, address: Array, data: Array) -> None:
        """Write [lanes, size_bytes] uint8 to the block's shared memory."""
        ...


class _Blocked:
    """What a twin returns when the lanes must wait; they try again when others have moved."""

    def __repr__(self) -> str:
        return "BLOCKED"


BLOCKED = _Blocked()


class Instruction(_Intrinsic):  # type: ignore[misc]
    """A Numba intrinsic that also runs, as its twin, under the interpreter."""

    def __init__(
        self,
        name: str,
        template: str,
        operands: dict[str, OperandType | _Immediate],
        result: OperandType | None,
        twin: Callable[..., Any],
        *,
        effect: Effect = "pure",
        scope: Scope = "lane",
        tied: str | None = None,
        arch: str = "sm_80",
        alike: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.template = template
        self.operands = operands
        self.result = result
        self.twin = twin
        self.effect = effect
        self.scope = scope
        self.tied = tied
        self.arch = arch
        self.alike = alike
        self.wants_lanes = next(iter(inspect.signature(twin).parameters), "") == "lanes"
        self.asm, self.constraints = _render(template, operands, result, effect, tied)
        super().__init__(name, self._definition())
        self.__name__ = self.__qualname__ = name
        self.__module__ = twin.__module__
        self.__doc__ = help_text(twin, template)
        self.__signature__ = shown_signature(operands, result)
        self._register()

    @property
    def immediates(self) -> tuple[str, ...]:
        """Names of the operands that are fixed when the kernel is compiled."""
        return tuple(n for n, t in self.operands.items() if isinstance(t, _Immediate))

    def fingerprint(self) -> str:
        """Return a text that changes whenever the generated code would."""
        kinds = [
            getattr(kind, "name", "immediate") for kind in (*self.operands.values(), self.result)
        ]
        return f"{self.name}|{self.asm}|{self.constraints}|{self.effect}|{self.scope}|{kinds}"

    def __call__(self, *args: Any) -> Any:
        """Run the twin; only possible in a lane of the interpreter."""
        lane = getcurrent()
        execute = getattr(lane, "execute", None)
        if execute is None:
            raise TypeError(f"{self.name} runs on a GPU or in the interpreter, not in plain Python")
        return execute(self, args)

    def __repr__(self) -> str:
        return f"{self.name}{self.__signature__}"

    def _definition(self) -> Callable[..., Any]:
        """Return the typing function Numba wants: operands -> (signature, codegen)."""
        operands, result = self.operands, self.result

        def define(typingctx: Any, *given: Any) -> Any:
            wanted, constants = [], []
            for (name, kind), got in zip(operands.items(), given, strict=True):
                if isinstance(kind, _Immediate):
                    if not isinstance(got, types.IntegerLiteral):
                        raise RequireLiteralValue(f"{self.name}: {name} must be a literal integer")
                    constants.append(got.literal_value)
                    wanted.append(got)
                else:
                    _refuse_float_as_bits(self.name, name, kind, got)
                    wanted.append(kind.numba_type)
            returns = types.void if result is None else result.numba_type

            def codegen(context: Any, builder: Any, sig: Any, args: Sequence[Any]) -> Any:
                return self._emit(context, builder, args, constants)

            return signature(returns, *wanted), codegen

        # Numba reads the number and names of the operands off the signature
        names = ", ".join(operands)
        scope: dict[str, Any] = {"define": define}
        exec(f"def {self.name}(typingctx, {names}):\n    return define(typingctx, {names})", scope)
        definition: Callable[..., Any] = scope[self.name]
        definition.__doc__ = self.twin.__doc__
        return definition

    def _emit(self, context: Any, builder: Any, args: Sequence[Any], constants: list[int]) -> Any:
        values = []
        remaining = iter(constants)
        for kind, value in zip(self.operands.values(), args, strict=True):
            if isinstance(kind, _Immediate):
                values.append(ir.Constant(ir.IntType(32), next(remaining)))
            elif kind.count:
                values += [builder.extract_value(value, i) for i in range(kind.count)]
            else:
                values.append(value)
        result = self.result
        if result is None:
            returns = ir.VoidType()
        elif result.count:
            returns = ir.LiteralStructType([result.llvm] * result.count)
        else:
            returns = result.llvm
        function = ir.FunctionType(returns, [value.type for value in values])
        asm = ir.InlineAsm(function, self.asm, self.constraints, side_effect=self.effect != "pure")
        # lanes that must meet here may not be sent different ways by the optimiser
        out = builder.call(asm, values, attrs=() if self.scope == "lane" else ("convergent",))
        if result is None:
            return context.get_dummy_value()
        if not result.count:
            return out
        packed = ir.Constant(context.get_value_type(result.numba_type), ir.Undefined)
        for i in range(result.count):
            packed = builder.insert_value(packed, builder.extract_value(out, i), i)
        return packed


def _refuse_float_as_bits(instruction: str, name: str, kind: OperandType, got: Any) -> None:
    """Numba would convert the value, where a register of bits is meant."""
    given = getattr(got, "dtype", got)
    if isinstance(given, types.Float) and not isinstance(kind.numba, types.Float):
        raise TypingError(f"{instruction}: {name} must be {kind.name}, not {got}; see f32_bits")


def _render(
    template: str,
    operands: dict[str, Any],
    result: OperandType | None,
    effect: Effect,
    tied: str | None,
) -> tuple[str, str]:
    """Return LLVM's inline-asm template and constraint string."""
    first: dict[str, tuple[int, int]] = {}
    constraints: list[str] = []
    if result is not None:
        width = max(result.count, 1)
        first["d"] = (0, result.count)
        # several statements may write a result before they read the last operand
        early = "&" if template.count(";") > 1 else ""
        constraints += [f"={early}{result.constraint}"] * width
    for name, kind in operands.items():
        if isinstance(kind, _Immediate):
            first[name] = (len(constraints), 0)
            constraints.append("n")
            continue
        width = max(kind.count, 1)
        if name == tied:
            # the operand shares the result's registers: the template names it through <d>
            first[name] = first["d"]
            constraints += [str(i) for i in range(width)]
        else:
            first[name] = (len(constraints), kind.count)
            constraints += [kind.constraint] * width
    if effect == "memory":
        constraints.append("~{memory}")

    def substitute(match: re.Match[str]) -> str:
        name, _, index = match.group(1).partition(".")
        start, count = first[name]
        if index:
            return f"${start + int(index)}"
        if count:
            return "{" + ", ".join(f"${start + i}" for i in range(count)) + "}"
        return f"${start}"

    return re.sub(r"<([\w.]+)>", substitute, template).replace('"', r"\22"), ",".join(constraints)


def instruction(
    template: str,
    *,
    effect: Effect = "pure",
    scope: Scope = "lane",
    tied: str | None = None,
    arch: str = "sm_80",
    name: str | None = None,
    alike: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], Any]:
    """Declare an instruction by its twin; see the module's docstring.

    Args:
        template: PTX, one or several lines; local registers and labels inside `{ }`
        effect:   what the compiler may do with it
        scope:    which lanes must execute it together
        tied:     operand that shares its registers with the result (an accumulator)
        arch:     the first architecture that has it
        name:     another name than the twin's, for instructions made in a loop
        alike:    operands that lanes which execute it together have in common: where the twin is
                  BLOCKED for one of them it is for all
    """

    def declare(twin: Callable[..., Any]) -> Instruction:
        hints = inspect.get_annotations(twin, eval_str=True)
        result = hints.pop("return", None)
        hints.pop("lanes", None)
        return Instruction(
            name or twin.__name__, template, hints, result, twin,
            effect=effect, scope=scope, tied=tied, arch=arch, alike=alike,
        )  # fmt: skip

    return declare
