"""int4 codes to fp16 or bf16 in registers, eight of a word, in the order of Marlin's packed layout.

    d = code - zero             exact in fp16 and bf16
    d = (code - zero) * scale   rounded once, where weights are scaled

A word holds a lane's share of a 16 x 16 tile of the weight: as the A operand of one `mma.m16n8k16`
or `wgmma`, whose rows are the columns of the weight, or as the B operands of two `mma.m16n8k16`:

    nibbles (0, 4)   a0 = b0 of columns 0..7    rows 2t, 2t+1 of the lane's first column
    nibbles (1, 5)   a2 = b1 of columns 0..7    rows 2t+8, 2t+9 of it
    nibbles (2, 6)   a1 = b0 of columns 8..15   rows 2t, 2t+1 of its second column, 8 further on
    nibbles (3, 7)   a3 = b1 of columns 8..15   rows 2t+8, 2t+9 of it

fp16: a nibble ORed into the mantissa of 1024 (0x6400) is 1024 + q, or 1024 + 16q where it is the
upper one of its byte; one subtraction or one fma takes the offset away, exactly. bf16 has room for
the lower nibble only: 128 + q (0x4300), and an fma with 1, because sm_80 cannot subtract bf16.

The text here is put into longer instructions. It works in registers that they declare:
`.reg .b32 q, one, z0, z1, m0, m1`, in those of scales also `.b16 h0, h1` and `.f32 s0, s1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import numpy as np

from ferrum_numba.ptx.arithmetic import ROUND, widen
from ferrum_numba.ptx.instruction import U32, Array, Instruction
from ferrum_numba.ptx.text import Half
from ferrum_numba.reference.w4a16 import SYMMETRIC_ZERO_POINT

# bytes of a 16(K) x 64(N) tile: 16 of each lane, a word a strip of 16 columns
TILE_BYTES = 512
# strips of 16 columns in a tile
STRIPS = 4

# (x & mask) | magic is one lop3 with truth table (0xf0 & 0xcc) | 0xaa = 0xea
_CODES = {
    "f16": """
    shr.u32 q, {word}, 8;
    lop3.b32 {a0}, {word}, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 {a2}, {word}, 0x00f000f0, 0x64006400, 0xea;
    lop3.b32 {a1}, q, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 {a3}, q, 0x00f000f0, 0x64006400, 0xea;
    sub.f16x2 {a0}, {a0}, z0;
    fma.rn.f16x2 {a2}, {a2}, one, m0;
    sub.f16x2 {a1}, {a1}, z1;
    fma.rn.f16x2 {a3}, {a3}, one, m1;""",
    "bf16": """
    lop3.b32 {a0}, {word}, 0x000f000f, 0x43004300, 0xea;
    shr.u32 q, {word}, 4;
    lop3.b32 {a2}, q, 0x000f000f, 0x43004300, 0xea;
    shr.u32 q, {word}, 8;
    lop3.b32 {a1}, q, 0x000f000f, 0x43004300, 0xea;
    shr.u32 q, {word}, 12;
    lop3.b32 {a3}, q, 0x000f000f, 0x43004300, 0xea;
    fma.rn.bf16x2 {a0}, {a0}, one, m0;
    fma.rn.bf16x2 {a2}, {a2}, one, m0;
    fma.rn.bf16x2 {a1}, {a1}, one, m1;
    fma.rn.bf16x2 {a3}, {a3}, one, m1;""",
}
# what is taken away from a code plus magic, for the first and the second column: 1024 + z, 64 + z
# or 128 + z. `one` undoes the factor of an upper nibble
_EIGHT = {
    "f16": """
    mov.b32 one, 0x2c002c00;
    mov.b32 z0, 0x64086408;
    mov.b32 z1, 0x64086408;
    mov.b32 m0, 0xd480d480;
    mov.b32 m1, 0xd480d480;""",
    "bf16": """
    mov.b32 one, 0x3f803f80;
    mov.b32 m0, 0xc308c308;
    mov.b32 m1, 0xc308c308;""",
}
# the strip's nibbles of a word of zero points are in the low bits of either half: one a column
_ZERO_POINTS = {
    "f16": """
    mov.b32 one, 0x2c002c00;
    shr.u32 q, {zeros}, {shift};
    lop3.b32 q, q, 0x000f000f, 0x64006400, 0xea;
    prmt.b32 z0, q, 0, 0x1010;
    prmt.b32 z1, q, 0, 0x3232;
    mov.b32 q, 0x63806380;
    sub.f16x2 m0, q, z0;
    sub.f16x2 m1, q, z1;""",
    "bf16": """
    mov.b32 one, 0x3f803f80;
    shr.u32 q, {zeros}, {shift};
    lop3.b32 q, q, 0x000f000f, 0xc300c300, 0xea;
    prmt.b32 m0, q, 0, 0x1010;
    prmt.b32 m1, q, 0, 0x3232;""",
}
# a lane's two scales as fp32
_SCALES = {
    "f16": """
    mov.b32 {{h0, h1}}, {scales};
    cvt.f32.f16 s0, h0;
    cvt.f32.f16 s1, h1;""",
    "bf16": """
    shl.b32 q, {scales}, 16;
    mov.b32 s0, q;
    and.b32 q, {scales}, 0xffff0000;
    mov.b32 s1, q;""",
}
# sm_80 cannot multiply bf16 either: adding -0 keeps the sign of a zero
_PRODUCT = {
    "f16": "mul.f16x2 <d.{i}>, <d.{i}>, s;",
    "bf16": "fma.rn.bf16x2 <d.{i}>, <d.{i}>, s, nothing;",
}


def codes_less_zeros(half: Half, word: str, fragment: Sequence[str]) -> str:
    """Return how eight codes become q - z in registers a0 to a3; what z is has been set before."""
    names = {f"a{i}": register for i, register in enumerate(fragment)}
    return _CODES[half].format(word=word, **names)


def set_symmetric(half: Half) -> str:
    """Return how the zero points of both columns are set to 8."""
    return _EIGHT[half]


def set_zero_points(half: Half, zeros: str, shift: int) -> str:
    """Return how they are set to two nibbles of a word: at `shift`, and 16 bits further up."""
    return _ZERO_POINTS[half].format(zeros=zeros, shift=shift)


def set_factors(half: Half, scales: str) -> str:
    """Return how s0 and s1 are set to a pair of scales, in fp32."""
    return _SCALES[half].format(scales=scales)


def operand_a(word: Array, zero: Array, half: Half) -> Array:
    """Return [lanes, 4] registers: q - z of eight codes, each an A operand's pair."""
    nibbles = word[:, None] >> (4 * np.arange(8, dtype=np.uint32)) & np.uint32(15)
    # [lanes, second half of a pair, second column, lower rows]
    codes = nibbles.astype(np.float32).reshape(-1, 2, 2, 2)
    codes = codes - zero.astype(np.float32).reshape(-1, 1, 2, 1)
    # a register is a pair; a1 is the second column, a2 the lower rows
    pairs = np.ascontiguousarray(codes.transpose(0, 3, 2, 1)).reshape(-1, 4, 2)
    return np.ascontiguousarray(ROUND[half](pairs)).view(np.uint32)[..., 0]


