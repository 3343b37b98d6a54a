"""Register arithmetic: bit logic, byte permutation, fp32, and pairs of fp16 or bf16 in a register.

A pair has its first element in the low half. Pair arithmetic rounds once, to nearest even, keeps
subnormals, and gives the canonical NaN 0x7fff.
"""

from __future__ import annotations

import numpy as np

from ferrum_numba.ptx.instruction import F32, IMMEDIATE, U32, Array, instruction

CANONICAL_NAN = np.uint16(0x7FFF)


@instruction("lop3.b32 <d>, <a>, <b>, <c>, <lut>;")
def lop3(a: U32, b: U32, c: U32, lut: IMMEDIATE) -> U32:
    """Return any bitwise function of three words.

    Args:
        lut: the function applied to a = 0xf0, b = 0xcc, c = 0xaa; (a & b) | c is 0xea

    Source: PTX ISA, "Logic and Shift Instructions: lop3".
    """
    out = np.zeros_like(a)
    for index in range(8):
        if lut >> index & 1:
            out |= (a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c)
    return out


@instruction("prmt.b32 <d>, <a>, <b>, <selector>;")
def prmt(a: U32, b: U32, selector: U32) -> U32:
    """Return four bytes picked from the eight of (b, a).

    Args:
        a:        bytes 0 to 3, the lowest first
        b:        bytes 4 to 7
        selector: nibble i picks byte i of the result: bits 0 to 2 the byte, bit 3 replicates
                  its sign instead

    Source: PTX ISA, "Data Movement and Conversion Instructions: prmt", default mode.
    """
    source = np.stack([a, b], axis=-1).view(np.uint8)  # [lanes, 8]
    nibbles = selector[:, None] >> np.array([0, 4, 8, 12], np.uint32)  # [lanes, 4]
    picked = np.take_along_axis(source, (nibbles & 7).astype(np.intp), axis=-1)
    sign = np.where(picked >> 7, np.uint8(0xFF), np.uint8(0))
    return np.where(nibbles & 8, sign, picked).view(np.uint32)[:, 0]


@instruction("popc.b32 <d>, <a>;")
def popc(a: U32) -> U32:
    """Return how many bits of a are 1.

    Source: PTX ISA, "Integer Arithmetic Instructions: popc".
    """
    return np.bitwise_count(a).astype(np.uint32)


def widen(registers: Array, dtype: str) -> Array:
    """Return the fp16 or bf16 elements of 32-bit registers as float64.

    Args:
        registers: [..., n] uint32, the low half first
        dtype:     "f16" or "bf16"

    Returns:
        [..., 2n] float64, exact
    """
    halves = np.ascontiguousarray(registers).view(np.uint16)
    # a signalling NaN becomes a quiet one
    with np.errstate(invalid="ignore"):
        if dtype == "f16":
            return halves.view(np.float16).astype(np.float64)
        return (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _elements(pair: Array, dtype: str) -> Array:
    """Return [lanes, 2] float64 of [lanes] pairs."""
    return widen(pair[:, None], dtype)


def round_to_f16(value: Array) -> Array:
    """Round float32 or float64 to fp16 bits, once, to nearest even.

    Returns:
        uint16, the shape of value
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        bits = value.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(value), CANONICAL_NAN, bits)


def round_to_bf16(value: Array) -> Array:
    """Round float32 or float64 to bf16 bits, once, to nearest even.

    Returns:
        uint16, the shape of value
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = value.astype(np.float32)
        bits = single.view(np.uint32)
        # fp32 rounded to odd (towards zero, then the last bit says "inexact") loses nothing that
        # the rounding to bf16 would need
        bits = bits - (np.abs(single) > np.abs(value))
        bits = bits | (single != value)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(value), CANONICAL_NAN, rounded.astype(np.uint16))


ROUND = {"f16": round_to_f16, "bf16": round_to_bf16}


def add_to_odd(a: Array, b: Array) -> Array:
    """Return a + b in float64, rounded to odd, so that a later rounding is as if the only one.

    The error of the sum is exact (Knuth's two-sum); where there is one and the last bit is even,
    the sum moves one place towards it (Boldo and Melquiond, "Emulation of FMA and correctly
    rounded sums", 2008).
    """
    with np.errstate(invalid="ignore"):
        total = a + b
        part = total - a
        error = (a - (total - part)) + (b - part)
        inexact = np.isfinite(total) & (error != 0) & (total.view(np.uint64) % 2 == 0)
        return np.where(inexact, np.nextafter(total, np.copysign(np.inf, error)), total)


def _fma(a: Array, b: Array, c: Array) -> Array:
    with np.errstate(invalid="ignore"):
        product = a * b  # exact: 22 bits at most, within float64's range
    return add_to_odd(product, c)


