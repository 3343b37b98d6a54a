"""Conversions between fp32, fp16, bf16 and plain bits, and tuples of one value.

fp16 and bf16 travel as uint16 bits, or two to a uint32 with the first in the low half.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import ml_dtypes
import numpy as np

from ferrum_numba.ptx.arithmetic import round_to_bf16, round_to_f16
from ferrum_numba.ptx.instruction import F32, U16, U32, Array, F32x2, Instruction, instruction


def _join(lo: Array, hi: Array) -> Array:
    return lo.astype(np.uint32) | hi.astype(np.uint32) << 16


def _widen_f16(bits: Array) -> Array:
    """Return float32 of fp16 bits; a NaN becomes the canonical one, as on the GPU."""
    with np.errstate(invalid="ignore"):
        wide = np.ascontiguousarray(bits).view(np.float16).astype(np.float32)
    return np.where(np.isnan(wide), np.uint32(0x7FFFFFFF).view(np.float32), wide)


@instruction("cvt.rn.f16x2.f32 <d>, <hi>, <lo>;")
def pack_f16x2(lo: F32, hi: F32) -> U32:
    """Round two fp32 to a pair of fp16, to nearest even; lo goes to the low half.

    Source: PTX ISA, "Data Movement and Conversion Instructions: cvt" (its first operand is high).
    """
    return _join(round_to_f16(lo), round_to_f16(hi))


@instruction("cvt.rn.bf16x2.f32 <d>, <hi>, <lo>;")
def pack_bf16x2(lo: F32, hi: F32) -> U32:
    """Round two fp32 to a pair of bf16, to nearest even; lo goes to the low half.

    Source: PTX ISA, "Data Movement and Conversion Instructions: cvt" (its first operand is high).
    """
    return _join(round_to_bf16(lo), round_to_bf16(hi))


@instruction(
    "{\n .reg .b16 lo, hi;\n mov.b32 {lo, hi}, <pair>;\n"
    " cvt.f32.f16 <d.0>, lo;\n cvt.f32.f16 <d.1>, hi;\n}"
)
def unpack_f16x2(pair: U32) -> F32x2:
    """Return the two fp16 of a pair as fp32, exactly, the low half first.

    Source: PTX ISA, "Data Movement and Conversion Instructions: cvt".
    """
    return _widen_f16(np.stack([pair], -1).view(np.uint16))


@instruction(
    "{\n .reg .b32 lo, hi;\n shl.b32 lo, <pair>, 16;\n and.b32 hi, <pair>, 0xffff0000;\n"
    " mov.b32 <d.0>, lo;\n mov.b32 <d.1>, hi;\n}"
)
def unpack_bf16x2(pair: U32) -> F32x2:
    """Return the two bf16 of a pair as fp32, exactly, the low half first.

    A bf16 is the upper half of an fp32: bits move, nothing is computed.
    """
    return np.stack([pair << 16, pair & np.uint32(0xFFFF0000)], -1).view(np.float32)


@instruction("cvt.f32.f16 <d>, <value>;")
def f16_to_f32(value: U16) -> F32:
    """Return fp16 bits as fp32, exactly.

    Source: PTX ISA, "Data Movement and Conversion Instructions: cvt".
    """
    return _widen_f16(value)


@instruction("cvt.rn.f16.f32 <d>, <value>;")
def f32_to_f16(value: F32) -> U16:
    """Round fp32 to fp16 bits, to nearest even.

    Source: PTX ISA, "Data Movement and Conversion Instructions: cvt".
    """
    return round_to_f16(value)


@instruction("{\n .reg .b16 zero;\n mov.b16 zero, 0;\n mov.b32 <d>, {zero, <value>};\n}")
def bf16_to_f32(value: U16) -> F32:
    """Return bf16 bits as fp32, exactly: they are its upper half."""
    return (value.astype(np.uint32) << 16).view(np.float32)


@instruction("cvt.rn.bf16.f32 <d>, <value>;")
def f32_to_bf16(value: F32) -> U16:
    """Round fp32 to bf16 bits, to nearest even.

    Source: PTX ISA, "Data Movement and Conversion Instructions: cvt".
    """
    return round_to_bf16(value)


@instruction("mov.b32 <d>, <value>;")
def f32_bits(value: F32) -> U32:
    """Return the bits of an fp32."""
    return np.ascontiguousarray(value).view(np.uint32)


@instruction("mov.b32 <d>, <value>;")
def bits_f32(value: U32) -> F32:
    """Return the fp32 of these bits."""
    return np.ascontiguousarray(value).view(np.float32)


@instruction(
    "{\n .reg .b16 pair;\n cvt.rn.satfinite.e4m3x2.f32 pair, <hi>, <lo>;\n"
    " mov.b32 <d>, {pair, pair};\n}",
    arch="sm_89",
)
def pack_e4m3x2(lo: F32, hi: F32) -> U32:
    """Round two fp32 to e4m3, to nearest even, no further than 448; in both halves, lo lowest.

    A NaN becomes 0x7f.

    Source: PTX ISA, "Data Movement and Conversion Instructions: cvt".
    """
    near = np.clip(np.stack([lo, hi], -1), -448, 448)
    codes = near.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    codes = np.where(np.isnan(near), np.uint8(0x7F), codes)
    return np.ascontiguousarray(np.tile(codes, 2)).view(np.uint32)[..., 0]


@instruction(
    "{\n .reg .b32 p, q;\n cvt.rni.sat.s8.f32 p, <lo>;\n cvt.rni.sat.s8.f32 q, <hi>;\n"
    " prmt.b32 <d>, p, q, 0x4040;\n}"
)
def pack_s8x2(lo: F32, hi: F32) -> U32:
    """Round two fp32 to int8, to nearest even, saturated; in both halves, lo lowest.

    A NaN becomes 0.

    Source: PTX ISA, "Data Movement and Conversion Instructions: cvt".
    """
    near = np.clip(np.rint(np.nan_to_num(np.stack([lo, hi], -1), nan=0)), -128, 127)
    return np.ascontiguousarray(np.tile(near.astype(np.int8), 2)).view(np.uint32)[..., 0]


@instruction("cvt.rn.f16x2.e4m3x2 <d>, <pair>;", arch="sm_89")
def e4m3x2_to_f16x2(pair: U16) -> U32:
    """Return two e4m3 as fp16, exactly, the low byte in the low half.

    Source: PTX ISA, "Data Movement and Conversion Instructions: cvt".
    """
    codes = np.ascontiguousarray(pair).view(ml_dtypes.float8_e4m3fn).reshape(-1, 2)
    halves = codes.astype(np.float32).astype(np.float16)
    bits = np.where(np.isnan(halves), np.uint16(0x7FFF), halves.view(np.uint16))
    return np.ascontiguousarray(bits).view(np.uint32)[..., 0]


@cache
def splat_f32(n: int) -> Instruction:
    """Return the instruction value: F32 -> tuple of n copies.

    It stands for a tuple display, which Numba cannot compile over 30 elements.
    """
    moves = "\n".join(f"mov.b32 <d.{i}>, <value>;" for i in range(n))
    f32 = cast(Any, F32)

    def twin(value: Array) -> Array:
        return np.repeat(value[:, None], n, axis=1)

    return Instruction(f"splat_f32_x{n}", moves, {"value": f32}, f32 * n, twin)


# by the name of the type
PACK8 = {"e4m3": pack_e4m3x2, "s8": pack_s8x2}
PACK = {"f16": pack_f16x2, "bf16": pack_bf16x2}
UNPACK = {"f16": unpack_f16x2, "bf16": unpack_bf16x2}
