"""Execute the scalar instructions of PTX, one thread after the other; it knows no kernel.

Registers hold Python ints, the bits of their value; what a type suffix makes of them is decided by
each instruction, as in the PTX ISA.
"""

import math
import operator
import re

from ptx_scalars import (
    COMPARE,
    KINDS,
    LOGIC,
    ROUND,
    arithmetic,
    bits_of,
    convert,
    permuted,
    raw,
    read,
    root,
    shift,
    write,
)  # fmt: skip

LABEL = re.compile(r"(\$\w+):")
STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", re.DOTALL)


def unfused(ptx):
    """Return PTX in which no product is fused with a sum, and in which ptxas may fuse none."""
    ptx = re.sub(
        r"fma\.rn\.f(32|64)\s+(%\w+), ([^,]+), ([^,]+), ([^;]+);",
        r"{ .reg .f\1 %t; mul.rn.f\1 %t, \3, \4; add.rn.f\1 \2, %t, \5; }",
        ptx,
    )
    return re.sub(r"\b(mul|add|sub)\.(f32|f64)\b", r"\1.rn.\2", ptx)


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


def computing(out, given, compute, kinds, kind):
    """Return what writes `compute` of operands of these types to a register of a type."""

    def execute(thread):
        values = [read(k, thread[g]) for k, g in zip(kinds, given, strict=True)]
        thread.registers[out] = write(kind, compute(*values))

    return execute


def compiled(opcode, operands):
    """Return a function of a thread that executes one instruction, not a branch."""
    name, *parts = opcode.split(".")
    make = MAKERS.get(name)
    if make is None or (name in ("ld", "st") and parts[0] not in ("param", "global")):

        def unknown(thread):
            raise NotImplementedError(f"{opcode} {operands}")

        return unknown
    return make(name, parts, operands)


def make_alike(name, parts, operands):
    """An instruction whose operands and result have the type of its suffix."""
    assert not {"cc", "sat", "approx", "full", "ftz"} & set(parts), (name, parts)
    kind, (out, *given) = parts[-1], operands
    compute = {
        "neg": operator.neg, "abs": abs, "sqrt": root, "prmt": permuted,
        "not": lambda a: ~a if kind != "pred" else 1 - a,
        "rcp": lambda a: arithmetic("div", kind, KINDS[kind](1), a),
    }.get(name, lambda a, b: arithmetic(name, kind, a, b))  # fmt: skip
    return computing(out, given, compute, [kind] * len(given), kind)


def make_product(name, parts, operands):
    """`mul` and `mad`: the low half of a product, the high one, all of it, or of floats."""
    kind, (out, *given) = parts[-1], operands
    if "wide" in parts:
        wide = f"{kind[0]}{2 * bits_of(kind)}"
        kinds = [kind, kind, wide][: len(given)]
        return computing(out, given, lambda a, b, c=0: a * b + c, kinds, wide)
    if "hi" in parts:
        return computing(out, given, lambda a, b: a * b >> bits_of(kind), [kind] * 2, kind)
    if name == "mad":
        return computing(out, given, lambda a, b, c: a * b + c, [kind] * 3, kind)
    return make_alike(name, parts, operands)


def make_move(name, parts, operands):
    """`mov`, of a register or between one and the parts of it."""
    kind, (out, of) = parts[-1], operands
    names = re.findall(r"[%\w]+", out if out.startswith("{") else of)
    width = bits_of(kind) // len(names)

    def unpack(thread):
        for place, one in enumerate(names):
            thread.registers[one] = thread[of] >> (place * width) & ((1 << width) - 1)

    def pack(thread):
        thread.registers[out] = sum(thread[n] << (place * width) for place, n in enumerate(names))

    if out.startswith("{"):
        return unpack
    return pack if of.startswith("{") else computing(out, [of], int, [raw(kind)], raw(kind))


