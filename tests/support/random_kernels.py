"""Kernels of random expressions, as numba types them, for the interpreter, a PTX evaluator, a GPU.

A kernel computes `count` expressions from 11 inputs of a lane, and stores eight bytes of each.
"""

import importlib.util
import operator
import random
import sys
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba.cuda import types
from numba.cuda.descriptor import cuda_target

from ferrum_numba.contract import Launch, Program, pointers
from ferrum_numba.ptx.instruction import U64, OperandType, instruction

F64 = OperandType("f64", np.float64, types.float64, "d", ir.DoubleType())
LANES = 4
# of a lane: 64-bit words, then 32-bit ones
INPUT_BYTES = 64
HEADER = '''
from numba import cuda
from numba.cuda.types import boolean, float32, float64, int8, int16, int32, int64
from numba.cuda.types import uint8, uint16, uint32, uint64
from ferrum_numba.ptx.memory import ld_global_f32, ld_global_u32, st_global_f32, st_global_u32
from random_kernels import ld_u64, ld_f64, st_f64, st_u64
import math

def kernel(x, out):
    lane = uint32(cuda.laneid)
    x = x + uint64(lane) * uint64({input_bytes})
    out = out + uint64(lane) * uint64({output_bytes})
    L0 = ld_u64(x)
    L1 = int64(ld_u64(x + uint64(8)))
    D0 = ld_f64(x + uint64(16))
    D1 = ld_f64(x + uint64(24))
    U0 = ld_global_u32(x + uint64(32))
    U1 = ld_global_u32(x + uint64(36))
    I0 = int32(ld_global_u32(x + uint64(40)))
    I1 = int32(ld_global_u32(x + uint64(44)))
    F0 = ld_global_f32(x + uint64(48))
    F1 = ld_global_f32(x + uint64(52))
    H0 = uint16(ld_global_u32(x + uint64(56)))
'''
VARIABLES = {
    "L0": types.uint64, "L1": types.int64, "D0": types.float64, "D1": types.float64,
    "U0": types.uint32, "U1": types.uint32, "I0": types.int32, "I1": types.int32,
    "F0": types.float32, "F1": types.float32, "H0": types.uint16,
}  # fmt: skip
CASTS = {
    name: getattr(types, name)
    for name in (
        "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64",
    )
}  # fmt: skip
ARITHMETIC = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "&": operator.and_,
    "|": operator.or_, "^": operator.xor, "<<": operator.lshift, ">>": operator.rshift,
    "//": operator.floordiv, "%": operator.mod, "/": operator.truediv,
}  # fmt: skip
COMPARISONS = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
    "!=": operator.ne,
}  # fmt: skip


@instruction("ld.global.u64 <d>, [<address>];", effect="volatile")
def ld_u64(lanes, address: U64) -> U64:
    return lanes.load_global(address, 8).view(np.uint64)[:, 0]


@instruction("ld.global.f64 <d>, [<address>];", effect="volatile")
def ld_f64(lanes, address: U64) -> F64:
    return lanes.load_global(address, 8).view(np.float64)[:, 0]


@instruction("st.global.u64 [<address>], <value>;", effect="memory")
def st_u64(lanes, address: U64, value: U64):
    lanes.store_global(address, value[:, None].view(np.uint8))


@instruction("st.global.f64 [<address>], <value>;", effect="memory")
def st_f64(lanes, address: U64, value: F64):
    lanes.store_global(address, value[:, None].view(np.uint8))


@dataclass(frozen=True)
class Typed:
    """The text of an expression, and the type numba gives it."""

    text: str
    type: object
    # whether it may be a constant, which LLVM converts before anything runs
    folds: bool = False

    @property
    def is_float(self):
        return isinstance(self.type, types.Float)

    @property
    def is_bool(self):
        return isinstance(self.type, types.Boolean)


def result_type(function, *arguments):
    """Ask numba for the type of a call's result; None where there is none."""
    context = cuda_target.typing_context
    try:
        found = context.resolve_function_type(context.resolve_value_type(function), arguments, {})
    except Exception:
        return None
    return found.return_type if found is not None else None


