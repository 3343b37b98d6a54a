"""int4 codes to e4m3 or int8 in registers, in the order of Marlin's packed layout: four a register.

    d = f * (code - zero)       exact in both; f is `factor`

A word holds a lane's share of a 16 x 16 tile of the weight (`kernels/shared/int4.py`): of two
columns, of which each becomes a register. The words of two tiles, one below the other, are operand
A of one `wgmma.m64nNk32`, whose rows are columns of the weight:

    a0, a1 of the upper tile: byte i of a0 is row (2t, 2t + 8, 2t + 1, 2t + 9)[i] of the lane's
    first column (t = lane % 4), a1 its second's, 8 further on; a2, a3 of the lower tile likewise

So of sixteen slots 2j is row j of the tile, and 2j + 1 row j + 8; `packed_x8.interleave` puts x8,
which is multiplied with them, into the same order.

e4m3 is looked up: `prmt` takes four of eight bytes by the lower three bits of four nibbles, and
where the fourth is set repeats the byte's sign. Of tables without signs that is zero, so of two
tables, of codes below 8 and of the others, one is zero where the other speaks. Where every zero
point is 8, bytes are even, and the table of those with a sign holds their halves: twice it plus the
other is e4m3 of code - 8. With zero points a column has its own sixteen bytes, the sign in bit 4
of units of 2^-9, which are e4m3's smallest: adding 7 to the upper half moves the sign to its place.

int8 needs no table: the upper half of a byte is 16 times a nibble of two's complement.

The text works in registers `REGISTERS`, `.b32`, that are declared around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from ferrum_numba.kernels.shared.packed_x8 import TABLE_BYTES
from ferrum_numba.ptx.instruction import Array

# of nibbles of a word as bytes of a0, then of a1
ORDER = (0, 1, 4, 5, 2, 3, 6, 7)
REGISTERS = ("t", "v", "upper", "flipped", "one", "other")
_E4M3 = ml_dtypes.float8_e4m3fn


def _words(codes: Sequence[int]) -> tuple[str, ...]:
    """Return bytes as 32-bit literals, the first lowest."""
    return tuple(f"0x{word:08x}" for word in np.array(codes, np.uint8).view(np.uint32))


_SMALL = np.arange(8)
# codes below 8, halved; and the others
_BELOW = _words((np.arange(-8, 0).astype(_E4M3).view(np.uint8) // 2).tolist())
_ABOVE = _words(_SMALL.astype(_E4M3).view(np.uint8).tolist())


def factor(x_dtype: str, zero_points: bool) -> float:
    """Return what a code less its zero point is multiplied by in a register: a power of 2."""
    if x_dtype == "fp8":
        return 2.0**-9 if zero_points else 1.0
    return 1.0 if zero_points else 16.0


def sixteen(zero: Array) -> Array:
    """Return the bytes of a column's codes: [...] zero points -> [..., 16] uint8."""
    difference = np.arange(16) - zero[..., None].astype(np.int64)
    table: Array = (np.abs(difference) + 16 * (difference < 0)).astype(np.uint8)
    return table


def set_symmetric(x_dtype: str) -> list[str]:
    """Return what every conversion of codes less 8 needs: declarations, and what they hold."""
    if x_dtype == "int8":
        return []
    return [
        ".reg .b32 below, above;",
        f"mov.b32 below, {_BELOW[0]};",
        f"mov.b32 above, {_ABOVE[0]};",
    ]


def convert(x_dtype: str, word: str, registers: tuple[str, str]) -> list[str]:
    """Return how eight codes become code - 8 in two registers."""
    first, second = registers
    if x_dtype == "int8":
        return [
            # (a ^ b) & c
            f"lop3.b32 one, {word}, 0x88888888, 0xf0f0f0f0, 0x28;",
            f"shl.b32 t, {word}, 4;",
            "lop3.b32 other, t, 0x80808080, 0xf0f0f0f0, 0x28;",
            f"prmt.b32 {first}, other, one, 0x6240;",
            f"prmt.b32 {second}, other, one, 0x7351;",
        ]
    lines = _selectors(word)
    for register, low, high in ((first, "t", "v"), (second, "upper", "flipped")):
        lines += [
            f"prmt.b32 one, below, {_BELOW[1]}, {low};",
            f"prmt.b32 other, above, {_ABOVE[1]}, {high};",
            f"mad.lo.u32 {register}, one, 2, other;",
        ]
    return lines


