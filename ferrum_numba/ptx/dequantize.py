"""int4 to fp16 or bf16 in registers, eight weights a word, in the order of Marlin's packed layout.

A word holds the B operands of two `mma.m16n8k16` for one lane: nibbles (0, 4) and (1, 5) are the
rows 2t, 2t+1 and 2t+8, 2t+9 of its column in the first eight columns, (2, 6) and (3, 7) the same
of the next eight.

fp16: a nibble OR-ed into the mantissa of 1024.0 (0x6400) is 1024 + q, or 1024 + 16q where it is the
upper one of its byte; one subtraction or one fma takes the offset away, exactly. bf16 has room for
the lower nibble only: 128 + q (0x4300), and an fma with 1, because sm_80 cannot subtract bf16.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, cast

import numpy as np

from ferrum_numba.ptx.arithmetic import ROUND, widen
from ferrum_numba.ptx.instruction import U32, Array, Instruction

Half = Literal["f16", "bf16"]
SYMMETRIC_ZERO_POINT = 8

# (word & mask) | magic is one lop3, truth table (0xf0 & 0xcc) | 0xaa = 0xea; then
# (1024 + q) - (1024 + z) = q - z and (1024 + 16q) / 16 - (64 + z) = q - z
_CODES_F16 = """
    .reg .b32 q, one16, z0, z1, m0, m1;
    mov.b32 one16, 0x2c002c00;
    shr.u32 q, <word>, 8;
    lop3.b32 <d.0>, <word>, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 <d.1>, <word>, 0x00f000f0, 0x64006400, 0xea;
    lop3.b32 <d.2>, q, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 <d.3>, q, 0x00f000f0, 0x64006400, 0xea;
"""
_SUBTRACT_F16 = """
    sub.f16x2 <d.0>, <d.0>, z0;
    fma.rn.f16x2 <d.1>, <d.1>, one16, m0;
    sub.f16x2 <d.2>, <d.2>, z1;
    fma.rn.f16x2 <d.3>, <d.3>, one16, m1;
"""
# (128 + q) * 1 - (128 + z) = q - z
_CODES_BF16 = """
    .reg .b32 q, one, m0, m1, nothing;
    mov.b32 one, 0x3f803f80;
    mov.b32 nothing, 0x80008000;
    lop3.b32 <d.0>, <word>, 0x000f000f, 0x43004300, 0xea;
    shr.u32 q, <word>, 4;
    lop3.b32 <d.1>, q, 0x000f000f, 0x43004300, 0xea;
    shr.u32 q, <word>, 8;
    lop3.b32 <d.2>, q, 0x000f000f, 0x43004300, 0xea;
    shr.u32 q, <word>, 12;
    lop3.b32 <d.3>, q, 0x000f000f, 0x43004300, 0xea;
"""
_SUBTRACT_BF16 = """
    fma.rn.bf16x2 <d.0>, <d.0>, one, m0;
    fma.rn.bf16x2 <d.1>, <d.1>, one, m0;
    fma.rn.bf16x2 <d.2>, <d.2>, one, m1;
    fma.rn.bf16x2 <d.3>, <d.3>, one, m1;
"""
# what is taken away, of the first and of the next eight columns: 8, or an operand's zero points
_EIGHT = {
    "f16": """
    mov.b32 z0, 0x64086408;
    mov.b32 z1, z0;
    mov.b32 m0, 0xd480d480;
    mov.b32 m1, m0;
""",
    "bf16": """
    mov.b32 m0, 0xc308c308;
    mov.b32 m1, m0;
""",
}
_ZERO_POINTS = {
    "f16": """
    .reg .b32 z, m;
    lop3.b32 z, <zeros>, 0x64006400, 0, 0xfc;
    prmt.b32 z0, z, 0, 0x1010;
    prmt.b32 z1, z, 0, 0x3232;
    shl.b32 m, <zeros>, 4;
    lop3.b32 m, m, 0xd400d400, 0, 0xfc;
    prmt.b32 m0, m, 0, 0x1010;
    prmt.b32 m1, m, 0, 0x3232;
""",
    "bf16": """
    .reg .b32 m;
    lop3.b32 m, <zeros>, 0xc300c300, 0, 0xfc;
    prmt.b32 m0, m, 0, 0x1010;
    prmt.b32 m1, m, 0, 0x3232;
""",
}
# sm_80 cannot multiply bf16 either: adding -0 keeps the sign of a zero
_SCALE = {
    "f16": "mul.f16x2 <d.{i}>, <d.{i}>, s;",
    "bf16": "fma.rn.bf16x2 <d.{i}>, <d.{i}>, s, nothing;",
}


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
    codes, subtract = {
        "f16": (_CODES_F16, _SUBTRACT_F16), "bf16": (_CODES_BF16, _SUBTRACT_BF16)
    }[dtype]  # fmt: skip
    template = codes + (_ZERO_POINTS if zeros else _EIGHT)[dtype] + subtract
    if scaled:
        product = _SCALE[dtype]
        template += ".reg .b32 s;\n"
        for selector, first in (("0x1010", 0), ("0x3232", 2)):
            template += f"prmt.b32 s, <scales>, 0, {selector};\n"
            template += "\n".join(product.format(i=i) for i in (first, first + 1)) + "\n"
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
