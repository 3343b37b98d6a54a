"""Several instructions as one: the steps of a GEMM tile, made once for a number of 16-row blocks.

Straight-line Python compiles in cubic time, so what a warp repeats for every block of a tile is
written out here, in PTX, and a kernel sees one call. `blocks` counts 16-row blocks of the tile; an
accumulator holds two n8 column blocks of each: F32 x 8*blocks, element ((block * 2 + n) * 4 + c),
with c the element of the `mma.m16n8k16` fragment: (row, column) = (lane / 4 + 8 * (c / 2),
2 * (lane % 4) + c % 2).
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Literal

import numpy as np

from ferrum_numba.ptx.convert import PACK
from ferrum_numba.ptx.instruction import F32, U32, U64, Array, Instruction, Lanes
from ferrum_numba.ptx.mma import MMA, ldmatrix_x4
from ferrum_numba.ptx.text import Half, braced, registers

Space = Literal["shared", "global"]


@cache
def ldmatrix_tile(blocks: int, block_stride_bytes: int) -> Instruction:
    """Make `(address) -> U32 x 4*blocks`: the A fragments of `blocks` 16x16 matrices of halves.

    address: each lane's row of the first block, as `ldmatrix_x4` wants it; block i lies
             i * block_stride_bytes further
    """
    lines = [
        f"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {registers('d', 4 * i)}, "
        f"[<address>+{i * block_stride_bytes}];"
        for i in range(blocks)
    ]

    def twin(lanes: Lanes, address: Array) -> Array:
        steps = [np.uint32(i * block_stride_bytes) for i in range(blocks)]
        return np.concatenate([ldmatrix_x4.twin(lanes, address + s) for s in steps], axis=1)

    return Instruction(
        f"ldmatrix_tile_{blocks}x{block_stride_bytes}", "\n".join(lines), {"address": U32},
        U32 * (4 * blocks), twin, effect="memory", scope="warp",
    )  # fmt: skip


@cache
def mma_tile(blocks: int, dtype: Half = "f16") -> Instruction:
    """Make `(a, b, c) -> F32 x 8*blocks`: c + a * b for all blocks and two n8 column blocks.

    a: U32 x 4*blocks, from `ldmatrix_tile`
    b: U32 x 4: the B operands of columns 0..7 and 8..15
    c: F32 x 8*blocks, the accumulator; shares its registers with the result
    """
    lines = []
    for i in range(blocks):
        for n in range(2):
            c = registers("d", 8 * i + 4 * n)
            lines.append(
                f"mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32 "
                f"{c}, {registers('a', 4 * i)}, {{<b.{2 * n}>, <b.{2 * n + 1}>}}, {c};"
            )

    def twin(a: Array, b: Array, c: Array) -> Array:
        out = np.empty_like(c)
        for i in range(blocks):
            for n in range(2):
                part = slice(8 * i + 4 * n, 8 * i + 4 * n + 4)
                out[:, part] = MMA[dtype].twin(
                    a[:, 4 * i : 4 * i + 4], b[:, 2 * n : 2 * n + 2], c[:, part]
                )
        return out

    return Instruction(
        f"mma_tile_{blocks}_{dtype}", "\n".join(lines),
        {"a": U32 * (4 * blocks), "b": U32 * 4, "c": F32 * (8 * blocks)}, F32 * (8 * blocks),
        twin, scope="warp", tied="c",
    )  # fmt: skip


@cache
def store_tile(
    space: Literal["shared", "cluster", "global"],
    count: int,
    stride_bytes: int,
    begin: int = 0,
    end: int | None = None,
) -> Instruction:
    """Make `(address, values)`: write elements begin to end of F32 x count, in 16-byte pieces.

    The pieces lie stride_bytes apart; begin and end are multiples of 4. The address is a U64 in
    global memory, else a U32, in shared memory of the block or anywhere in the cluster.
    """
    kind = U64 if space == "global" else U32
    at = "shared::cluster" if space == "cluster" else space
    pieces = range(begin // 4, (count if end is None else end) // 4)
    lines = [
        f"st.{at}.v4.f32 [<address>+{n * stride_bytes}], {registers('values', 4 * i)};"
        for n, i in enumerate(pieces)
    ]

    def twin(lanes: Lanes, address: Array, values: Array) -> None:
        write: Any = {
            "shared": lanes.store_shared,
            "cluster": partial(lanes.block.store_cluster, lanes.thread),
            "global": lanes.store_global,
        }[space]
        for n, i in enumerate(pieces):
            write(address + kind.dtype(n * stride_bytes), _bytes(values[:, 4 * i : 4 * i + 4]))

    return Instruction(
        f"store_tile_{space}_{count}x{stride_bytes}_{begin}_{end}", "\n".join(lines),
        {"address": kind, "values": F32 * count}, None, twin, effect="memory",
        arch="sm_90" if space == "cluster" else "sm_80",
    )  # fmt: skip


@cache
def add_tile(
    space: Space, count: int, stride_bytes: int, begin: int = 0, end: int | None = None
) -> Instruction:
    """Make `(address, values) -> F32 x count`: values plus what `store_tile` wrote there.

    Elements before begin and from end on stay as they are. Global memory is read at L2 (`.cg`),
    because another block wrote it.
    """
    kind = U32 if space == "shared" else U64
    load = "ld.shared.v4.f32" if space == "shared" else "ld.global.cg.v4.f32"
    pieces = range(begin // 4, (count if end is None else end) // 4)
    lines = [".reg .f32 p, q, r, s;"]
    for n, i in enumerate(pieces):
        lines.append(f"{load} {{p, q, r, s}}, [<address>+{n * stride_bytes}];")
        lines += [f"add.f32 <d.{4 * i + j}>, <d.{4 * i + j}>, {t};" for j, t in enumerate("pqrs")]

    def twin(lanes: Lanes, address: Array, values: Array) -> Array:
        read = lanes.load_shared if space == "shared" else lanes.load_global
        total = values.copy()
        for n, i in enumerate(pieces):
            piece = read(address + kind.dtype(n * stride_bytes), 16).view(np.float32)
            total[:, 4 * i : 4 * i + 4] += piece
        return total

    return Instruction(
        f"add_tile_{space}_{count}x{stride_bytes}_{begin}_{end}", braced(lines),
        {"address": kind, "values": F32 * count}, F32 * count, twin,
        effect="memory", tied="values",
    )  # fmt: skip


@cache
def store_tile_rounded(
    blocks: int, strips: int, row_stride_bytes: int, dtype: Half = "f16"
) -> Instruction:
    """Make `(address, values, scale, bias)`: write round(values * scale + bias) to shared memory.

    address: U32, of the lane's element (lane / 4, 2 * (lane % 4)) of the first block
    values:  F32 x 8*blocks*strips, accumulators of neighbouring strips of 16 columns
    scale:   F32 x 4*strips, of the lane's columns 2t, 2t+1, 2t+8, 2t+9 (t = lane % 4) a strip
    bias:    F32 x 4*strips, of the same columns; one fma, then one rounding to dtype
    """
    places = [
        (strip, block, n, row, (16 * block + 8 * row) * row_stride_bytes + 32 * strip + 16 * n)
        for strip, block, n, row in np.ndindex(strips, blocks, 2, 2)
    ]
    lines = [".reg .f32 p, q;", ".reg .b32 h;"]
    for strip, block, n, row, offset in places:
        value = 8 * (blocks * strip + block) + 4 * n + 2 * row
        column = 4 * strip + 2 * n
        lines += [
            f"fma.rn.f32 {r}, <values.{value + i}>, <scale.{column + i}>, <bias.{column + i}>;"
            for i, r in enumerate("pq")
        ]
        lines += [f"cvt.rn.{dtype}x2.f32 h, q, p;", f"st.shared.b32 [<address>+{offset}], h;"]

    def twin(lanes: Lanes, address: Array, values: Array, scale: Array, bias: Array) -> None:
        fragments = values.reshape(-1, strips, blocks, 2, 2, 2).astype(np.float64)
        factors, shifts = (v.reshape(-1, strips, 1, 2, 1, 2) for v in (scale, bias))
        # the fp32 fma rounds once, then the conversion rounds to dtype
        sums = (fragments * factors.astype(np.float64) + shifts).astype(np.float32)
        for *place, offset in places:
            pair = sums[(slice(None), *place)]
            word = PACK[dtype].twin(pair[:, 0], pair[:, 1])
            lanes.store_shared(address + np.uint32(offset), _bytes(word))

    return Instruction(
        f"store_tile_rounded_{blocks}x{strips}x{row_stride_bytes}_{dtype}",
        braced(lines),
        {
            "address": U32,
            "values": F32 * (8 * blocks * strips),
            "scale": F32 * (4 * strips),
            "bias": F32 * (4 * strips),
        },
        None, twin, effect="memory",
    )  # fmt: skip


def _bytes(values: Array) -> Array:
    """Return [lanes, n] values of any dtype as [lanes, n * itemsize] uint8."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
