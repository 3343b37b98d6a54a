"""The steps of a warp on a checkpoint's own words: 16-row blocks of x times 32 columns of weight.

A GPTQ word holds eight consecutive k of one column. The order of k inside a product is free, as
long as both operands agree, so over 32 k lane t of a quad (t = lane % 4) takes k = 8t .. 8t + 7:
one word of a column, and 16 consecutive bytes of a row of x. They feed two `mma.m16n8k16`:

    step 0: k = 8t, 8t+1 as the fragment's 2t, 2t+1   and 8t+2, 8t+3 as its 2t+8, 2t+9
    step 1: k = 8t+4, 8t+5 ...                        and 8t+6, 8t+7 ...

The order of columns is free too: lane g = lane / 4 takes columns 4g .. 4g + 3, 16 bytes of packed
words; column 4g + j belongs to the n8 block j. Then a lane's results of the four blocks are eight
consecutive columns, 8t .. 8t + 7, of rows g and g + 8: one 16-byte store a row.

An accumulator holds two n8 column blocks of `blocks` 16-row blocks: F32 x 8*blocks, element
((block * 2 + n) * 4 + c), c the element of the mma's fragment, as in kernels/shared/tile.py.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ferrum_numba.ptx.arithmetic import ROUND, widen
from ferrum_numba.ptx.convert import PACK
from ferrum_numba.ptx.instruction import F32, U32, U64, Array, Instruction, Lanes
from ferrum_numba.ptx.mma import MMA
from ferrum_numba.ptx.text import Half, braced, registers

# (a & b) | c
_OR_OF_AND = 0xEA
# the four pairs of a lane's 16 bytes, or of a word, in order: (step, pair within the step)
_PAIRS = ((0, 0), (0, 1), (1, 0), (1, 1))


# A pair of codes is two nibbles of a byte, OR-ed into the mantissas of a pair of halves.
# fp16: 1024 + q and 1024 + 16q, the byte in either half; (1, 1/16) makes them 1024 + q, 64 + q.
# bf16: 128 + q both; its mantissa has no room for 16q.
# The offsets that a fma adds, -(1024 + zero), -(64 + zero) or -(128 + zero) twice, are the zero
# points OR-ed into these, `shift` bits up in the upper half, where fp16's unit is 1/16.
_UNIT = {"f16": 0x2C003C00, "bf16": 0x3F803F80}
_OFFSET = {"f16": (0xD400E400, 20), "bf16": (0xC300C300, 16)}


@cache
def load_groups(
    rows: int, scale_row_bytes: int, zero_row_bytes: int, dtype: Half = "f16"
) -> Instruction:
    """Make `(scale, zero, shift, zero_offset) -> U32 x 8*pairs`: a lane's scales and zero points.

    rows:        8: each row of a word has its own; 1: all share one
    scale:       U32, shared address of the first row's scales of columns 4g .. 4g + 3
    zero:        U32, shared address of the first row's packed zero points of 4g .. 4g + 3
    shift:       U32, bits below column 4g's nibble in its word: 0 or 16
    zero_offset: U32, added to a word of zero points: 0x11111111 for GPTQ v1
    Returns for each of the pairs of rows (0, 1), (2, 3), (4, 5), (6, 7), or for the one row twice,
    four pairs of scales, then of offsets for `dequantize_column`, a column each.
    """
    pairs = max(1, rows // 2)
    base, up = _OFFSET[dtype]
    lines = [".reg .b32 low, high;"]
    for row in range(rows):
        lines += [
            f".reg .b32 s{row}a, s{row}b, z{row};",
            f"ld.shared.v2.b32 {{s{row}a, s{row}b}}, [<scale>+{row * scale_row_bytes}];",
            f"ld.shared.b32 z{row}, [<zero>+{row * zero_row_bytes}];",
            f"add.u32 z{row}, z{row}, <zero_offset>;",
            f"shr.u32 z{row}, z{row}, <shift>;",
        ]
    for pair in range(pairs):
        first, second = (2 * pair, 2 * pair + 1) if rows > 1 else (0, 0)
        for j in range(4):
            half, selector = ("a", "b")[j // 2], (0x5410, 0x7632)[j % 2]
            lines += [
                f"prmt.b32 <d.{8 * pair + j}>, s{first}{half}, s{second}{half}, {selector:#x};",
                f"shr.u32 low, z{first}, {4 * j};",
                f"lop3.b32 low, low, 0xf, {base:#x}, {_OR_OF_AND:#x};",
                f"shl.b32 high, z{second}, {up - 4 * j};",
                f"lop3.b32 <d.{8 * pair + 4 + j}>, high, {0xF << up:#x}, low, {_OR_OF_AND:#x};",
            ]

    def twin(lanes: Lanes, scale: Array, zero: Array, shift: Array, zero_offset: Array) -> Array:
        scales, zeros = [], []
        for row in range(rows):
            data = lanes.load_shared(scale + np.uint32(row * scale_row_bytes), 8)
            scales.append(data.view(np.uint16))
            word = lanes.load_shared(zero + np.uint32(row * zero_row_bytes), 4).view(np.uint32)
            word = (word[:, 0] + zero_offset) >> shift
            zeros.append(word[:, None] >> np.array([0, 4, 8, 12], np.uint32) & np.uint32(15))
        # [lanes, pairs, columns] of the first and of the second row
        low, high = (np.stack(scales[i::2] or scales, axis=1).astype(np.uint32) for i in (0, 1))
        scale_pairs = low | high << np.uint32(16)
        low, high = (np.stack(zeros[i::2] or zeros, axis=1) for i in (0, 1))
        offsets = np.uint32(base) | low | high << np.uint32(up)
        return np.concatenate([scale_pairs, offsets], axis=2).reshape(len(scale), -1)

    return Instruction(
        f"load_groups_{rows}x{scale_row_bytes}x{zero_row_bytes}_{dtype}",
        braced(lines),
        {"scale": U32, "zero": U32, "shift": U32, "zero_offset": U32},
        U32 * (8 * pairs), twin, effect="memory",
    )  # fmt: skip


def _pair_of_codes(i: int, dtype: Half) -> list[str]:
    """Return PTX for p<i>: the codes of the word's byte i, OR-ed into the magic number."""
    if dtype == "f16":
        return [
            f"prmt.b32 p{i}, <word>, 0, {0x1111 * i:#x};",
            f"lop3.b32 p{i}, p{i}, 0x00f0000f, magic, {_OR_OF_AND:#x};",
        ]
    # the lower nibble to bit 0, the upper to bit 16
    up = 12 - 8 * i
    return [
        f"shr.u32 p{i}, <word>, {8 * i};",
        f"lop3.b32 p{i}, p{i}, 0xf, magic, {_OR_OF_AND:#x};",
        f"shl.b32 q, <word>, {up};" if up > 0 else f"shr.u32 q, <word>, {-up};",
        f"lop3.b32 p{i}, q, 0xf0000, p{i}, {_OR_OF_AND:#x};",
    ]