def _join(halves: Array) -> Array:
    """Return [lanes] uint32 of [lanes, 2] uint16."""
    return np.ascontiguousarray(halves).view(np.uint32)[:, 0]


@instruction("fma.rn.f32 <d>, <a>, <b>, <c>;")
def fma_f32(a: F32, b: F32, c: F32) -> F32:
    """Return a * b + c, rounded once to nearest even.

    Source: PTX ISA, "Floating Point Instructions: fma".
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # the product has 48 bits at most: exact
        return _fma(*(x.astype(np.float64) for x in (a, b, c))).astype(np.float32)


@instruction("div.rn.f32 <d>, <a>, <b>;")
def div_f32(a: F32, b: F32) -> F32:
    """Return a / b, rounded once to fp32.

    Source: PTX ISA, "Floating Point Instructions: div".
    """
    with np.errstate(all="ignore"):
        return (a / b).astype(np.float32)


@instruction("add.rn.f16x2 <d>, <a>, <b>;")
def add_f16x2(a: U32, b: U32) -> U32:
    """Return a + b for pairs of fp16.

    Source: PTX ISA, "Half Precision Floating-Point Instructions: add"; `.rn` forbids fusing.
    """
    return _join(round_to_f16(add_to_odd(_elements(a, "f16"), _elements(b, "f16"))))


@instruction("sub.rn.f16x2 <d>, <a>, <b>;")
def sub_f16x2(a: U32, b: U32) -> U32:
    """Return a - b for pairs of fp16.

    Source: PTX ISA, "Half Precision Floating-Point Instructions: sub"; `.rn` forbids fusing.
    """
    return _join(round_to_f16(add_to_odd(_elements(a, "f16"), -_elements(b, "f16"))))


@instruction("mul.rn.f16x2 <d>, <a>, <b>;")
def mul_f16x2(a: U32, b: U32) -> U32:
    """Return a * b for pairs of fp16.

    Source: PTX ISA, "Half Precision Floating-Point Instructions: mul"; `.rn` forbids fusing.
    """
    with np.errstate(invalid="ignore"):
        return _join(round_to_f16(_elements(a, "f16") * _elements(b, "f16")))


@instruction("fma.rn.f16x2 <d>, <a>, <b>, <c>;")
def fma_f16x2(a: U32, b: U32, c: U32) -> U32:
    """Return a * b + c for pairs of fp16, rounded once.

    Source: PTX ISA, "Half Precision Floating-Point Instructions: fma".
    """
    return _join(round_to_f16(_fma(_elements(a, "f16"), _elements(b, "f16"), _elements(c, "f16"))))


# sm_80 has no add, sub or mul of bf16; an fma with 1, -1 or -0 gives the same bits everywhere
@instruction("{\n .reg .b32 one;\n mov.b32 one, 0x3f803f80;\n fma.rn.bf16x2 <d>, <a>, one, <b>;\n}")
def add_bf16x2(a: U32, b: U32) -> U32:
    """Return a + b for pairs of bf16, computed as a * 1 + b.

    Source: PTX ISA, "Half Precision Floating-Point Instructions: fma".
    """
    return _join(round_to_bf16(add_to_odd(_elements(a, "bf16"), _elements(b, "bf16"))))


@instruction(
    "{\n .reg .b32 minus;\n mov.b32 minus, 0xbf80bf80;\n fma.rn.bf16x2 <d>, <b>, minus, <a>;\n}"
)
def sub_bf16x2(a: U32, b: U32) -> U32:
    """Return a - b for pairs of bf16, computed as b * -1 + a.

    Source: PTX ISA, "Half Precision Floating-Point Instructions: fma".
    """
    return _join(round_to_bf16(add_to_odd(_elements(a, "bf16"), -_elements(b, "bf16"))))


@instruction(
    "{\n .reg .b32 zero;\n mov.b32 zero, 0x80008000;\n fma.rn.bf16x2 <d>, <a>, <b>, zero;\n}"
)
def mul_bf16x2(a: U32, b: U32) -> U32:
    """Return a * b for pairs of bf16, computed as a * b + (-0), which keeps the sign of a zero.

    Source: PTX ISA, "Half Precision Floating-Point Instructions: fma".
    """
    with np.errstate(invalid="ignore"):
        return _join(round_to_bf16(_elements(a, "bf16") * _elements(b, "bf16")))


@instruction("fma.rn.bf16x2 <d>, <a>, <b>, <c>;")
def fma_bf16x2(a: U32, b: U32, c: U32) -> U32:
    """Return a * b + c for pairs of bf16, rounded once.

    Source: PTX ISA, "Half Precision Floating-Point Instructions: fma".
    """
    return _join(
        round_to_bf16(_fma(_elements(a, "bf16"), _elements(b, "bf16"), _elements(c, "bf16")))
    )
