"""Steps of a GEMM for few tokens: weights are the A operand, tokens the columns of n8.

A step is `k_tiles` of Marlin's 16(K) x 64(N) tiles, one below the other, of one warp, times
`n_tiles` blocks of eight tokens. A lane's 16 bytes of a tile are four words, one a strip of 16
columns; a word holds the lane's A operand of one `mma.m16n8k16`, whose rows are the columns of the
strip. Straight-line Python compiles in cubic time, so a step is written out here, in PTX.

The accumulator is F32 x 16*n_tiles, element ((j * n_tiles + block) * 4 + c): strip j, column
16j + lane / 4 + 8 * (c / 2) of the weight, token 8 * block + 2 * (lane % 4) + c % 2.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ferrum_numba.kernels.shared.int4 import (
    STRIPS,
    codes_less_zeros,
    operand_a,
    set_factors,
    set_symmetric,
    set_zero_points,
)
from ferrum_numba.ptx.arithmetic import widen
from ferrum_numba.ptx.instruction import F32, U32, U64, Array, Instruction, Lanes
from ferrum_numba.ptx.mma import MMA, ldmatrix_x4
from ferrum_numba.ptx.text import Half, braced, registers
from ferrum_numba.reference.w4a16 import SYMMETRIC_ZERO_POINT

# registers of operand A
FRAGMENT = ("a0", "a1", "a2", "a3")


@cache
def load_tiles(k_tiles: int) -> Instruction:
    """Make `(gmem, stride_bytes) -> U32 x 4*k_tiles`: the lane's words of tiles, past L1.

    gmem:         U64, the lane's 16 bytes of the first tile
    stride_bytes: U64, from a tile to the one below it
    """
    lines = [".reg .b64 p;", "mov.b64 p, <gmem>;"]
    for i in range(k_tiles):
        words = registers("d", 4 * i, 4)
        lines.append(f"ld.global.nc.L1::no_allocate.v4.u32 {words}, [p];")
        if i + 1 < k_tiles:
            lines.append("add.s64 p, p, <stride_bytes>;")

    def twin(lanes: Lanes, gmem: Array, stride_bytes: Array) -> Array:
        return _load_rows(lanes, gmem, stride_bytes, k_tiles, 16)

    return Instruction(
        f"load_tiles_{k_tiles}", braced(lines), {"gmem": U64, "stride_bytes": U64},
        U32 * (4 * k_tiles), twin, effect="volatile",
    )  # fmt: skip


@cache
def load_words(rows: int, count: int) -> Instruction:
    """Make `(gmem, stride_bytes) -> U32 x rows*count`: 1 or 4 words of each of some rows."""
    lines = [".reg .b64 p;", "mov.b64 p, <gmem>;"]
    for i in range(rows):
        words = f".v4.u32 {registers('d', 4 * i, 4)}" if count == 4 else f".u32 <d.{i}>"
        lines.append(f"ld.global.nc{words}, [p];")
        if i + 1 < rows:
            lines.append("add.s64 p, p, <stride_bytes>;")

    def twin(lanes: Lanes, gmem: Array, stride_bytes: Array) -> Array:
        return _load_rows(lanes, gmem, stride_bytes, rows, 4 * count)

    return Instruction(
        f"load_words_{rows}x{count}", braced(lines), {"gmem": U64, "stride_bytes": U64},
        U32 * (rows * count), twin, effect="volatile",
    )  # fmt: skip


def _load_rows(lanes: Lanes, gmem: Array, stride_bytes: Array, rows: int, size_bytes: int) -> Array:
    pieces = [
        lanes.load_global(gmem + np.uint64(i) * stride_bytes, size_bytes).view(np.uint32)
        for i in range(rows)
    ]
    return np.concatenate(pieces, axis=1)


@cache
def load_tokens(k_tiles: int, n_tiles: int, row_bytes: int) -> Instruction:
    """Make `(address) -> U32 x 2*k_tiles*n_tiles`: the B operands of pairs of tiles.

    address: U32, lane l gives token l % 8 at the eight columns of K that matrix l / 8 holds; rows
             of 16-bit tokens lie row_bytes apart
    Returns element (pair * n_tiles + block) * 4 + matrix; k_tiles is even.
    """
    places = [
        (4 * (pair * n_tiles + block), 64 * pair + 8 * row_bytes * block)
        for pair in range(k_tiles // 2)
        for block in range(n_tiles)
    ]
    lines = [
        f"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {registers('d', first, 4)}, "
        f"[<address>+{offset}];"
        for first, offset in places
    ]

    def twin(lanes: Lanes, address: Array) -> Array:
        matrices = [ldmatrix_x4.twin(lanes, address + np.uint32(offset)) for _, offset in places]
        return np.concatenate(matrices, axis=1)

    return Instruction(
        f"load_tokens_{k_tiles}x{n_tiles}x{row_bytes}", "\n".join(lines), {"address": U32},
        U32 * (2 * k_tiles * n_tiles), twin, effect="memory", scope="warp",
    )  # fmt: skip


@cache
def multiply_step(
    k_tiles: int, n_tiles: int, half: Half, groups: int, zero_points: int,
    scale_half: Half | None = None,
) -> Instruction:  # fmt: skip
    """Make `(words, tokens, scales, zeros, acc) -> acc`: acc + tokens * weights of a step.

    groups:      of the step's rows, each with its own scales; 0: the codes minus their zero points
                 are multiplied as they are, and the sums scaled by somebody else
    zero_points: words of zero points, 0 where every zero point is 8
    scale_half:  type of the scales, where it is not that of the tokens

    Operands of the instruction:
        words:  U32 x 4*k_tiles, from `load_tiles`
        tokens: U32 x 2*k_tiles*n_tiles, from `load_tokens`: a pair's upper tile, then the lower
        scales: U32 x 4*max(groups, 1); word j of a group: scales of the lane's columns of
                strip j; not read without groups
        zeros:  U32 x max(zero_points, 1); nibbles j and j + 4 of a word belong to the lane's
                columns of strip j; not read without zero points
        acc:    F32 x 16*n_tiles; shares its registers with the result

    q - z is exact in fp16 and bf16, products and sums are fp32, and a group's sum is scaled in fp32
    with one rounding: no weight is rounded.
    """
    shape = _Shape(k_tiles, n_tiles, half, groups, zero_points, scale_half or half)
    other = f"_{scale_half}" if scale_half else ""
    return Instruction(
        f"multiply_step_{k_tiles}x{n_tiles}_{half}_{groups}_{zero_points}{other}", shape.template(),
        {
            "words": U32 * (4 * k_tiles),
            "tokens": U32 * (2 * k_tiles * n_tiles),
            "scales": U32 * (4 * max(groups, 1)),
            "zeros": U32 * max(zero_points, 1),
            "acc": F32 * (16 * n_tiles),
        },
        F32 * (16 * n_tiles), shape.twin, scope="warp", tied="acc",
    )  # fmt: skip


class _Shape:
    """One form of `multiply_step`: its text and its twin."""

    def __init__(
        self, k_tiles: int, n_tiles: int, half: Half, groups: int, zero_points: int,
        scale_half: Half,
    ) -> None:  # fmt: skip
        self.k_tiles, self.n_tiles, self.half = k_tiles, n_tiles, half
        self.scale_half = scale_half
        self.groups, self.zero_points = groups, zero_points
        self.group_tiles = k_tiles // max(groups, 1)

    def token(self, k: int, block: int) -> int:
        """Return the first of the B operand's two registers."""
        return 4 * (k // 2 * self.n_tiles + block) + 2 * (k % 2)

    def template(self) -> str:
        partial = ", ".join(f"p{i}" for i in range(4 * self.n_tiles))
        lines = [
            ".reg .b32 q, one, z0, z1, m0, m1, a0, a1, a2, a3;",
            ".reg .b16 h0, h1;",
            f".reg .f32 s0, s1, {partial};",
        ]
        if not self.zero_points:
            lines.append(set_symmetric(self.half))
        for group in range(max(self.groups, 1)):
            for j in range(STRIPS):
                lines += self._strip(group, j)
        return braced(lines)

    def _strip(self, group: int, j: int) -> list[str]:
        """Return the products of a group's tiles with one strip of 16 columns."""
        lines = []
        if self.zero_points:
            zeros = f"<zeros.{group % self.zero_points}>"
            lines.append(set_zero_points(self.half, zeros, 4 * j))
        first = 4 * j * self.n_tiles
        sums = [f"<d.{first + i}>" for i in range(4 * self.n_tiles)]
        if self.groups:
            sums = [f"p{i}" for i in range(4 * self.n_tiles)]
            lines += [f"mov.f32 {p}, 0f00000000;" for p in sums]
        for k in range(group * self.group_tiles, (group + 1) * self.group_tiles):
            lines.append(codes_less_zeros(self.half, f"<words.{4 * k + j}>", FRAGMENT))
            for block in range(self.n_tiles):
                c = "{" + ", ".join(sums[4 * block : 4 * block + 4]) + "}"
                b = registers("tokens", self.token(k, block), 2)
                lines.append(
                    f"mma.sync.aligned.m16n8k16.row.col.f32.{self.half}.{self.half}.f32 "
                    f"{c}, {{a0, a1, a2, a3}}, {b}, {c};"
                )
        if self.groups:
            lines.append(set_factors(self.scale_half, f"<scales.{4 * group + j}>"))
            for i, p in enumerate(sums):
                d = f"<d.{first + i}>"
                lines.append(f"fma.rn.f32 {d}, {p}, s{i % 4 // 2}, {d};")
        return lines

    def twin(self, words: Array, tokens: Array, scales: Array, zeros: Array, acc: Array) -> Array:
        multiply = MMA[self.half]
        out = acc.reshape(len(acc), STRIPS, self.n_tiles, 4).copy()
        factors = widen(scales, self.scale_half).reshape(len(acc), -1, STRIPS, 2).repeat(2, axis=3)
        for group, j in np.ndindex(max(self.groups, 1), STRIPS):
            zero = np.full((len(acc), 2), SYMMETRIC_ZERO_POINT)
            if self.zero_points:
                word = zeros[:, group % self.zero_points, None]
                zero = word >> np.array([4 * j, 4 * j + 16], np.uint32) & 15
            total = np.zeros_like(out[:, j]) if self.groups else out[:, j]
            for k in range(group * self.group_tiles, (group + 1) * self.group_tiles):
                a = operand_a(words[:, 4 * k + j], zero, self.half)
                for block in range(self.n_tiles):
                    first = self.token(k, block)
                    b = tokens[:, first : first + 2]
                    total[:, block] = multiply.twin(a, b, total[:, block])
            if self.groups:
                # a product of two fp32 is exact in float64: one rounding, but for the sum's own
                scaled = total.astype(np.float64) * factors[:, group, j, None]
                with np.errstate(over="ignore", invalid="ignore"):
                    out[:, j] = (scaled + out[:, j]).astype(np.float32)
        return out.reshape(acc.shape)


@cache
def scale_sums(n_tiles: int, half: Half) -> Instruction:
    """Make `(sums, scales, acc) -> acc`: acc plus the sums of a group times its scales.

    sums:   F32 x 16*n_tiles, of `multiply_step` without groups
    scales: U32 x 4, word j: scales of the lane's columns of strip j
    acc:    F32 x 16*n_tiles; shares its registers with the result
    """
    lines = [".reg .b32 q;", ".reg .b16 h0, h1;", ".reg .f32 s0, s1;"]
    for j in range(STRIPS):
        lines.append(set_factors(half, f"<scales.{j}>"))
        for i in range(4 * n_tiles):
            d, p = (f"<{name}.{4 * j * n_tiles + i}>" for name in ("d", "sums"))
            lines.append(f"fma.rn.f32 {d}, {p}, s{i % 4 // 2}, {d};")

    def twin(sums: Array, scales: Array, acc: Array) -> Array:
        factors = widen(scales, half).reshape(len(acc), STRIPS, 1, 2, 1)
        fragments = sums.reshape(len(acc), STRIPS, n_tiles, 2, 2).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            return ((fragments * factors).reshape(acc.shape) + acc).astype(np.float32)

    return Instruction(
        f"scale_sums_{n_tiles}_{half}", braced(lines),
        {"sums": F32 * (16 * n_tiles), "scales": U32 * 4, "acc": F32 * (16 * n_tiles)},
        F32 * (16 * n_tiles), twin, tied="acc",
    )  # fmt: skip
