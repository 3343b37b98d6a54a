"""Values of PTX's scalar types, and what its instructions make of them.

Floats are computed by NumPy's scalars, which round as IEEE 754 says. NaN has one form: PTX promises
no more.
"""

import math
import operator

import numpy as np

KINDS = {"f32": np.float32, "f64": np.float64}
NAN = {32: 0x7FFFFFFF, 64: 0x7FFFFFFFFFFFFFFF}
COMPARE = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "lo": operator.lt, "ls": operator.le,
    "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip
LOGIC = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
ROUND = {"rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc, "rni": np.rint}


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


def truncated(value, kind):
    """Return a float as an integer of a type: towards zero, as near as it comes."""
    width = bits_of(kind)
    low = -(1 << (width - 1)) if kind[0] == "s" else 0
    high = low + (1 << width) - 1
    if math.isinf(value):
        return high if value > 0 else low
    return min(max(int(value), low), high)


def convert(to, source, rounding, value):
    """Return `cvt` of a value."""
    if source in KINDS and to in KINDS:
        value = ROUND[rounding](value) if rounding in ROUND else value
        with np.errstate(over="ignore"):
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


def raw(kind):
    """Return the bits of a type, whatever they mean."""
    return kind if kind == "pred" else f"b{bits_of(kind)}"


def root(value):
    with np.errstate(all="ignore"):
        return np.sqrt(value)


def permuted(a, b, selector):
    """Return `prmt` of its plain mode, without copies of signs."""
    assert not selector & 0x8888
    data = (b << 32 | a).to_bytes(8, "little")
    return int.from_bytes(bytes(data[selector >> (4 * i) & 7] for i in range(4)), "little")