@cache
def dequantize(
    dtype: Half, *, zeros: bool = False, scaled: bool = False, pinned: bool = False
) -> Instruction:
    """Make `(word[, zeros][, scales]) -> U32 x 4`: the B operands of two mma of eight int4 codes.

    word:   eight codes in Marlin's order
    zeros:  a pair of integers 0..15, 16 bits each: the zero points of the lane's column in columns
            0..7, and in columns 8..15; 8 where the instruction has no such operand
    scales: pair of dtype, of the same columns; the product with q - zero is rounded once
    pinned: executed where it stands: before a `wgmma_fence` that follows
    Returns (b0, b1) of columns 0..7 and (b0, b1) of columns 8..15.
    """
    # d0 to d3 are a0, a2, a1, a3
    template = ".reg .b32 q, one, z0, z1, m0, m1, s, nothing;\nmov.b32 nothing, 0x80008000;\n"
    template += set_zero_points(dtype, "<zeros>", 0) if zeros else set_symmetric(dtype)
    template += codes_less_zeros(dtype, "<word>", ("<d.0>", "<d.2>", "<d.1>", "<d.3>"))
    if scaled:
        for selector, first in (("0x1010", 0), ("0x3232", 2)):
            template += f"\nprmt.b32 s, <scales>, 0, {selector};\n"
            template += "\n".join(_PRODUCT[dtype].format(i=i) for i in (first, first + 1))
    names = ["word", *(["zeros"] if zeros else []), *(["scales"] if scaled else [])]
    u32 = cast(Any, U32)

    def twin(word: Array, *others: Array) -> Array:
        given = dict(zip(names[1:], others, strict=True))
        return _dequantized(dtype, word, given.get("zeros"), given.get("scales"))

    name = "_".join(["dequantize", dtype, *names[1:], *(["pinned"] if pinned else [])])
    return Instruction(
        name, "{" + template + "}", dict.fromkeys(names, u32), u32 * 4, twin,
        effect="volatile" if pinned else "pure",
    )  # fmt: skip


def _dequantized(dtype: Half, word: Array, zeros: Array | None, scales: Array | None) -> Array:
    nibbles = (word[:, None] >> (4 * np.arange(8, dtype=np.uint32))) & np.uint32(15)
    # [lanes, 4 registers, 2 halves]; a column block has two registers
    values = nibbles.astype(np.float64).reshape(-1, 2, 4).swapaxes(1, 2)
    if zeros is None:
        values = values - SYMMETRIC_ZERO_POINT
    else:
        pairs = np.ascontiguousarray(zeros).view(np.uint16).reshape(-1, 2)
        values = values - pairs.repeat(2, axis=1)[:, :, None]
    if scales is not None:
        values = values * widen(scales[:, None], dtype).repeat(2, axis=1)[:, :, None]
    return np.ascontiguousarray(ROUND[dtype](values)).view(np.uint32)[..., 0]