class Writer:
    """Writes random expressions and statements."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.extra = {}

    def pick(self, of):
        return self.random.choice(list(of))

    def leaf(self):
        known = {**VARIABLES, **self.extra}
        if self.random.random() < 0.25:
            return self.constant()
        name = self.pick(known)
        return Typed(name, known[name])

    def constant(self):
        kind = self.random.random()
        if kind < 0.2:
            return Typed(self.pick(["0.1", "2.5", "0.0", "-3.75"]), types.float64, True)
        value = self.pick([0, 1, 2, 3, 7, 31, 255, 65535, 1 << 31, (1 << 32) - 1, 1 << 33, -1, -5])
        if kind < 0.5:
            return Typed(f"({value})", types.int64, True)
        name = self.pick(["uint32", "uint32", "uint64", "int32", "float32", "uint16"])
        return Typed(f"{name}({value})", CASTS[name], True)

    def expression(self, depth):
        if depth == 0 or self.random.random() < 0.1:
            return self.leaf()
        for _ in range(50):
            made = self.pick([
                self.binary, self.binary, self.binary, self.binary, self.cast, self.cast,
                self.unary, self.compare, self.choice, self.extreme, self.function, self.logic,
                self.power,
            ])(depth - 1)  # fmt: skip
            if made is not None:
                return made
        return self.leaf()

    def binary(self, depth):
        sign = self.pick(ARITHMETIC)
        left, right = self.expression(depth), self.expression(depth)
        if sign in ("<<", ">>"):
            if right.is_float or right.is_bool:
                return None
            # what is shifted by 64 and more is undefined in LLVM
            right = Typed(f"({right.text} & {self.pick([7, 31, 63])})", types.int64)
        if sign in ("//", "%"):
            if left.is_float or right.is_float:
                return self.float_modulo(sign, left, right)
            kind = result_type(operator.or_, right.type, types.int64)
            right = Typed(f"({right.text} | 1)", kind)
        kind = result_type(ARITHMETIC[sign], left.type, right.type)
        # Python computes it, and numba has no integers of more than 64 bits
        huge = sign in ("<<", "*") and left.folds and right.folds
        if kind is None or huge:
            return None
        return Typed(f"({left.text} {sign} {right.text})", kind, left.folds and right.folds)

    def float_modulo(self, sign, left, right):
        kind = result_type(ARITHMETIC[sign], left.type, right.type)
        # LLVM computes a constant remainder exactly, the GPU does not
        if kind is None or (left.folds and right.folds):
            return None
        return Typed(f"({left.text} {sign} {right.text})", kind)

    def cast(self, depth):
        name, of = self.pick(CASTS), self.expression(depth)
        if of.is_float and CASTS[name] not in (types.float32, types.float64):
            if CASTS[name] == types.int8:
                return None
            of = self.measured()
        return Typed(f"{name}({of.text})", CASTS[name], of.folds)

    def measured(self):
        """Return a float that LLVM knows nothing of, and so makes no integer of by itself."""
        first, second = self.pick(["F0", "F1", "D0", "D1"]), self.pick(["F0", "F1", "D0", "D1"])
        text = self.pick(["{0}", "({0} * {1})", "({0} / {1})", "math.fabs({0})", "(-{0})"])
        return Typed(text.format(first, second), types.float64)

    def unary(self, depth):
        sign, of = self.pick("-~+"), self.expression(depth)
        function = {"-": operator.neg, "~": operator.invert, "+": operator.pos}[sign]
        kind = result_type(function, of.type)
        return None if kind is None else Typed(f"({sign}{of.text})", kind, of.folds)

    def compare(self, depth):
        sign = self.pick(COMPARISONS)
        left, right = self.expression(depth), self.expression(depth)
        if left.is_bool or right.is_bool:
            return None
        return Typed(f"({left.text} {sign} {right.text})", types.boolean)

    def logic(self, depth):
        left, right = self.compare(depth), self.compare(depth)
        if left is None or right is None:
            return None
        sign = self.pick(["and", "or"])
        inverted = self.pick(["", "not "])
        return Typed(f"({left.text} {sign} {inverted}{right.text})", types.boolean)

    def choice(self, depth):
        test = self.compare(depth)
        first, second = self.expression(depth), self.expression(depth)
        kind = cuda_target.typing_context.unify_types(first.type, second.type)
        if test is None or kind is None:
            return None
        return Typed(
            f"({first.text} if {test.text} else {second.text})", kind, first.folds or second.folds
        )

    def extreme(self, depth):
        name = self.pick(["min", "max"])
        left, right = self.expression(depth), self.expression(depth)
        if left.is_bool or right.is_bool:
            return None
        kind = result_type(__builtins__[name], left.type, right.type)
        return None if kind is None else Typed(
            f"{name}({left.text}, {right.text})", kind, left.folds or right.folds
        )

    def function(self, depth):
        import math

        name, of = self.pick(["abs", "int", "math.fabs", "math.sqrt"]), self.expression(depth)
        if of.is_bool:
            return None
        functions = {"abs": abs, "int": int, "math.fabs": math.fabs, "math.sqrt": math.sqrt}
        kind = result_type(functions[name], of.type)
        if of.is_float and name == "int":
            of, kind = self.measured(), types.int64
        if kind is None:
            return None
        return Typed(f"{name}({of.text})", kind, of.folds)

    def power(self, depth):
        of, exponent = self.expression(depth), self.pick([0, 1, 2, 3, 5])
        if of.is_bool or of.folds:
            return None
        kind = result_type(operator.pow, of.type, types.IntegerLiteral(exponent))
        return None if kind is None else Typed(f"({of.text} ** {exponent})", kind, of.folds)

    # statements, in which a variable is given values of several types

    def statements(self, place, depth):
        """Return lines that set the variable `t<place>`, and its type."""
        name = f"t{place}"
        first, second = self.expression(depth), self.expression(depth)
        test = self.compare(depth) or Typed("(U0 < U1)", types.boolean)
        unify = cuda_target.typing_context.unify_types
        if self.random.random() < 0.5:
            kind = unify(first.type, second.type)
            if kind is None:
                return None
            return [
                f"{name} = {first.text}",
                f"if {test.text}:",
                f"    {name} = {second.text}",
            ], Typed(name, kind)
        sign = self.pick("+-*&|^")
        kind = first.type
        for _ in range(3):
            step = result_type(ARITHMETIC[sign], kind, second.type)
            kind = unify(kind, step) if step is not None else None
            if kind is None:
                return None
        index = self.pick(["while", "for"])
        counter = f"k{place}"
        head = (
            [f"{counter} = uint32(0)", f"while {counter} < uint32(3):"]
            if index == "while"
            else [f"for {counter} in range(3):"]
        )
        step = [f"    {counter} = uint32({counter} + uint32(1))"] if index == "while" else []
        return [
            f"{name} = {first.text}", *head, f"    {name} {sign}= {second.text}", *step,
        ], Typed(name, kind)  # fmt: skip

    def lines(self, place, depth):
        """Return the lines that compute and store one result."""
        while True:
            if self.random.random() < 0.2:
                found = self.statements(place, depth - 1)
                if found is None:
                    continue
                before, made = found
            else:
                before, made = [], self.expression(depth)
            to = f"out + uint64({8 * place})"
            if made.type == types.float32:
                return [*before, f"st_global_f32({to}, {made.text})"]
            if made.type == types.float64:
                return [*before, f"st_f64({to}, {made.text})"]
            if made.is_bool:
                return [*before, f"st_u64({to}, uint64({made.text}))"]
            if isinstance(made.type, types.Integer):
                narrow = self.pick(["st_u64({}, {})", "st_global_u32({}, uint32({}))",
                                    "st_global_u32({}, {})", "st_u64({}, uint64({}))",
                                    "st_u64({}, uint64(uint16({})))"])
                return [*before, narrow.format(to, made.text)]


def source(seed, count, depth=3):
    """Return the text of a kernel of `count` random expressions."""
    writer = Writer(seed)
    lines = []
    for place in range(count):
        lines += writer.lines(place, depth)
    head = HEADER.format(input_bytes=INPUT_BYTES, output_bytes=8 * count)
    return head + "".join(f"    {line}\n" for line in lines)


def program(text, folder, name):
    """Return a kernel's program; its source is a file, as those of all kernels."""
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.pop(name, None)
    spec.loader.exec_module(module)
    return Program(module.kernel, pointers("x", "out"), LANES)