def make_conversion(name, parts, operands):
    """`cvt`."""
    (out, of), (to, source) = operands, parts[-2:]
    rounding = next((p for p in parts if p in (*ROUND, "rn")), None)
    assert "sat" not in parts
    compute = lambda a: convert(to, source, rounding, a)  # noqa: E731
    return computing(out, [of], compute, [source], to)


def make_shift(name, parts, operands):
    """`shl` and `shr`, whose amount is 32 bits wide."""
    kind, (out, *given) = parts[-1].replace("b", "u"), operands
    return computing(out, given, lambda a, n: shift(name, kind, a, n), [kind, "u32"], kind)


def make_comparison(name, parts, operands):
    """`setp`, also of a test and a predicate."""
    test, kind, (out, *given) = parts[0], parts[-1], operands
    logic = LOGIC.get(parts[1], lambda a, p: a)

    def compute(a, b, p=0):
        unordered = kind in KINDS and (math.isnan(a) or math.isnan(b))
        if test in ("num", "nan"):
            found = unordered == (test == "nan")
        elif test in COMPARE:
            found = not unordered and COMPARE[test](a, b)
        else:
            found = unordered or COMPARE[test[:-1]](a, b)
        return logic(bool(found), bool(p))

    return computing(out, given, compute, [kind, kind, "pred"][: len(given)], "pred")


def make_selection(name, parts, operands):
    """`selp`."""
    kind, (out, *given) = raw(parts[-1]), operands
    return computing(out, given, lambda a, b, p: a if p else b, [kind, kind, "pred"], kind)


def make_field(name, parts, operands):
    """`bfe` and `bfi`: bits taken from, or put into, a register."""
    kind, (out, *given) = parts[-1], operands
    assert kind[0] in "ub"

    def extract(a, at, n):
        return a >> (at & 255) & ((1 << (n & 255)) - 1)

    def insert(a, b, at, n):
        mask = ((1 << (n & 255)) - 1) << (at & 255)
        return (b & ~mask) | (a << (at & 255) & mask)

    compute, values = (extract, [kind]) if name == "bfe" else (insert, [kind, kind])
    return computing(out, given, compute, [*values, "u32", "u32"], kind)


def make_funnel(name, parts, operands):
    """`shf`: a shift of two registers as if they were one."""
    (side, mode), (out, *given) = parts[:2], operands

    def compute(low, high, amount):
        amount = amount & 31 if mode == "wrap" else min(amount, 32)
        both = high << 32 | low
        return both << amount >> 32 if side == "l" else both >> amount

    return computing(out, given, compute, ["b32", "b32", "u32"], "b32")


def make_load(name, parts, operands):
    """`ld.param` and `ld.global`."""
    kind, (out, of) = parts[-1], operands
    of = of.strip("[]")

    def parameter(thread):
        thread.registers[out] = thread.parameters[int(of.rpartition("_")[2])]

    def load(thread):
        place = thread[of]
        data = thread.memory[place : place + bits_of(kind) // 8]
        thread.registers[out] = int.from_bytes(data, "little")

    return parameter if parts[0] == "param" else load


def make_store(name, parts, operands):
    """`st.global`."""
    size, (to, of) = bits_of(parts[-1]) // 8, operands

    def store(thread):
        place = thread[to.strip("[]")]
        value = thread[of] & ((1 << 8 * size) - 1)
        thread.memory[place : place + size] = value.to_bytes(size, "little")

    return store


ALIKE = (
    "add", "sub", "div", "rem", "min", "max", "and", "or", "xor", "not", "neg", "abs", "sqrt",
    "rcp", "prmt",
)  # fmt: skip
MAKERS = dict.fromkeys(ALIKE, make_alike) | {
    "mul": make_product, "mad": make_product, "mov": make_move, "cvt": make_conversion,
    "shl": make_shift, "shr": make_shift, "setp": make_comparison, "selp": make_selection,
    "bfe": make_field, "bfi": make_field, "shf": make_funnel, "ld": make_load, "st": make_store,
}  # fmt: skip


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
            code.append((guard, bool(negated), None, compiled(opcode, operands)))
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
