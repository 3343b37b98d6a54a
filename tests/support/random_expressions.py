"""Random expressions of the kernel language, with the types that numba gives them."""

import builtins
import math
import operator
import random
import re
from dataclasses import dataclass

from numba.cuda import types
from numba.cuda.descriptor import cuda_target

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
# what is not negative, or may be made of what is not
KNOWN_SIGN = re.compile(r"U\d|L0|H0|uint|abs|sqrt|[*(]\d|\d\.\d")


@dataclass(frozen=True)
class Typed:
    """The text of an expression, and the type numba gives it."""

    text: str
    type: object
    # whether it may be a constant, which LLVM converts before anything runs
    folds: bool = False
    # at most so many bits, if it is an integer
    bits: int = 64

    @property
    def is_signed(self):
        return isinstance(self.type, types.Integer) and self.type.signed

    @property
    def is_float(self):
        return isinstance(self.type, types.Float)

    @property
    def is_bool(self):
        return isinstance(self.type, types.Boolean)


def width(kind):
    """Return the bits of an integer type, 64 of any other."""
    return kind.bitwidth if isinstance(kind, types.Integer) else 64


# what numba knows of functions only since it compiled one, so that a seed says the same always
cuda_target.typing_context.refresh()


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
        return Typed(name, known[name], False, width(known[name]))

    def constant(self):
        kind = self.random.random()
        if kind < 0.2:
            return Typed(self.pick(["0.1", "2.5", "0.0", "-3.75"]), types.float64, True)
        value = self.pick([0, 1, 2, 3, 7, 31, 255, 65535, 1 << 31, (1 << 32) - 1, 1 << 33, -1, -5])
        if kind < 0.5:
            return Typed(f"({value})", types.int64, True, 34)
        name = self.pick(["uint32", "uint32", "uint64", "int32", "float32", "uint16"])
        return Typed(f"{name}({value})", CASTS[name], True, width(CASTS[name]))

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
            right = Typed(f"({right.text} & {self.pick([7, 31, 63])})", types.int64, right.folds)
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
        bits = left.bits + right.bits if sign == "*" else max(left.bits, right.bits) + 1
        if kind == types.int64 and sign in "+-*" and bits > 63:
            # numba tells LLVM that signed numbers do not overflow
            left, right, bits = self.small(left), self.small(right), 34
        if sign not in "+-*":
            bits = 64
        return Typed(f"({left.text} {sign} {right.text})", kind, left.folds and right.folds, bits)

    def float_modulo(self, sign, left, right):
        kind = result_type(ARITHMETIC[sign], left.type, right.type)
        # LLVM computes a constant remainder exactly, the GPU does not
        if kind is None or (left.folds and right.folds):
            return None
        # and knows its sign where it knows those of both: docs/reliability.md#types
        if KNOWN_SIGN.search(left.text) and KNOWN_SIGN.search(right.text):
            return None
        return Typed(f"({left.text} {sign} {right.text})", kind)

    def cast(self, depth):
        name, of = self.pick(CASTS), self.expression(depth)
        if of.is_float and CASTS[name] not in (types.float32, types.float64):
            of = self.measured(CASTS[name])
        return Typed(f"{name}({of.text})", CASTS[name], of.folds, width(CASTS[name]))

    def small(self, of, divisor=65521):
        """Return an integer as its remainder, which is a small one; a float as it is."""
        if of.is_float or of.is_bool:
            return of
        kind = result_type(operator.mod, of.type, types.int64)
        return Typed(f"({of.text} % {divisor})", kind, of.folds, 17)

    def measured(self, kind):
        """Return a float in the range of an integer type, of which LLVM knows nothing else."""
        low, high = {True: (-100.0, 100.0), False: (0.0, 200.0)}[kind.signed]
        if kind.bitwidth > 8:
            low, high = 300 * low, 300 * high
        first, second = self.pick(["F0", "F1", "D0", "D1"]), self.pick(["F0", "F1", "D0", "D1"])
        text = self.pick(["{0}", "({0} * {1})", "({0} / {1})", "math.fabs({0})", "(-{0})"])
        text = text.format(first, second)
        return Typed(f"min(max({text}, {low}), {high})", types.float64)

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
        if left.is_bool or right.is_bool or left.is_float != right.is_float:
            # of an int and a float, LLVM may take the other zero
            return None
        kind = result_type(getattr(builtins, name), left.type, right.type)
        return (
            None
            if kind is None
            else Typed(f"{name}({left.text}, {right.text})", kind, left.folds or right.folds)
        )

    def function(self, depth):
        name, of = self.pick(["abs", "int", "math.fabs", "math.sqrt"]), self.expression(depth)
        if of.is_bool:
            return None
        functions = {"abs": abs, "int": int, "math.fabs": math.fabs, "math.sqrt": math.sqrt}
        kind = result_type(functions[name], of.type)
        if of.is_float and name == "int":
            of, kind = self.measured(types.int64), types.int64
        if kind is None:
            return None
        return Typed(f"{name}({of.text})", kind, of.folds)

    def power(self, depth):
        of, exponent = self.expression(depth), self.pick([0, 1, 2, 3, 5])
        if of.is_bool or of.folds:
            return None
        if not of.is_float:
            of = self.small(of, 127)
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
        if sign in "+-*":
            # what all turns make of signed numbers does not overflow
            first, second = (
                self.small(one, 127) if sign == "*" or one.bits > 60 else one
                for one in (first, second)
            )
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
                narrow = self.pick(
                    [
                        "st_u64({}, {})",
                        "st_global_u32({}, uint32({}))",
                        "st_global_u32({}, {})",
                        "st_u64({}, uint64({}))",
                        "st_u64({}, uint64(uint16({})))",
                    ]
                )
                return [*before, narrow.format(to, made.text)]