LAUNCH = Launch((1, 1, 1), {})


def inputs(seed):
    """Return the inputs of all lanes: numbers on the edges, small, and of any size."""
    rng = np.random.default_rng(seed)
    edges = [0, 1, 2, 3, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1,
             2**63, 2**64 - 1, 2**64 - 5]  # fmt: skip
    data = np.zeros((LANES, INPUT_BYTES), np.uint8)
    floats = [0.0, -0.0, 1.0, -1.5, 0.1, 1e-3, 123456.7, -3e9, 5e9, 1e19, -1e19, 2e38, np.inf,
              -np.inf, np.nan, 16777217.0]  # fmt: skip
    for lane in data:
        whole = rng.choice(np.array(edges, np.uint64), 2)
        random_bits = rng.integers(0, 2**64, 2, np.uint64)
        lane[:16] = np.where(rng.random(2) < 0.5, whole, random_bits).view(np.uint8)
        lane[16:32] = np.where(
            rng.random(2) < 0.5, rng.choice(floats, 2), rng.normal(0, 100, 2)
        ).view(np.uint8)
        words = np.array([edges[i] & 0xFFFFFFFF for i in rng.integers(0, len(edges), 4)], np.uint32)
        small = rng.integers(0, 2**32, 4, np.uint32) >> rng.integers(0, 32, 4, np.uint32)
        lane[32:48] = np.where(rng.random(4) < 0.4, words, small).view(np.uint8)
        lane[48:56] = np.where(
            rng.random(2) < 0.5, rng.choice(floats, 2), rng.normal(0, 100, 2)
        ).astype(np.float32).view(np.uint8)
        lane[56:60] = rng.integers(0, 2**16, 1, np.uint32).view(np.uint8)
    return data


def same(got, want):
    """Compare results of eight bytes each: equal bits, or both NaN as fp32 or fp64."""
    return got == want
