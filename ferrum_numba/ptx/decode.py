"""Steps of a GEMM for few tokens: weights are the A operand, tokens the columns of n8.

A step is `k_tiles` of Marlin's 16(K) x 64(N) tiles, one below the other, of one warp, times
`n_tiles` blocks of eight tokens. A lane's 16 bytes of a tile are four words, one a sub-tile of 16
columns; a word holds the lane's A operand of one `mma.m16n8k16`, whose rows are the columns of the
sub-tile. Straight-line Python compiles in cubic time, so a step is written out here, in PTX.

The accumulator is F32 x 16*n_tiles, element ((j * n_tiles + block) * 4 + c): sub-tile j, column
16j + lane / 4 + 8 * (c / 2) of the weight, token 8 * block + 2 * (lane % 4) + c % 2.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ferrum_numba.ptx.arithmetic import ROUND, widen
from ferrum_numba.ptx.dequantize import Half
from ferrum_numba.ptx.instruction import (
    BLOCKED,
    F32,
    U32,
    U64,
    Array,
    F32x4,
    Instruction,
    Lanes,
    instruction,
)
from ferrum_numba.ptx.mma import ldmatrix_x4
from ferrum_numba.ptx.tile import MMA

# bytes of a tile: 16 of each lane
TILE_BYTES = 512
# sub-tiles of 16 columns in a tile
SUBTILES = 4
SYMMETRIC_ZERO_POINT = 8

# a nibble ORed into the mantissa of 1024 (fp16) or 128 (bf16) is 1024 + q, 1024 + 16q where it is
# the upper one of its byte, or 128 + q; (x & mask) | magic is one lop3 with truth table 0xea.
# Nibbles 0 and 2 are the lane's first and second column at the upper eight rows of K: a0 and a1
CODES = {
    "f16": """
    shr.u32 q, {word}, 8;
    lop3.b32 a0, {word}, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 a2, {word}, 0x00f000f0, 0x64006400, 0xea;
    lop3.b32 a1, q, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 a3, q, 0x00f000f0, 0x64006400, 0xea;
    sub.f16x2 a0, a0, z0;
    fma.rn.f16x2 a2, a2, one, m0;
    sub.f16x2 a1, a1, z1;
    fma.rn.f16x2 a3, a3, one, m1;""",
    "bf16": """
    lop3.b32 a0, {word}, 0x000f000f, 0x43004300, 0xea;
    shr.u32 q, {word}, 4;
    lop3.b32 a2, q, 0x000f000f, 0x43004300, 0xea;
    shr.u32 q, {word}, 8;
    lop3.b32 a1, q, 0x000f000f, 0x43004300, 0xea;
    shr.u32 q, {word}, 12;
    lop3.b32 a3, q, 0x000f000f, 0x43004300, 0xea;
    fma.rn.bf16x2 a0, a0, one, m0;
    fma.rn.bf16x2 a2, a2, one, m0;
    fma.rn.bf16x2 a1, a1, one, m1;
    fma.rn.bf16x2 a3, a3, one, m1;""",
}
# what is taken away from a code plus magic, for the first and the second column: 1024 + z, 64 + z
# or 128 + z. `one` undoes the factor of an upper nibble
EIGHT = {
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
# the sub-tile's nibbles of a word of zero points are in the low bits of either half: one a column
ZERO_POINTS = {
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
SCALES = {
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


@cache
def load_tiles(k_tiles: int) -> Instruction:
    """Make `(gmem, stride_bytes) -> U32 x 4*k_tiles`: the lane's words of tiles, past L1.

    gmem:         U64, the lane's 16 bytes of the first tile
    stride_bytes: U64, from a tile to the one below it
    """
    lines = [".reg .b64 p;", "mov.b64 p, <gmem>;"]
    for i in range(k_tiles):
        words = _registers("d", 4 * i, 4)
        lines.append(f"ld.global.nc.L1::no_allocate.v4.u32 {words}, [p];")
        if i + 1 < k_tiles:
            lines.append("add.s64 p, p, <stride_bytes>;")

    def twin(lanes: Lanes, gmem: Array, stride_bytes: Array) -> Array:
        return _load_rows(lanes, gmem, stride_bytes, k_tiles, 16)

    return Instruction(
        f"load_tiles_{k_tiles}", braced(lines), {"gmem": U64, "stride_bytes": U64},
        U32 * (4 * k_tiles), twin, effect="volatile",
    )  # fmt: skip


@instruction("prefetch.global.L2 [<gmem>];", effect="volatile")
def prefetch_l2(lanes: Lanes, gmem: U64) -> None:
    """Begin to bring the line of an address into L2.

    Source: PTX ISA, "Data Movement Instructions: prefetch".
    """
    lanes.load_global(gmem & ~np.uint64(15), 16)


@cache
def load_words(rows: int, count: int) -> Instruction:
    """Make `(gmem, stride_bytes) -> U32 x rows*count`: 1 or 4 words of each of some rows."""
    lines = [".reg .b64 p;", "mov.b64 p, <gmem>;"]
    for i in range(rows):
        words = f".v4.u32 {_registers('d', 4 * i, 4)}" if count == 4 else f".u32 <d.{i}>"
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
        f"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {_registers('d', first, 4)}, "
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
    k_tiles: int, n_tiles: int, half: Half, groups: int, zero_points: int
) -> Instruction:
    """Make `(words, tokens, scales, zeros, acc) -> acc`: acc + tokens * weights of a step.

    groups:      of the step's rows, each with its own scales; 0: the codes minus their zero points
                 are multiplied as they are, and the sums scaled by somebody else
    zero_points: words of zero points, 0 where every zero point is 8

    Operands of the instruction:
        words:  U32 x 4*k_tiles, from `load_tiles`
        tokens: U32 x 2*k_tiles*n_tiles, from `load_tokens`: a pair's upper tile, then the lower
        scales: U32 x 4*max(groups, 1); word j of a group: scales of the lane's columns of
                sub-tile j; not read without groups
        zeros:  U32 x max(zero_points, 1); nibbles j and j + 4 of a word belong to the lane's
                columns of sub-tile j; not read without zero points
        acc:    F32 x 16*n_tiles; shares its registers with the result

    q - z is exact in fp16 and bf16, products and sums are fp32, and a group's sum is scaled in fp32
    with one rounding: no weight is rounded.
    """
    shape = _Shape(k_tiles, n_tiles, half, groups, zero_points)
    return Instruction(
        f"multiply_step_{k_tiles}x{n_tiles}_{half}_{groups}_{zero_points}", shape.template(),
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
        self, k_tiles: int, n_tiles: int, half: Half, groups: int, zero_points: int
    ) -> None:
        self.k_tiles, self.n_tiles, self.half = k_tiles, n_tiles, half
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
            lines.append(EIGHT[self.half])
        for group in range(max(self.groups, 1)):
            for j in range(SUBTILES):
                lines += self._subtile(group, j)
        return braced(lines)

    def _subtile(self, group: int, j: int) -> list[str]:
        """Return the products of a group's tiles with one sub-tile of 16 columns."""
        lines = []
        if self.zero_points:
            zeros = f"<zeros.{group % self.zero_points}>"
            lines.append(ZERO_POINTS[self.half].format(zeros=zeros, shift=4 * j))
        first = 4 * j * self.n_tiles
        sums = [f"<d.{first + i}>" for i in range(4 * self.n_tiles)]
        if self.groups:
            sums = [f"p{i}" for i in range(4 * self.n_tiles)]
            lines += [f"mov.f32 {p}, 0f00000000;" for p in sums]
        for k in range(group * self.group_tiles, (group + 1) * self.group_tiles):
            lines.append(CODES[self.half].format(word=f"<words.{4 * k + j}>"))
            for block in range(self.n_tiles):
                c = "{" + ", ".join(sums[4 * block : 4 * block + 4]) + "}"
                b = _registers("tokens", self.token(k, block), 2)
                lines.append(
                    f"mma.sync.aligned.m16n8k16.row.col.f32.{self.half}.{self.half}.f32 "
                    f"{c}, {{a0, a1, a2, a3}}, {b}, {c};"
                )
        if self.groups:
            lines.append(SCALES[self.half].format(scales=f"<scales.{4 * group + j}>"))
            for i, p in enumerate(sums):
                d = f"<d.{first + i}>"
                lines.append(f"fma.rn.f32 {d}, {p}, s{i % 4 // 2}, {d};")
        return lines

    def twin(self, words: Array, tokens: Array, scales: Array, zeros: Array, acc: Array) -> Array:
        multiply = MMA[self.half]
        out = acc.reshape(len(acc), SUBTILES, self.n_tiles, 4).copy()
        factors = widen(scales, self.half).reshape(len(acc), -1, SUBTILES, 2).repeat(2, axis=3)
        for group, j in np.ndindex(max(self.groups, 1), SUBTILES):
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
    scales: U32 x 4, word j: scales of the lane's columns of sub-tile j
    acc:    F32 x 16*n_tiles; shares its registers with the result
    """
    lines = [".reg .b32 q;", ".reg .b16 h0, h1;", ".reg .f32 s0, s1;"]
    for j in range(SUBTILES):
        lines.append(SCALES[half].format(scales=f"<scales.{j}>"))
        for i in range(4 * n_tiles):
            d, p = (f"<{name}.{4 * j * n_tiles + i}>" for name in ("d", "sums"))
            lines.append(f"fma.rn.f32 {d}, {p}, s{i % 4 // 2}, {d};")

    def twin(sums: Array, scales: Array, acc: Array) -> Array:
        factors = widen(scales, half).reshape(len(acc), SUBTILES, 1, 2, 1)
        fragments = sums.reshape(len(acc), SUBTILES, n_tiles, 2, 2).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            return ((fragments * factors).reshape(acc.shape) + acc).astype(np.float32)

    return Instruction(
        f"scale_sums_{n_tiles}_{half}", braced(lines),
        {"sums": F32 * (16 * n_tiles), "scales": U32 * 4, "acc": F32 * (16 * n_tiles)},
        F32 * (16 * n_tiles), twin, tied="acc",
    )  # fmt: skip


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
def store_columns(n_tiles: int, row_bytes: int) -> Instruction:
    """Make `(address, acc)`: write an accumulator to shared memory, a row of 64 fp32 a token.

    address: U32, of token 2 * (lane % 4) and column lane / 4; rows lie row_bytes apart
    """
    places = [
        (8 * block + c % 2) * row_bytes + 4 * (16 * j + 8 * (c // 2))
        for j in range(SUBTILES)
        for block in range(n_tiles)
        for c in range(4)
    ]
    lines = [f"st.shared.f32 [<address>+{place}], <acc.{i}>;" for i, place in enumerate(places)]

    def twin(lanes: Lanes, address: Array, acc: Array) -> None:
        for i, place in enumerate(places):
            data = np.ascontiguousarray(acc[:, i : i + 1]).view(np.uint8)
            lanes.store_shared(address + np.uint32(place), data)

    return Instruction(
        f"store_columns_{n_tiles}x{row_bytes}", "\n".join(lines),
        {"address": U32, "acc": F32 * (16 * n_tiles)}, None, twin, effect="memory",
    )  # fmt: skip


@instruction(
    """{
    .reg .pred p;
    .reg .b32 a, b, c, d;
    mov.b32 a, <values.0>; mov.b32 b, <values.1>; mov.b32 c, <values.2>; mov.b32 d, <values.3>;
    setp.eq.u32 p, a, 0; selp.b32 a, 0x80000000, a, p;
    setp.eq.u32 p, b, 0; selp.b32 b, 0x80000000, b, p;
    setp.eq.u32 p, c, 0; selp.b32 c, 0x80000000, c, p;
    setp.eq.u32 p, d, 0; selp.b32 d, 0x80000000, d, p;
    st.relaxed.gpu.global.v4.b32 [<address>], {a, b, c, d};
    }""",
    effect="memory",
)
def put_slot(lanes: Lanes, address: U64, values: F32x4) -> None:
    """Hand four sums to the block that takes them: no word is 0, which says "not there yet".

    0 becomes -0, which adds the same. Each word says for itself that it has arrived, so nothing
    orders them.
    """
    words = np.ascontiguousarray(values).view(np.uint32)
    words = np.where(words == 0, np.uint32(1 << 31), words)
    lanes.store_global(address, words.view(np.uint8))


@cache
def take_slots(depth: int, stride_bytes: int) -> Instruction:
    """Make `(address, count, sums) -> F32 x 4`: sums plus those of min(count, depth) slots.

    Waits until `put_slot` has filled them, adds them in their order, and leaves zeros.

    address: U64, of the first slot's four fp32; slots lie stride_bytes apart
    """
    lines = [f".reg .pred q, {', '.join(f'p{i}' for i in range(depth))};", ".reg .b32 none;"]
    names = [[f"v{i}{j}" for j in range(4)] for i in range(depth)]
    for i, registers in enumerate(names):
        lines.append(f".reg .b32 {', '.join(registers)};")
        lines += [f"mov.b32 {r}, 1;" for r in registers]
        lines.append(f"setp.gt.u32 p{i}, <count>, {i};")
    lines.append("again:")
    for i, registers in enumerate(names):
        vector = ", ".join(registers)
        place = f"[<address>+{i * stride_bytes}]"
        lines.append(f"@p{i} ld.relaxed.gpu.global.v4.b32 {{{vector}}}, {place};")
    lines.append("setp.eq.u32 q, v00, 0;")
    lines += [f"setp.eq.or.u32 q, {r}, 0, q;" for registers in names for r in registers]
    lines += ["@q bra again;", "mov.b32 none, 0;", ".reg .f32 f;"]
    for i, registers in enumerate(names):
        for j, r in enumerate(registers):
            lines += [f"mov.b32 f, {r};", f"@p{i} add.f32 <d.{j}>, <d.{j}>, f;"]
        place = f"[<address>+{i * stride_bytes}]"
        lines.append(f"@p{i} st.global.v4.b32 {place}, {{none, none, none, none}};")

    def twin(lanes: Lanes, address: Array, count: Array, sums: Array) -> Any:
        if lanes.block.pause(lanes.thread):
            return BLOCKED
        rows = [on for on in (np.flatnonzero(count > i) for i in range(depth)) if on.size]
        places: list[Array] = [
            np.asarray(address[on] + np.uint64(i * stride_bytes)) for i, on in enumerate(rows)
        ]
        got = [lanes.load_global(place, 16) for place in places]
        if not all(data.view(np.uint32).all() for data in got):
            return BLOCKED
        out = sums.copy()
        for on, place, data in zip(rows, places, got, strict=True):
            out[on] += data.view(np.float32)
            lanes.store_global(place, np.zeros_like(data))
        return out

    return Instruction(
        f"take_slots_{depth}x{stride_bytes}", braced(lines),
        {"address": U64, "count": U32, "sums": F32 * 4}, F32 * 4, twin,
        effect="memory", tied="sums",
    )  # fmt: skip


def _registers(operand: str, first: int, count: int) -> str:
    return "{" + ", ".join(f"<{operand}.{first + i}>" for i in range(count)) + "}"


def braced(lines: list[str]) -> str:
    """Return lines of PTX as a block with registers of its own."""
    return "{\n" + "\n".join(lines) + "\n}"