def set_zero_points(x_dtype: str, zeros: str, shift: int, tables: str) -> list[str]:
    """Return how the zero points of a strip are set: two nibbles of a word, at shift and 16 up.

    tables: address of sixteen tables of sixteen bytes in shared memory, of every zero point; fp8
            alone reads them
    """
    lines = [f"shr.u32 t, {zeros}, {shift};", "and.b32 t, t, 0x000f000f;"]
    if x_dtype == "int8":
        return [*lines, "prmt.b32 z0, t, 0, 0x0000;", "prmt.b32 z1, t, 0, 0x2222;"]
    for c, (part, register) in enumerate((("0x4440", "v"), ("0x4442", "upper"))):
        lines += [
            f"prmt.b32 {register}, t, 0, {part};",
            f"mad.lo.u32 {register}, {register}, {TABLE_BYTES}, {tables};",
            f"ld.shared.v4.u32 {{t{c}_0, t{c}_1, t{c}_2, t{c}_3}}, [{register}];",
        ]
    return lines


def zero_registers(x_dtype: str) -> list[str]:
    """Return the declarations that `set_zero_points` needs."""
    if x_dtype == "int8":
        return [".reg .b32 z0, z1;"]
    return [f".reg .b32 {', '.join(f't{c}_{i}' for c in range(2) for i in range(4))};"]


def convert_with_zeros(x_dtype: str, word: str, registers: tuple[str, str]) -> list[str]:
    """Return how eight codes become code - zero in two registers."""
    if x_dtype == "int8":
        lines = [
            # (a & b) | c
            f"lop3.b32 other, {word}, 0x0f0f0f0f, 0x80808080, 0xea;",
            f"shr.u32 t, {word}, 4;",
            "lop3.b32 one, t, 0x0f0f0f0f, 0x80808080, 0xea;",
            f"prmt.b32 {registers[0]}, other, one, 0x6240;",
            f"prmt.b32 {registers[1]}, other, one, 0x7351;",
        ]
        for register, zero in zip(registers, ("z0", "z1"), strict=True):
            lines += [
                # bytes of 128 + code borrow nothing from each other
                f"sub.u32 {register}, {register}, {zero};",
                f"xor.b32 {register}, {register}, 0x80808080;",
            ]
        return lines
    lines = _selectors(word)
    for c, (low, high) in enumerate((("t", "v"), ("upper", "flipped"))):
        lines += [
            f"prmt.b32 one, t{c}_0, t{c}_1, {low};",
            f"prmt.b32 other, t{c}_2, t{c}_3, {high};",
            "add.u32 one, one, other;",
            "add.u32 one, one, 0x70707070;",
            f"and.b32 {registers[c]}, one, 0x8f8f8f8f;",
        ]
    return lines


def operand_bytes(word: Array, zero: Array, x_dtype: str, zero_points: bool) -> Array:
    """Return [lanes, 2] registers: f * (q - z) of eight codes, in e4m3 or int8.

    word: [lanes] uint32;  zero: [lanes, 2], of both columns
    """
    nibbles = word[:, None] >> (4 * np.array(ORDER, np.uint32)) & np.uint32(15)
    codes = nibbles.astype(np.float64).reshape(-1, 2, 4) - zero.astype(np.float64)[:, :, None]
    values = codes * factor(x_dtype, zero_points)
    eight = values.astype(_E4M3) if x_dtype == "fp8" else values.astype(np.int8)
    return np.ascontiguousarray(eight).view(np.uint32)[..., 0]


def _selectors(word: str) -> list[str]:
    """Return how nibbles come into the order of the bytes, as they are and with bit 3 turned."""
    return [
        f"prmt.b32 t, {word}, 0, 0x3120;",
        "xor.b32 v, t, 0x88888888;",
        "shr.u32 upper, t, 16;",
        "shr.u32 flipped, v, 16;",
    ]
