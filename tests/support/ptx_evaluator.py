"""Execute the scalar instructions of PTX, one thread after the other; it knows no kernel.

Registers hold Python ints, the bits of their value; what a type suffix makes of them is decided by
each instruction, as in the PTX ISA. Floats are computed by NumPy's scalars, which round as IEEE
754 says. NaN has one form: PTX promises no more.
"""

import math
import operator
import re

import numpy as np

KINDS = {"f32": np.float32, "f64": np.float64}
NAN = {32: 0x7FFFFFFF, 64: 0x7FFFFFFFFFFFFFFF}
LABEL = re.compile(r"(\$\w+):")
STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", re.DOTALL)
COMPARE = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "lo": operator.lt, "ls": operator.le,
    "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip
LOGIC = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
ROUND = {"rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc, "rni": np.rint}


def unfused(ptx):
    """Return PTX in which no product is fused with a sum, and in which ptxas may fuse none."""
    ptx = re.sub(
        r"fma\.rn\.f(32|64)\s+(%\w+), ([^,]+), ([^,]+), ([^;]+);",
        r"{ .reg .f\1 %t; mul.rn.f\1 %t, \3, \4; add.rn.f\1 \2, %t, \5; }",
        ptx,
    )
    return re.sub(r"\b(mul|add|sub)\.(f32|f64)\b", r"\1.rn.\2", ptx)


def bits_of(kind):
    """Return the width of a type suffix, `pred` being one bit wide."""
    return 1 if kind == "pred" else int(kind[1:])


def read(kind, bits):
    """Return the value that bits have as a type."""
    width = bits_of(kind)
    bits &= (1 << width) - 1
    if kind in KINDS:
        return np.array(bits, f"u{width // 8}").view(KINDS[kind])[()]
    if kind[0] == "s" and bits >> (width - 1):
        return bits - (1 << width)
    return bits


def write(kind, value):
    """Return the bits of a value of a type."""
    width = bits_of(kind)
    if kind in KINDS:
        if math.isnan(value):
            return NAN[width]
        return int(np.array(value, KINDS[kind]).view(f"u{width // 8}"))
    return int(value) & ((1 << width) - 1)


class Thread:
    """Registers of a thread, and what it can reach."""

    def __init__(self, memory, parameters, lane):
        self.registers = {"%laneid": lane, "%tid.x": lane, "%ctaid.x": 0, "%ctaid.y": 0}
        self.memory = memory
        self.parameters = parameters

    def __getitem__(self, name):
        if name in self.registers:
            return self.registers[name]
        if name.startswith("0f"):
            return int(name[2:], 16)
        if name.startswith("0d"):
            return int(name[2:], 16)
        return int(name, 0)


def truncated(value, kind):
    """Return a float as an integer of a type: towards zero, as near as it comes."""
    width = bits_of(kind)
    low = -(1 << (width - 1)) if kind[0] == "s" else 0
    high = low + (1 << width) - 1
    if math.isinf(value):
        return high if value > 0 else low
    return min(max(int(value), low), high)


def convert(to, source, rounding, saturate, value):
    """Return `cvt` of a value."""
    if source in KINDS and to in KINDS:
        value = ROUND[rounding](value) if rounding in ROUND else value
        return KINDS[to](value)
    if source in KINDS:
        if math.isnan(value):
            wide = source == "f64" or bits_of(to) == 64
            return 1 << (bits_of(to) - 1) if wide else 0
        return truncated(ROUND[rounding](value), to)
    if to in KINDS:
        # NumPy rounds a 64-bit integer once
        return KINDS[to](np.int64(value) if value < 1 << 63 else np.uint64(value))
    return value


def arithmetic(name, kind, a, b):
    """Return an operator of two values of a type."""
    if kind in KINDS:
        with np.errstate(all="ignore"):
            if name in ("min", "max"):
                if math.isnan(a) or math.isnan(b):
                    return b if math.isnan(a) else a
                key = lambda x: (x, math.copysign(1, x))  # noqa: E731
                return (min if name == "min" else max)(a, b, key=key)
            return {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name](
                a, b
            )
    if name in ("div", "rem"):
        if b == 0:
            return (1 << bits_of(kind)) - 1 if name == "div" else a
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        return quotient if name == "div" else a - quotient * b
    return {
        "add": operator.add, "sub": operator.sub, "mul": operator.mul, "min": min, "max": max,
        **LOGIC,
    }[name](a, b)  # fmt: skip


def shift(name, kind, value, amount):
    """Return a shift; amounts beyond the width shift everything out."""
    amount = min(amount & 0xFFFFFFFF, bits_of(kind))
    return value << amount if name == "shl" else value >> amount


def compile_one(opcode, operands):
    """Return a function of a thread that executes one instruction, not a branch."""
    name, *parts = opcode.split(".")
    kind = parts[-1] if parts else ""
    out, *given = operands

    def simple(compute, kind_in=kind, kind_out=kind, kinds=None):
        kinds = kinds or [kind_in] * len(given)

        def execute(thread):
            values = [read(k, thread[g]) for k, g in zip(kinds, given, strict=True)]
            thread.registers[out] = write(kind_out, compute(*values))

        return execute

    if name == "mov" and out.startswith("{"):
        names = [one for one in re.findall(r"[%\w]+", out)]
        width = bits_of(kind) // len(names)

        def unpack(thread):
            value = thread[given[0]]
            for place, one in enumerate(names):
                thread.registers[one] = value >> (place * width) & ((1 << width) - 1)

        return unpack
    if name == "mov" and given[0].startswith("{"):
        names = [one for one in re.findall(r"[%\w]+", given[0])]
        width = bits_of(kind) // len(names)

        def pack(thread):
            thread.registers[out] = sum(
                thread[one] << (place * width) for place, one in enumerate(names)
            )

        return pack
    if name == "mov":
        raw = kind if kind == "pred" else f"b{bits_of(kind)}"
        return simple(lambda a: a, raw, raw)
    if name == "cvt":
        to, source = parts[-2:]
        rounding = next((p for p in parts if p in (*ROUND, "rn", "rz")), None)
        return simple(lambda a: convert(to, source, rounding, "sat" in parts, a), source, to)
    if name in ("mul", "mad") and "wide" in parts:
        wide = f"{kind[0]}{2 * bits_of(kind)}"
        return simple(
            lambda a, b, c=0: a * b + c, kind, wide, [kind, kind, wide][: len(given)]
        )
    if name == "mul" and "hi" in parts:
        return simple(lambda a, b: a * b >> bits_of(kind))
    if name == "mad":
        return simple(lambda a, b, c: a * b + c)
    if name in ("shl", "shr"):
        kind = f"u{bits_of(kind)}" if kind[0] == "b" else kind
        return simple(
            lambda a, b: shift(name, kind, a, b), kind_out=kind, kinds=[kind, "u32"]
        )
    if name == "setp":
        test, logic = parts[0], parts[1] if parts[1] in LOGIC else None

        def compare(a, b):
            found = COMPARE.get(test)
            if kind in KINDS:
                unordered = math.isnan(a) or math.isnan(b)
                if test in ("num", "nan"):
                    return unordered == (test == "nan")
                if found is None:
                    return unordered or COMPARE[test[:-1]](a, b)
                return not unordered and found(a, b)
            return found(a, b)

        if logic:
            return simple(
                lambda a, b, p: LOGIC[logic](compare(a, b), bool(p)), kind, "pred",
                [kind, kind, "pred"],
            )  # fmt: skip
        return simple(compare, kind, "pred")
    if name == "selp":
        raw = f"b{bits_of(kind)}"
        return simple(lambda a, b, p: a if p else b, raw, raw, [raw, raw, "pred"])
    if name == "neg":
        return simple(operator.neg)
    if name == "abs":
        return simple(abs)
    if name == "not":
        return simple(lambda a: ~a if kind != "pred" else 1 - a)
    if name == "rcp":
        return simple(lambda a: arithmetic("div", kind, KINDS[kind](1), a))
    if name == "sqrt":
        def root(a):
            with np.errstate(all="ignore"):
                return np.sqrt(a)
        return simple(root)
    if name == "bfe":
        unsigned = f"u{bits_of(kind)}"
        assert kind[0] == "u"
        return simple(
            lambda a, at, n: a >> (at & 255) & ((1 << (n & 255)) - 1), unsigned, unsigned,
            [unsigned, "u32", "u32"],
        )  # fmt: skip
    if name == "bfi":
        raw = f"b{bits_of(kind)}"

        def insert(a, b, at, n):
            mask = ((1 << (n & 255)) - 1) << (at & 255)
            return (b & ~mask) | (a << (at & 255) & mask)

        return simple(insert, raw, raw, [raw, raw, "u32", "u32"])
    if name == "shf":
        assert parts[1] in ("wrap", "clamp")
        left = parts[0] == "l"

        def funnel(low, high, amount):
            amount = amount & 31 if parts[1] == "wrap" else min(amount, 32)
            both = high << 32 | low
            return both << amount >> 32 if left else both >> amount

        return simple(funnel, "b32", "b32", ["b32", "b32", "u32"])
    if name == "prmt":
        def permute(a, b, selector):
            data = (b << 32 | a).to_bytes(8, "little")
            chosen = [data[selector >> (4 * i) & 7] for i in range(4)]
            signs = [selector >> (4 * i) & 8 for i in range(4)]
            assert not any(signs)
            return int.from_bytes(bytes(chosen), "little")
        return simple(permute)
    if name in ("add", "sub", "mul", "div", "rem", "min", "max", "and", "or", "xor"):
        assert not {"cc", "sat", "approx", "full", "ftz"} & set(parts), opcode
        return simple(lambda a, b: arithmetic(name, kind, a, b))
    if name == "ld" and parts[0] == "param":
        def parameter(thread):
            thread.registers[out] = thread.parameters[int(given[0].strip("[]").rpartition("_")[2])]
        return parameter
    if name == "ld" and parts[0] == "global":
        def load(thread):
            place = thread[given[0].strip("[]")]
            size = bits_of(kind) // 8
            thread.registers[out] = int.from_bytes(thread.memory[place : place + size], "little")
        return load
    if name == "st" and parts[0] == "global":
        def store(thread):
            place, size = thread[out.strip("[]")], bits_of(kind) // 8
            thread.memory[place : place + size] = (
                thread[given[0]] & ((1 << 8 * size) - 1)
            ).to_bytes(size, "little")
        return store

    def unknown(thread):
        raise NotImplementedError(f"{opcode} {operands}")

    return unknown


def parsed(ptx):
    """Return instructions as (guard, negated, branch target or None, function) and labels."""
    body = ptx[ptx.index("{", ptx.index(".entry")) + 1 :]
    body = body.split("\n.func")[0]
    body = re.sub(r"//[^\n]*", "", body)
    code, labels = [], {}
    for text in re.split(r";|\n(?=\$)|(?<=:)\n", body):
        text = text.strip().lstrip("{}\n\t ")
        while match := LABEL.match(text):
            labels[match[1]] = len(code)
            text = text[match.end() :].strip().lstrip("{}\n\t ")
        text = text.strip()
        if not text or text.startswith((".", "}")):
            continue
        match = STATEMENT.fullmatch(text)
        assert match, text
        negated, guard, opcode, rest = match.groups()
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)
        if opcode.split(".")[0] == "bra":
            code.append((guard, bool(negated), operands[0], None))
        elif opcode == "ret":
            code.append((guard, bool(negated), "", None))
        else:
            code.append((guard, bool(negated), None, compile_one(opcode, operands)))
    return code, labels


def evaluate(ptx, memory, parameters, lanes):
    """Run a kernel's PTX in `lanes` threads of one warp; addresses index `memory`, a bytearray."""
    code, labels = parsed(ptx)
    for lane in range(lanes):
        thread = Thread(memory, parameters, lane)
        place = 0
        while place < len(code):
            guard, negated, target, execute = code[place]
            place += 1
            if guard is not None and bool(thread[guard]) == negated:
                continue
            if target is None:
                execute(thread)
            elif not target:
                break
            else:
                place = labels[target]