@cache
def dequantize_column(column: int, rows: int, dtype: Half = "f16") -> Instruction:
    """Make `(word, groups) -> U32 x 4`: (q - zero) * scale of a word's eight codes, as pairs.

    column: which of a lane's four columns
    word:   eight int4 codes, nibble i = row i
    groups: from `load_groups` of as many rows; q - zero is exact, the product is rounded once
    Returns the pairs of rows (0, 1), (2, 3), (4, 5), (6, 7).
    """
    pairs = max(1, rows // 2)
    places = [8 * (i % pairs) + column for i in range(4)]
    magic = {"f16": 0x64006400, "bf16": 0x43004300}[dtype]
    lines = [".reg .b32 p0, p1, p2, p3, q, magic, unit, nothing;"]
    lines += [f"mov.b32 magic, {magic:#x};", f"mov.b32 unit, {_UNIT[dtype]:#x};"]
    lines += ["mov.b32 nothing, 0x80008000;"]
    for i, place in enumerate(places):
        scale = f"<groups.{place}>"
        lines += _pair_of_codes(i, dtype)
        lines += [
            f"fma.rn.{dtype}x2 p{i}, p{i}, unit, <groups.{place + 4}>;",
            # sm_80 has no product of bf16; adding -0 keeps the sign of a zero
            f"mul.rn.f16x2 p{i}, p{i}, {scale};"
            if dtype == "f16"
            else f"fma.rn.bf16x2 p{i}, p{i}, {scale}, nothing;",
        ]
    # the results are written last: they may share registers with the operands
    lines += [f"mov.b32 <d.{i}>, p{i};" for i in range(4)]
    low, up = (1024, 64) if dtype == "f16" else (128, 128)

    def twin(word: Array, groups: Array) -> Array:
        results = []
        for i, place in enumerate(places):
            byte = word >> np.uint32(8 * i) & np.uint32(255)
            codes = np.stack([low + (byte & 15), up + (byte >> 4)], axis=1).astype(np.float64)
            offsets, scales = (
                widen(groups[:, p : p + 1], dtype) for p in (place + 4, place)
            )  # fmt: skip
            # the sum is exact, so only the product is rounded
            halves = ROUND[dtype]((codes + offsets) * scales)
            results.append(np.ascontiguousarray(halves).view(np.uint32)[:, 0])
        return np.stack(results, axis=1)

    return Instruction(
        f"dequantize_column_{column}x{rows}_{dtype}", braced(lines),
        {"word": U32, "groups": U32 * (8 * pairs)}, U32 * 4, twin,
    )  # fmt: skip


@cache
def load_rows(blocks: int, row_bytes: int) -> Instruction:
    """Make `(address) -> U32 x 8*blocks`: a lane's eight k of rows g and g + 8 of every block.

    address: U32, of the lane's 16 bytes in row g of the first block, in shared memory
    Returns the A fragments of both steps, [step, block, register].
    """
    loads = [(block, half) for block in range(blocks) for half in range(2)]
    # a fragment's registers are (row g, row g + 8) x (first, second pair of a step)
    order = {
        load: [4 * blocks * step + 4 * load[0] + load[1] + 2 * pair for step, pair in _PAIRS]
        for load in loads
    }
    lines = []
    for (block, half), places in order.items():
        data = ", ".join(f"<d.{r}>" for r in places)
        lines.append(
            f"ld.shared.v4.b32 {{{data}}}, [<address>+{(16 * block + 8 * half) * row_bytes}];"
        )

    def twin(lanes: Lanes, address: Array) -> Array:
        out = np.empty((len(address), 8 * blocks), np.uint32)
        for (block, half), places in order.items():
            row = address + np.uint32((16 * block + 8 * half) * row_bytes)
            out[:, places] = lanes.load_shared(row, 16).view(np.uint32)
        return out

    return Instruction(
        f"load_rows_{blocks}x{row_bytes}", "\n".join(lines), {"address": U32},
        U32 * (8 * blocks), twin, effect="memory",
    )  # fmt: skip


@cache
def mma_rows(blocks: int, dtype: Half = "f16") -> Instruction:
    """Make `(a, left, right, c) -> F32 x 8*blocks`: c + a * b over 32 k and two column blocks.

    a:           U32 x 8*blocks, from `load_rows`
    left, right: U32 x 4, from `dequantize_column`, of the first and of the second column block
    c:           F32 x 8*blocks, the accumulator; shares its registers with the result
    """
    lines = []
    for step in range(2):
        for block in range(blocks):
            for n, word in enumerate(("left", "right")):
                a = registers("a", 4 * blocks * step + 4 * block)
                c = registers("d", 8 * block + 4 * n)
                b = f"{{<{word}.{2 * step}>, <{word}.{2 * step + 1}>}}"
                lines.append(
                    f"mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32 {c}, {a}, {b}, {c};"
                )

    def twin(a: Array, left: Array, right: Array, c: Array) -> Array:
        out = c.copy()
        fragments = a.reshape(-1, 2, blocks, 4)
        sums = out.reshape(-1, blocks, 2, 4)
        for step, block, n in np.ndindex(2, blocks, 2):
            b = (left, right)[n][:, 2 * step : 2 * step + 2]
            sums[:, block, n] = MMA[dtype].twin(fragments[:, step, block], b, sums[:, block, n])
        return out

    return Instruction(
        f"mma_rows_{blocks}_{dtype}", "\n".join(lines),
        {"a": U32 * (8 * blocks), "left": U32 * 4, "right": U32 * 4, "c": F32 * (8 * blocks)},
        F32 * (8 * blocks), twin, scope="warp", tied="c",
    )  # fmt: skip


@cache
def store_rows(blocks: int, dtype: Half = "f16") -> Instruction:
    """Make `(address, stride_bytes, rows, left, right, bias)`: write round(sum + bias), 8 columns.

    address:      U64, of the lane's eight columns in row g of the first block, in global memory
    stride_bytes: U64, of a row
    rows:         U32, how many rows from row g on exist; the others are not written
    left, right:  F32 x 8*blocks: accumulators of column blocks 0, 1 and 2, 3
    bias:         F32 x 8, of the lane's columns
    """
    places = [(block, half) for block in range(blocks) for half in range(2)]
    lines = [".reg .pred p;", ".reg .u64 row;", ".reg .f32 lo, hi;", ".reg .b32 h0, h1, h2, h3;"]
    for block, half in places:
        lines.append(f"mad.lo.u64 row, <stride_bytes>, {16 * block + 8 * half}, <address>;")
        for pair in range(4):
            for name, column in (("lo", 2 * pair), ("hi", 2 * pair + 1)):
                operand, element = _element(block, half, column)
                lines.append(f"add.rn.f32 {name}, <{operand}.{element}>, <bias.{column}>;")
            lines.append(f"cvt.rn.{dtype}x2.f32 h{pair}, hi, lo;")
        lines.append(f"setp.lt.u32 p, {16 * block + 8 * half}, <rows>;")
        lines.append("@p st.global.v4.b32 [row], {h0, h1, h2, h3};")

    def twin(
        lanes: Lanes, address: Array, stride_bytes: Array, rows: Array,
        left: Array, right: Array, bias: Array,
    ) -> None:  # fmt: skip
        sums = {"left": left, "right": right}
        for block, half in places:
            elements = [_element(block, half, column) for column in range(8)]
            values = np.stack([sums[operand][:, e] for operand, e in elements], axis=1) + bias
            words = [PACK[dtype].twin(values[:, i], values[:, i + 1]) for i in range(0, 8, 2)]
            below = 16 * block + 8 * half
            exists = np.flatnonzero(rows > below)
            row = address + stride_bytes * np.uint64(below)
            if exists.size:
                data = np.stack(words, axis=1)[exists].view(np.uint8)
                lanes.only(exists).store_global(row[exists], data)

    accumulator = F32 * (8 * blocks)
    return Instruction(
        f"store_rows_{blocks}_{dtype}", braced(lines),
        {
            "address": U64, "stride_bytes": U64, "rows": U32,
            "left": accumulator, "right": accumulator, "bias": F32 * 8,
        },
        None, twin, effect="memory",
    )  # fmt: skip


def _element(block: int, half: int, column: int) -> tuple[str, int]:
    """Return the accumulator and its element that hold a lane's column of a row."""
    # column 4g + j is the g-th of block j: a quad's columns 8t + j are 2t, 8t + 4 + j are 2t + 1
    second, j = divmod(column, 4)
    return ("left", "right")[j // 2], (block * 2 + j % 2) * 4 + 2 * half + second
