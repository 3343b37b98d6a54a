"""Steps of w4a8_decode: 8-bit tokens to operands, and products of int8.

A step, its words, its strips and its accumulator are those of `kernels/decode/steps.py`. Sixteen
bytes of a token are sixteen of k in the order of the packed tiles (`kernels/shared/int4_bytes.py`):
bytes 4q to 4q + 3 are k of 2q, 2q + 8, 2q + 1 and 2q + 9, which is what lane 4g + q has of token g.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ferrum_numba.kernels.shared import int4_bytes
from ferrum_numba.kernels.shared.int4 import STRIPS, set_factors
from ferrum_numba.ptx.arithmetic import prmt, widen
from ferrum_numba.ptx.convert import e4m3x2_to_f16x2
from ferrum_numba.ptx.instruction import F32, U32, Array, Instruction, Lanes
from ferrum_numba.ptx.mma8 import mma_m16n8k32_s8
from ferrum_numba.ptx.text import Half, braced
from ferrum_numba.reference.w4a16 import SYMMETRIC_ZERO_POINT

# k of a token that are apart in a word but side by side in operand B, as a selector of `prmt`
PAIRS = 0x3120


@cache
def load_bytes(k_tiles: int, n_tiles: int, row_bytes: int) -> Instruction:
    """Make `(address) -> U32 x k_tiles*n_tiles`: a word of each tile and block of eight tokens.

    address: U32, of token lane / 4 and its bytes 4 * (lane % 4) of the first tile; tokens lie
             row_bytes apart
    Returns element k * n_tiles + block.
    """
    places = [16 * k + 8 * row_bytes * block for k in range(k_tiles) for block in range(n_tiles)]
    lines = [f"ld.shared.u32 <d.{i}>, [<address>+{at}];" for i, at in enumerate(places)]
    words: Any = U32 * len(places)

    def twin(lanes: Lanes, address: Array) -> Array:
        held = [lanes.load_shared(address + np.uint32(at), 4).view(np.uint32) for at in places]
        return np.concatenate(held, axis=1)

    return Instruction(
        f"load_bytes_{k_tiles}x{n_tiles}x{row_bytes}", "\n".join(lines), {"address": U32}, words,
        twin, effect="memory",
    )  # fmt: skip


@cache
def widen_tokens(k_tiles: int, n_tiles: int) -> Instruction:
    """Make `(words) -> U32 x 2*k_tiles*n_tiles`: e4m3 of `load_bytes` as fp16, exactly.

    Returns operands B in the order of `load_tokens` in kernels/decode/steps.py.
    """
    lines = [".reg .b32 t;", ".reg .b16 low, high;"]
    places = [
        (k * n_tiles + block, 4 * (k // 2 * n_tiles + block) + 2 * (k % 2))
        for k in range(k_tiles)
        for block in range(n_tiles)
    ]
    for source, first in places:
        lines += [
            f"prmt.b32 t, <words.{source}>, 0, 0x{PAIRS:04x};",
            "mov.b32 {low, high}, t;",
            f"cvt.rn.f16x2.e4m3x2 <d.{first}>, low;",
            f"cvt.rn.f16x2.e4m3x2 <d.{first + 1}>, high;",
        ]
    given: Any = U32 * (k_tiles * n_tiles)

    def twin(words: Array) -> Array:
        out = np.empty((len(words), 2 * k_tiles * n_tiles), np.uint32)
        nothing = np.zeros(len(words), np.uint32)
        for source, first in places:
            pairs = prmt.twin(words[:, source], nothing, np.full(len(words), PAIRS, np.uint32))
            for i in range(2):
                half = (pairs >> np.uint32(16 * i) & np.uint32(0xFFFF)).astype(np.uint16)
                out[:, first + i] = e4m3x2_to_f16x2.twin(half)
        return out

    return Instruction(
        f"widen_tokens_{k_tiles}x{n_tiles}", braced(lines), {"words": given},
        U32 * (2 * k_tiles * n_tiles), twin, arch="sm_89",
    )  # fmt: skip


@cache
def multiply_bytes(
    k_tiles: int, n_tiles: int, scale_half: Half, groups: int, zero_points: int
) -> Instruction:
    """Make `(words, tokens, scales, zeros, acc) -> acc`: `multiply_step` of int8 tokens.

    Operands as there, but tokens: U32 x k_tiles*n_tiles, from `load_bytes`. Products of a group, or
    of the step without groups, are summed exactly, in int32.
    """
    shape = _Bytes(k_tiles, n_tiles, scale_half, groups, zero_points)
    return Instruction(
        f"multiply_bytes_{k_tiles}x{n_tiles}_{scale_half}_{groups}_{zero_points}",
        shape.template(),
        {
            "words": U32 * (4 * k_tiles),
            "tokens": U32 * (k_tiles * n_tiles),
            "scales": U32 * (4 * max(groups, 1)),
            "zeros": U32 * max(zero_points, 1),
            "acc": F32 * (16 * n_tiles),
        },
        F32 * (16 * n_tiles), shape.twin, scope="warp", tied="acc",
    )  # fmt: skip


class _Bytes:
    """One form of `multiply_bytes`: its text and its twin."""

    def __init__(
        self, k_tiles: int, n_tiles: int, scale_half: Half, groups: int, zero_points: int
    ) -> None:
        self.k_tiles, self.n_tiles, self.scale_half = k_tiles, n_tiles, scale_half
        self.groups, self.zero_points = groups, zero_points
        self.group_tiles = k_tiles // max(groups, 1)
        self.factor = 1 / int4_bytes.factor("int8", zero_points > 0)

    def template(self) -> str:
        sums = ", ".join(f"p{i}" for i in range(4 * self.n_tiles))
        lines = [
            f".reg .b32 q, a0, a1, a2, a3, {', '.join(int4_bytes.REGISTERS)}, {sums};",
            ".reg .b16 h0, h1;",
            ".reg .f32 s0, s1, sum;",
            *int4_bytes.zero_registers("int8"),
        ]
        for group in range(max(self.groups, 1)):
            for j in range(STRIPS):
                lines += self._strip(group, j)
        return braced(lines)

    def _strip(self, group: int, j: int) -> list[str]:
        """Return the products of a group's tiles with one strip of 16 columns."""
        lines = [f"mov.b32 p{i}, 0;" for i in range(4 * self.n_tiles)]
        make = int4_bytes.convert
        if self.zero_points:
            make = int4_bytes.convert_with_zeros
            zeros = f"<zeros.{group % self.zero_points}>"
            lines += int4_bytes.set_zero_points("int8", zeros, 4 * j, "")
        for k in range(group * self.group_tiles, (group + 1) * self.group_tiles, 2):
            lines += make("int8", f"<words.{4 * k + j}>", ("a0", "a1"))
            lines += make("int8", f"<words.{4 * (k + 1) + j}>", ("a2", "a3"))
            for block in range(self.n_tiles):
                c = "{" + ", ".join(f"p{4 * block + i}" for i in range(4)) + "}"
                upper, lower = (i * self.n_tiles + block for i in (k, k + 1))
                b = f"{{<tokens.{upper}>, <tokens.{lower}>}}"
                lines.append(
                    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                    f"{c}, {{a0, a1, a2, a3}}, {b}, {c};"
                )
        return lines + self._add(group, j)

    def _add(self, group: int, j: int) -> list[str]:
        """Return how the sums of a group are scaled and added."""
        factor = f"0f{np.float32(self.factor).view(np.uint32):08x}"
        if self.groups:
            lines = [set_factors(self.scale_half, f"<scales.{4 * group + j}>")]
            if self.factor != 1:
                lines += [f"mul.f32 {s}, {s}, {factor};" for s in ("s0", "s1")]
        else:
            lines = [f"mov.f32 {s}, {factor};" for s in ("s0", "s1")]
        for i in range(4 * self.n_tiles):
            d = f"<d.{4 * j * self.n_tiles + i}>"
            lines += [
                f"cvt.rn.f32.s32 sum, p{i};",
                f"fma.rn.f32 {d}, sum, s{i % 4 // 2}, {d};",
            ]
        return lines

    def twin(self, words: Array, tokens: Array, scales: Array, zeros: Array, acc: Array) -> Array:
        out = acc.reshape(len(acc), STRIPS, self.n_tiles, 4).copy()
        factors = widen(scales, self.scale_half).reshape(len(acc), -1, STRIPS, 2).repeat(2, axis=3)
        for group, j in np.ndindex(max(self.groups, 1), STRIPS):
            zero, has_zeros = np.full((len(acc), 2), SYMMETRIC_ZERO_POINT), self.zero_points > 0
            if has_zeros:
                word = zeros[:, group % self.zero_points, None]
                zero = word >> np.array([4 * j, 4 * j + 16], np.uint32) & 15
            total = np.zeros((len(acc), self.n_tiles, 4), np.int32)
            for k in range(group * self.group_tiles, (group + 1) * self.group_tiles, 2):
                a = np.concatenate([
                    int4_bytes.operand_bytes(words[:, 4 * i + j], zero, "int8", has_zeros)
                    for i in (k, k + 1)
                ], axis=1)  # fmt: skip
                for block in range(self.n_tiles):
                    b = tokens[:, [i * self.n_tiles + block for i in (k, k + 1)]]
                    total[:, block] = mma_m16n8k32_s8.twin(a, b, total[:, block])
            by = np.full((len(acc), 4), np.float32(self.factor))
            if self.groups:
                by = (factors[:, group, j] * np.float32(self.factor)).astype(np.float32)
            scaled = total.astype(np.float32).astype(np.float64) * by[:, None]
            with np.errstate(over="ignore", invalid="ignore"):
                out[:, j] = (scaled + out[:, j]).astype(np.float32)
        return out.reshape(acc.shape)
