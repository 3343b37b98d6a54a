"""Stages of a GEMM by wgmma on Hopper whose sums, not weights, are multiplied by the scales.

A stage is 64 or 128 rows of the weight: Marlin's 16(K) x 64(N) tiles, one below the other, side by
side for the warps of the block. A lane's 16 bytes of a tile are four words, one a strip of 16
columns, of which a warp has one, two or all; word j of the four warps of a warpgroup together is
the A operand of one `wgmma.m64nNk16`, whose rows are the columns of strip j of each warp. The
tokens are operand B. All of it lies in shared memory. Straight-line Python compiles in cubic time,
so a stage is written out in PTX.

The accumulator is F32 x strips*n/2, element j * n/2 + block * 4 + c, as in
`multiply_step` of decode: column lane / 4 + 8 * (c / 2) of the warp's strip j, token 8 * block +
2 * (lane % 4) + c % 2.
"""

from __future__ import annotations

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
from ferrum_numba.ptx.instruction import Array, Lanes
from ferrum_numba.ptx.text import Half, braced
from ferrum_numba.ptx.wgmma import wgmma_rs
from ferrum_numba.reference.w4a16 import SYMMETRIC_ZERO_POINT

# tiles of 64 rows: a row of tokens is what the swizzle repeats in
PANEL_TILES = 4
# 16 of K are 32 bytes of a swizzled row of tokens, in the units of a descriptor
_K_STEP = 32 >> 4


def row_strides(columns: int) -> tuple[int, int, int]:
    """Return the bytes from a row of a stage's tiles, scales and zero points to the next."""
    return columns * 8, columns * 2, columns // 2


