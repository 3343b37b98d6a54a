"""int4 to fp16 in registers, eight weights a word, in the word order of Marlin's packed layout.

A word holds the B operands of two `mma.m16n8k16` for one lane: nibbles (0, 4) and (1, 5) are the
rows 2t, 2t+1 and 2t+8, 2t+9 of its column in the first eight columns, (2, 6) and (3, 7) the same
of the next eight. A nibble OR-ed into the mantissa of 1024.0 (0x6400) is 1024 + q, or 1024 + 16q
where it is the upper one of its byte; one subtraction or one fma takes the offset away, exactly.
"""

from __future__ import annotations

import numpy as np

from ferrum_numba.ptx.instruction import U32, Array, U32x4, instruction

# (word & mask) | magic is one lop3, truth table (0xf0 & 0xcc) | 0xaa = 0xea; then
# (1024 + q) - 1032 = q - 8 and (1024 + 16q) / 16 - 72 = q - 8
_DEQUANTIZE = """
    .reg .b32 q, one16, m72;
    mov.b32 one16, 0x2c002c00;
    mov.b32 m72, 0xd480d480;
    shr.u32 q, <word>, 8;
    lop3.b32 <d.0>, <word>, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 <d.1>, <word>, 0x00f000f0, 0x64006400, 0xea;
    lop3.b32 <d.2>, q, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 <d.3>, q, 0x00f000f0, 0x64006400, 0xea;
    mov.b32 q, 0x64086408;
    sub.f16x2 <d.0>, <d.0>, q;
    fma.rn.f16x2 <d.1>, <d.1>, one16, m72;
    sub.f16x2 <d.2>, <d.2>, q;
    fma.rn.f16x2 <d.3>, <d.3>, one16, m72;
"""
_SCALE = """
    .reg .b16 lo, hi;
    .reg .b32 s;
    mov.b32 {lo, hi}, <scales>;
    mov.b32 s, {lo, lo};
    mul.f16x2 <d.0>, <d.0>, s;
    mul.f16x2 <d.1>, <d.1>, s;
    mov.b32 s, {hi, hi};
    mul.f16x2 <d.2>, <d.2>, s;
    mul.f16x2 <d.3>, <d.3>, s;
"""


def _halves(word: Array) -> Array:
    """Return q - 8 as [lanes, 4 registers, 2 halves] fp16."""
    nibbles = (word[:, None] >> (4 * np.arange(8, dtype=np.uint32))) & np.uint32(15)
    return (nibbles.astype(np.float16) - np.float16(8)).reshape(-1, 2, 4).swapaxes(1, 2)


def _registers(halves: Array) -> Array:
    return np.ascontiguousarray(halves).view(np.uint32)[..., 0]


@instruction("{" + _DEQUANTIZE + "}")
def dequantize_f16(word: U32) -> U32x4:
    """Return q - 8 of eight int4 codes as four fp16 pairs: the B operands of two mma.

    word: eight codes in Marlin's order
    Returns (b0, b1) of columns 0..7 and (b0, b1) of columns 8..15.
    """
    return _registers(_halves(word))


@instruction("{" + _DEQUANTIZE + _SCALE + "}")
def dequantize_scaled_f16(word: U32, scales: U32) -> U32x4:
    """Return (q - 8) * scale, rounded to fp16, of eight int4 codes: the B operands of two mma.

    word:   eight codes in Marlin's order
    scales: fp16 pair: the scale of the lane's column in columns 0..7, and in columns 8..15
    """
    scale = np.ascontiguousarray(scales).view(np.float16).reshape(-1, 2).repeat(2, axis=1)
    return _registers(_halves(word) * scale[:, :, None])
