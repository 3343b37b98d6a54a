"""Stages of a GEMM for few tokens on Hopper: a warpgroup's weights times tokens, by wgmma.

A stage is 64 or 128 rows of the weight: Marlin's 16(K) x 64(N) tiles, one below the other, for each
of the four warps of a warpgroup. A lane's 16 bytes of a tile are four words, one a sub-tile of
16 columns; word j of the four warps together is the A operand of one `wgmma.m64nNk16`, whose rows
are the columns of sub-tile j of each warp's tile. The tokens are operand B. All of it lies in
shared memory. Straight-line Python compiles in cubic time, so a stage is written out in PTX.

The accumulator is F32 x 2*n, element j * n/2 + block * 4 + c, as in `decode.multiply_step`: column
16j + lane / 4 + 8 * (c / 2) of the warp's tile, token 8 * block + 2 * (lane % 4) + c % 2.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ferrum_numba.ptx.arithmetic import widen
from ferrum_numba.ptx.decode import (
    CODES,
    EIGHT,
    SCALES,
    SUBTILES,
    SYMMETRIC_ZERO_POINT,
    ZERO_POINTS,
    braced,
    operand_a,
)
from ferrum_numba.ptx.dequantize import Half
from ferrum_numba.ptx.instruction import BLOCKED, F32, U32, U64, Array, Instruction, Lanes
from ferrum_numba.ptx.wgmma import wgmma_rs

# tiles of 64 rows: a row of tokens is what the swizzle repeats in
PANEL_TILES = 4
# between two looks at what another block has not handed over yet
PAUSE_NS = 64
# bytes from a tile of the warpgroup to the one below it, from a row of its scales to the next, and
# the same of its zero points
TILE_ROW_BYTES, SCALE_ROW_BYTES, ZERO_ROW_BYTES = 2048, 512, 128
# 16 of K are 32 bytes of a swizzled row of tokens, in the units of a descriptor
_K_STEP = 32 >> 4


@cache
def multiply_stage(
    n: int,
    half: Half,
    groups: int,
    zero_points: int,
    k_tiles: int = PANEL_TILES,
    in_flight: int = 1,
) -> Instruction:
    """Make `(words, scales, zeros, desc, acc) -> acc`: acc + weights * tokens of a stage.

    n:           tokens, a multiple of 8
    groups:      of the stage's rows, each with its own scales; 0: the codes minus their zero points
                 are multiplied as they are, and the sums scaled by somebody else
    zero_points: rows of zero points, 0 where every zero point is 8
    k_tiles:     tiles of the stage, 4 or 8; each four have a panel of tokens
    in_flight:   groups of products that run while the weights of the next are dequantised

    Operands of the instruction, addresses in shared memory:
        words:  U32, the lane's 16 bytes of the first tile
        scales: U32, scales of the lane's columns: word j those of sub-tile j
        zeros:  U32, the lane's word of zero points; nibbles j and j + 4 belong to its columns of
                sub-tile j
        desc:   U64, descriptor of the tokens' first 16 of K
        acc:    F32 x 2*n; shares its registers with the result

    q - z is exact in fp16 and bf16, products and sums are fp32, and a group's sum is scaled in fp32
    with one rounding: no weight is rounded.
    """
    stage = _Stage(n, half, groups, zero_points, k_tiles, in_flight)
    operands: dict[str, Any] = {
        "words": U32, "scales": U32, "zeros": U32, "desc": U64, "acc": F32 * (2 * n)
    }  # fmt: skip
    return Instruction(
        f"multiply_stage_{n}_{half}_{groups}_{zero_points}_{k_tiles}_{in_flight}",
        stage.template(), operands, F32 * (2 * n), stage.twin,
        effect="memory", scope="warpgroup", tied="acc", arch="sm_90a",
    )  # fmt: skip


class _Stage:
    """One form of `multiply_stage`: its text and its twin."""

    def __init__(
        self, n: int, half: Half, groups: int, zero_points: int, k_tiles: int, in_flight: int
    ) -> None:
        self.n, self.half, self.groups, self.zero_points = n, half, groups, zero_points
        self.k_tiles, self.in_flight = k_tiles, in_flight
        self.group_tiles = k_tiles // max(groups, 1)
        # products of a group of them
        self.batch = min(PANEL_TILES, self.group_tiles)
        self.products = SUBTILES * k_tiles
        self.batches = self.products // self.batch

    def partial(self, i: int) -> int:
        """Return which sums the i-th product is added to, before they are scaled."""
        return i // self.group_tiles

    def place(self, k: int) -> int:
        """Return where the tokens of a tile begin, in the units of a descriptor."""
        panel, step = divmod(k, PANEL_TILES)
        return panel * (self.n * 128 >> 4) + step * _K_STEP

    def template(self) -> str:
        registers = [f"w{k}_{j}" for k in range(self.k_tiles) for j in range(SUBTILES)]
        registers += [f"c{g}_{j}" for g in range(max(self.groups, 1)) for j in range(SUBTILES)]
        registers += [f"a{i}_{c}" for i in range(self.products) for c in range(4)]
        registers += [f"zero{g}" for g in range(max(self.zero_points, 1))]
        partials = [
            f"p{i}_{e}"
            for i in range(self.partial(self.products - 1) + 1)
            for e in range(self.n // 2)
        ]
        lines = [
            f".reg .b32 q, one, z0, z1, m0, m1, low, high, {', '.join(registers)};",
            f".reg .f32 s0, s1, {', '.join(partials)};",
            ".reg .b16 h0, h1;",
            f".reg .b64 {', '.join(f'x{k}' for k in range(self.k_tiles))};",
            ".reg .pred keep, drop;",
            "setp.ne.b32 drop, 0, 0;",
            "setp.eq.b32 keep, 0, 0;",
            *self._loads(),
            "mov.b64 {low, high}, <desc>;",
            "mov.b64 x0, <desc>;",
        ]
        for k in range(1, self.k_tiles):
            step = self.place(k) - self.place(k - 1)
            lines += [f"add.u32 low, low, {step};", f"mov.b64 x{k}, {{low, high}};"]
        if not self.zero_points:
            lines.append(EIGHT[self.half])
        for b in range(self.batches):
            lines += self._begin_batch(b)
            if b >= self.in_flight:
                lines += self._end_batch(b - self.in_flight, self.in_flight)
        for b in range(max(self.batches - self.in_flight, 0), self.batches):
            lines += self._end_batch(b, self.batches - 1 - b)
        return braced(lines)

    def _loads(self) -> list[str]:
        lines = []
        for k in range(self.k_tiles):
            words = ", ".join(f"w{k}_{j}" for j in range(SUBTILES))
            lines.append(f"ld.shared.v4.u32 {{{words}}}, [<words>+{k * TILE_ROW_BYTES}];")
        for g in range(self.groups):
            words = ", ".join(f"c{g}_{j}" for j in range(SUBTILES))
            lines.append(f"ld.shared.v4.u32 {{{words}}}, [<scales>+{g * SCALE_ROW_BYTES}];")
        for g in range(self.zero_points):
            lines.append(f"ld.shared.u32 zero{g}, [<zeros>+{g * ZERO_ROW_BYTES}];")
        return lines

    def _begin_batch(self, b: int) -> list[str]:
        products = range(b * self.batch, (b + 1) * self.batch)
        lines = [line for i in products for line in self._operand(i)]
        lines.append("wgmma.fence.sync.aligned;")
        lines += [self._product(i) for i in products]
        return [*lines, "wgmma.commit_group.sync.aligned;"]

    def _end_batch(self, b: int, younger: int) -> list[str]:
        """Return the wait for a group of products, after which so many were begun, and its sums."""
        return [f"wgmma.wait_group.sync.aligned {younger};", *self._fold(b)]

    def _operand(self, i: int) -> list[str]:
        """Return how the A operand of the i-th product is made: K runs first, then sub-tiles."""
        j, k = divmod(i, self.k_tiles)
        lines = []
        if k % self.group_tiles == 0 and self.zero_points:
            zeros = f"zero{k // self.group_tiles % self.zero_points}"
            lines.append(ZERO_POINTS[self.half].format(zeros=zeros, shift=4 * j))
        codes = CODES[self.half].format(word=f"w{k}_{j}")
        for c in range(4):
            codes = codes.replace(f"a{c},", f"a{i}_{c},")
        return [*lines, codes]

    def _sums(self, j: int) -> list[str]:
        return [f"<d.{e}>" for e in range(j * self.n // 2, (j + 1) * self.n // 2)]

    def _product(self, i: int) -> str:
        j, k = divmod(i, self.k_tiles)
        sums, keep = self._sums(j), "keep"
        if self.groups:
            sums = [f"p{self.partial(i)}_{e}" for e in range(self.n // 2)]
            keep = "drop" if i % self.group_tiles == 0 else "keep"
        return (
            f"wgmma.mma_async.sync.aligned.m64n{self.n}k16.f32.{self.half}.{self.half} "
            f"{{{', '.join(sums)}}}, {{a{i}_0, a{i}_1, a{i}_2, a{i}_3}}, x{k}, {keep}, 1, 1, 0;"
        )

    def _fold(self, b: int) -> list[str]:
        """Return how the sums of a group of rows are scaled and added, if it ends with a batch."""
        if not self.groups or (b + 1) * self.batch % self.group_tiles:
            return []
        j, k = divmod(b * self.batch, self.k_tiles)
        lines = [SCALES[self.half].format(scales=f"c{k // self.group_tiles}_{j}")]
        for e, d in enumerate(self._sums(j)):
            lines.append(
                f"fma.rn.f32 {d}, p{self.partial(b * self.batch)}_{e}, s{e % 4 // 2}, {d};"
            )
        return lines

    def twin(
        self, lanes: Lanes, words: Array, scales: Array, zeros: Array, desc: Array, acc: Array
    ) -> Array:
        out = acc.copy()
        for first in range(0, self.products, self.group_tiles):
            j, k = divmod(first, self.k_tiles)
            part = slice(j * self.n // 2, (j + 1) * self.n // 2)
            total = np.zeros_like(out[:, part]) if self.groups else out[:, part]
            for i in range(first, first + self.group_tiles):
                total = self._twin_product(lanes, i, (words, zeros, desc), total)
            if self.groups:
                place = scales + np.uint32(k // self.group_tiles * SCALE_ROW_BYTES)
                held = lanes.load_shared(place, 16).view(np.uint32)
                factors = widen(held[:, j : j + 1], self.half)
                # elements 2 and 3 of four are of the second column
                factors = np.tile(factors.repeat(2, axis=1), self.n // 8)
                with np.errstate(over="ignore", invalid="ignore"):
                    total = (total.astype(np.float64) * factors + out[:, part]).astype(np.float32)
            out[:, part] = total
        return out

    def _twin_product(
        self, lanes: Lanes, i: int, places: tuple[Array, Array, Array], total: Array
    ) -> Array:
        words, zeros, desc = places
        j, k = divmod(i, self.k_tiles)
        word = lanes.load_shared(words + np.uint32(k * TILE_ROW_BYTES), 16).view(np.uint32)[:, j]
        zero = np.full((len(words), 2), SYMMETRIC_ZERO_POINT)
        if self.zero_points:
            row = k // self.group_tiles % self.zero_points
            held = lanes.load_shared(zeros + np.uint32(row * ZERO_ROW_BYTES), 4).view(np.uint32)
            zero = held >> np.array([4 * j, 4 * j + 16], np.uint32) & 15
        a = operand_a(word, zero, self.half)
        keep = np.ones(len(words), np.uint32)
        multiply = wgmma_rs(self.n, self.half)
        out: Array = multiply.twin(lanes, total, a, desc + np.uint64(self.place(k)), keep)
        return out


@cache
def put_sums(pieces: int, stride_bytes: int) -> Instruction:
    """Make `(address, count, sums)`: hand pieces of four fp32 to the block that takes them.

    No word of theirs is 0, which says "not there yet": 0 becomes -0, which adds the same. A word
    says for itself that it has arrived, so nothing orders them.

    address: U64, of the first piece; they lie stride_bytes apart
    count:   U32, how many of the pieces are handed over
    sums:    F32 x 4*pieces
    """
    lines = [".reg .pred on, zero;", ".reg .b32 a, b, c, d;"]
    for i in range(pieces):
        lines.append(f"setp.gt.u32 on, <count>, {i};")
        for j, word in enumerate("abcd"):
            lines += [
                f"mov.b32 {word}, <sums.{4 * i + j}>;",
                f"setp.eq.u32 zero, {word}, 0;",
                f"selp.b32 {word}, 0x80000000, {word}, zero;",
            ]
        place = f"[<address>+{i * stride_bytes}]"
        lines.append(f"@on st.relaxed.gpu.global.v4.b32 {place}, {{a, b, c, d}};")

    def twin(lanes: Lanes, address: Array, count: Array, sums: Array) -> None:
        words = np.ascontiguousarray(sums).view(np.uint32)
        words = np.where(words == 0, np.uint32(1 << 31), words)
        for i in range(pieces):
            on = np.flatnonzero(count > i)
            if on.size:
                data = np.ascontiguousarray(words[on, 4 * i : 4 * i + 4]).view(np.uint8)
                lanes.store_global(address[on] + np.uint64(i * stride_bytes), data)

    return Instruction(
        f"put_sums_{pieces}x{stride_bytes}", braced(lines),
        {"address": U64, "count": U32, "sums": F32 * (4 * pieces)}, None, twin, effect="memory",
    )  # fmt: skip


@cache
def take_sums(pieces: int, stride_bytes: int, depth: int, slot_bytes: int) -> Instruction:
    """Make `(address, count, slots, sums) -> sums`: plus those of min(slots, depth) slots.

    Waits until `put_sums` has filled the pieces, adds them in the order of the slots, and leaves
    zeros.

    address: U64, of the first slot's first piece; pieces lie stride_bytes apart, slots slot_bytes
    count:   U32, how many of the pieces are taken
    sums:    F32 x 4*pieces; shares its registers with the result
    """
    names = {
        (s, i): [f"v{s}_{i}_{j}" for j in range(4)] for s in range(depth) for i in range(pieces)
    }
    lines = [f".reg .pred empty, {', '.join(f'p{s}_{i}' for s, i in names)};"]
    lines += [".reg .b32 none;", ".reg .f32 f;", "mov.b32 none, 0;"]
    for (s, i), words in names.items():
        lines.append(f".reg .b32 {', '.join(words)};")
        lines += [f"mov.b32 {word}, 1;" for word in words]
        lines.append(f"setp.gt.u32 empty, <count>, {i};")
        lines.append(f"setp.gt.and.u32 p{s}_{i}, <slots>, {s}, empty;")
    place = {(s, i): f"[<address>+{s * slot_bytes + i * stride_bytes}]" for s, i in names}
    lines += [f".reg .pred {', '.join(f'm{s}_{i}' for s, i in names)};"]
    lines += [f"mov.pred m{s}_{i}, p{s}_{i};" for s, i in names]
    # all pieces are read at once, and after a while again those that are not there
    lines += ["bra first;", "again:", f"nanosleep.u32 {PAUSE_NS};", "first:"]
    for (s, i), words in names.items():
        vector = ", ".join(words)
        lines.append(f"@m{s}_{i} ld.relaxed.gpu.global.v4.b32 {{{vector}}}, {place[s, i]};")
    lines.append("setp.ne.u32 empty, none, 0;")
    for (s, i), words in names.items():
        lines.append(f"setp.eq.u32 m{s}_{i}, {words[0]}, 0;")
        lines += [f"setp.eq.or.u32 m{s}_{i}, {word}, 0, m{s}_{i};" for word in words[1:]]
        lines.append(f"or.pred empty, empty, m{s}_{i};")
    lines.append("@empty bra again;")
    for (s, i), words in names.items():
        for j, word in enumerate(words):
            d = f"<d.{4 * i + j}>"
            lines += [f"mov.b32 f, {word};", f"@p{s}_{i} add.f32 {d}, {d}, f;"]
        lines.append(f"@p{s}_{i} st.global.v4.b32 {place[s, i]}, {{none, none, none, none}};")

    def twin(lanes: Lanes, address: Array, count: Array, slots: Array, sums: Array) -> Any:
        if lanes.block.pause(lanes.thread):
            return BLOCKED
        taken = []
        for s, i in names:
            on = np.flatnonzero((slots > s) & (count > i))
            if on.size:
                at = address[on] + np.uint64(s * slot_bytes + i * stride_bytes)
                data = lanes.load_global(at, 16)
                if not data.view(np.uint32).all():
                    return BLOCKED
                taken.append((i, on, at, data))
        out = sums.copy()
        for i, on, at, data in taken:
            out[on, 4 * i : 4 * i + 4] += data.view(np.float32)
            lanes.store_global(at, np.zeros_like(data))
        return out

    return Instruction(
        f"take_sums_{pieces}x{stride_bytes}_{depth}x{slot_bytes}",
        braced(lines),
        {"address": U64, "count": U32, "slots": U32, "sums": F32 * (4 * pieces)},
        F32 * (4 * pieces), twin, effect="memory", tied="sums",
    )  # fmt: skip