class StageText:
    """The text and the twin of an instruction that multiplies a stage; designs add to it."""

    def __init__(
        self, n: int, half: Half, groups: int, zero_points: int, k_tiles: int, in_flight: int,
        columns: int = 256, strips: int = STRIPS,
    ) -> None:  # fmt: skip
        self.n, self.half, self.groups, self.zero_points = n, half, groups, zero_points
        # rows of a panel of tokens, of which the first n are multiplied
        self.panel_rows = n
        self.k_tiles, self.in_flight, self.strips = k_tiles, in_flight, strips
        self.tile_row, self.scale_row, self.zero_row = row_strides(columns)
        self.group_tiles = k_tiles // max(groups, 1)
        # products of a group of them
        self.batch = min(PANEL_TILES, self.group_tiles)
        self.products = strips * k_tiles
        self.batches = self.products // self.batch

    def chains(self) -> range:
        """Return the numbers of the chains of products that are added up before they are scaled."""
        return range(self.products // self.group_tiles)

    def partial(self, chain: int) -> list[str]:
        """Return the registers of a chain's sums."""
        return [f"p{chain}_{e}" for e in range(self.n // 2)]

    def fragment(self, i: int) -> str:
        """Return the name of the registers of the i-th product's A."""
        return f"a{i}"

    def place(self, k: int) -> int:
        """Return where the tokens of a tile begin, in the units of a descriptor."""
        panel, step = divmod(k, PANEL_TILES)
        return panel * (self.panel_rows * 128 >> 4) + step * _K_STEP

    def template(self) -> str:
        """Return the text of the instruction that multiplies the stage."""
        partials = [name for chain in self.chains() for name in self.partial(chain)]
        # those of an operand are declared
        partials = [name for name in dict.fromkeys(partials) if not name.startswith("<")]
        lines = [
            f".reg .b32 q, one, z0, z1, m0, m1, low, high, {', '.join(self._registers())};",
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
            lines.append(set_symmetric(self.half))
        return braced(lines + self._body())

    def _registers(self) -> list[str]:
        fragments = dict.fromkeys(self.fragment(i) for i in range(self.products))
        return [
            *(f"w{k}_{j}" for k in range(self.k_tiles) for j in range(self.strips)),
            *(f"c{g}_{j}" for g in range(max(self.groups, 1)) for j in range(self.strips)),
            *(f"{a}_{c}" for a in fragments for c in range(4)),
            *(f"zero{g}" for g in range(max(self.zero_points, 1))),
        ]

    def _body(self) -> list[str]:
        lines: list[str] = []
        for b in range(self.batches):
            lines += [*self._operands(b), *self._multiply(b)]
            if b >= self.in_flight:
                lines += self._end_batch(b - self.in_flight, self.in_flight)
        for b in range(max(self.batches - self.in_flight, 0), self.batches):
            lines += self._end_batch(b, self.batches - 1 - b)
        return lines

    def _loads(self) -> list[str]:
        lines = []
        for k in range(self.k_tiles):
            words = ", ".join(f"w{k}_{j}" for j in range(STRIPS))
            lines.append(f"ld.shared.v4.u32 {{{words}}}, [<words>+{k * self.tile_row}];")
        for g in range(self.groups):
            words = ", ".join(f"c{g}_{j}" for j in range(STRIPS))
            lines.append(f"ld.shared.v4.u32 {{{words}}}, [<scales>+{g * self.scale_row}];")
        return lines + self._load_zeros(self.zero_points)

    def _load_zeros(self, rows: int) -> list[str]:
        return [f"ld.shared.u32 zero{g}, [<zeros>+{g * self.zero_row}];" for g in range(rows)]

    def _batch(self, b: int) -> range:
        return range(b * self.batch, (b + 1) * self.batch)

    def _operands(self, b: int) -> list[str]:
        return [line for i in self._batch(b) for line in self._operand(i)]

    def _multiply(self, b: int) -> list[str]:
        lines = ["wgmma.fence.sync.aligned;"]
        lines += [self._product(i) for i in self._batch(b)]
        return [*lines, "wgmma.commit_group.sync.aligned;"]

    def _end_batch(self, b: int, younger: int) -> list[str]:
        """Return the wait for a group of products, after which so many were begun, and its sums."""
        return [f"wgmma.wait_group.sync.aligned {younger};", *self._fold(b)]

    def _operand(self, i: int) -> list[str]:
        """Return how the A operand of the i-th product is made: K runs first, then strips."""
        j, k = divmod(i, self.k_tiles)
        lines = []
        if k % self.group_tiles == 0 and self.zero_points:
            zeros = f"zero{k // self.group_tiles % self.zero_points}"
            lines.append(set_zero_points(self.half, zeros, 4 * j))
        fragment = [f"{self.fragment(i)}_{c}" for c in range(4)]
        return [*lines, codes_less_zeros(self.half, f"w{k}_{j}", fragment)]

    def _sums(self, j: int) -> list[str]:
        return [f"<d.{e}>" for e in range(j * self.n // 2, (j + 1) * self.n // 2)]

    def _product(self, i: int) -> str:
        j, k = divmod(i, self.k_tiles)
        sums, keep = self._sums(j), "keep"
        if self.groups:
            sums = self.partial(i // self.group_tiles)
            keep = "drop" if i % self.group_tiles == 0 else "keep"
        a = self.fragment(i)
        return (
            f"wgmma.mma_async.sync.aligned.m64n{self.n}k16.f32.{self.half}.{self.half} "
            f"{{{', '.join(sums)}}}, {{{a}_0, {a}_1, {a}_2, {a}_3}}, x{k}, {keep}, 1, 1, 0;"
        )

    def _fold(self, b: int) -> list[str]:
        """Return how the sums of a group of rows are scaled and added, if it ends with a batch."""
        if not self.groups or (b + 1) * self.batch % self.group_tiles:
            return []
        return self._scale(b * self.batch // self.group_tiles)

    def _scale(self, chain: int) -> list[str]:
        """Return how the sums of a chain are scaled and added."""
        j, k = divmod(chain * self.group_tiles, self.k_tiles)
        return self._add(f"c{k // self.group_tiles}_{j}", self.partial(chain), j)

    def _add(self, scales: str, sums: list[str], j: int) -> list[str]:
        """Return how sums are scaled and added to those of a strip."""
        lines = [set_factors(self.half, scales)]
        for e, (d, p) in enumerate(zip(self._sums(j), sums, strict=True)):
            lines.append(f"fma.rn.f32 {d}, {p}, s{e % 4 // 2}, {d};")
        return lines

    def twin(
        self, lanes: Lanes, words: Array, scales: Array, zeros: Array, desc: Array, acc: Array
    ) -> Array:
        """Return what it computes: acc plus the weights times the tokens."""
        out, first = acc.copy(), np.zeros(len(words), np.uint32)
        for chain in self.chains():
            part = self._part(chain)
            total = np.zeros_like(out[:, part]) if self.groups else out[:, part]
            for i in range(chain * self.group_tiles, (chain + 1) * self.group_tiles):
                a = self._twin_a(lanes, i, (words, zeros, first))
                total = self._twin_product(lanes, i, a, desc, total)
            lanes.block.watch.commit_products(lanes.thread)
            lanes.block.watch.wait_products(lanes.thread, 0)
            if self.groups:
                total = self._twin_scale(lanes, chain, scales, total, out[:, part])
            out[:, part] = total
        return out

    def _part(self, chain: int) -> slice:
        """Return which accumulators a chain's sums are added to."""
        j = chain * self.group_tiles // self.k_tiles
        return slice(j * self.n // 2, (j + 1) * self.n // 2)

    def _twin_scale(
        self, lanes: Lanes, chain: int, scales: Array, total: Array, acc: Array
    ) -> Array:
        j, k = divmod(chain * self.group_tiles, self.k_tiles)
        place = scales + np.uint32(k // self.group_tiles * self.scale_row)
        held = lanes.load_shared(place, 4 * self.strips).view(np.uint32)
        factors = widen(held[:, j : j + 1], self.half)
        # elements 2 and 3 of four are of the second column
        factors = np.tile(factors.repeat(2, axis=1), self.n // 8)
        with np.errstate(over="ignore", invalid="ignore"):
            return (total.astype(np.float64) * factors + acc).astype(np.float32)

    def _twin_a(self, lanes: Lanes, i: int, places: tuple[Array, Array, Array]) -> Array:
        """Return operand A of the i-th product; places: words, zeros, number of the strip."""
        words, zeros, first = places
        j, k = divmod(i, self.k_tiles)
        place = words + np.uint32(k * self.tile_row)
        word = lanes.load_shared(place, 4 * self.strips).view(np.uint32)[:, j]
        zero = np.full((len(words), 2), SYMMETRIC_ZERO_POINT)
        if self.zero_points:
            row = k // self.group_tiles % self.zero_points
            held = lanes.load_shared(zeros + np.uint32(row * self.zero_row), 4).view(np.uint32)
            shift = 4 * (first[:, None] + np.uint32(j)) + np.array([0, 16], np.uint32)
            zero = held >> shift & 15
        return operand_a(word, zero, self.half)

    def _twin_product(self, lanes: Lanes, i: int, a: Array, desc: Array, total: Array) -> Array:
        keep = np.ones(len(a), np.uint32)
        place = desc + np.uint64(self.place(i % self.k_tiles))
        out: Array = wgmma_rs(self.n, self.half).twin(lanes, total, a, place, keep)
        return out
