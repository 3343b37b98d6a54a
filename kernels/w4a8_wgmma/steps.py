"""Instructions of w4a8_wgmma: a stage of products, and the scales of tokens.

A stage is 128 rows of the weight, Marlin's 16(K) x 64(N) tiles, and 128 bytes of every row of x8.
The words of two tiles, one below the other, are operand A of `wgmma.m64nNk32`
(`kernels/shared/int4_bytes.py`), whose rows are the columns of a strip of each warp. Straight-line
Python compiles in cubic time, so a stage is written out in PTX.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

import numpy as np

from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.shared import int4_bytes
from ferrum_numba.kernels.shared.int4 import set_factors
from ferrum_numba.kernels.shared.packed_x8 import TABLE_BYTES
from ferrum_numba.ptx.arithmetic import widen
from ferrum_numba.ptx.instruction import BLOCKED, F32, U32, U64, Array, Instruction, Lanes
from ferrum_numba.ptx.mma8 import SUM, wgmma8_rs
from ferrum_numba.ptx.text import Half, braced
from ferrum_numba.reference.w4a16 import SYMMETRIC_ZERO_POINT

# rows of a stage, tiles of 16 in it, and of a product
STAGE_K, K_TILES, PRODUCT_TILES = 128, 8, 2
# 32 of k are 32 bytes of a swizzled row of x8, in the units of a descriptor
_K_STEP = 32 >> 4


@dataclass(frozen=True)
class Stage8:
    """The instruction that multiplies a stage, and scales its sums in fp32.

    The products of a group of rows and one strip are a chain, summed by the tensor cores; then its
    sums are scaled and added to those of the strip. While a chain runs, the weights of the next are
    dequantised; with two sets of sums the last one's are scaled meanwhile, too.

    n:           tokens, a multiple of 8 (int8: of 16)
    x_dtype:     "fp8" or "int8"
    half:        f16 or bf16, of the scales
    groups:      of the stage's rows, each with its own scales: 1, 2 or 4; 0 where a column has one,
                 which is not multiplied here
    zero_points: whether the weight has any
    columns:     of the stage, which says how far apart its rows lie
    strips:      of a warp, side by side in one tile: 1 or 2
    sets:        of sums of chains: 1 or 2
    tokens:      whether x8 has scales for every stage, which sums are multiplied by first
    ahead:       products whose A is made while the chain before runs, as registers allow

    Operands of `multiply`, addresses in shared memory:
        words:  U32, the lane's words of its strips in the first tile
        scales: U32, scales of the lane's columns: word j those of its strip j
        zeros:  U32, address of the lane's word of zero points; nibbles i and i + 4 belong to its
                columns of the tile's strip i; without groups the word itself
        tables: U32, of bytes of all zero points; fp8 alone reads them
        strip:  U32, the number in the tile of the lane's first strip
        tokens: U32, of the scale of the lane's first token
        desc:   U64, descriptor of the first 32 of k of x8
        bar:    U32, the mbarrier that says that the stage is there, and parity: U32, of its phase,
                which has ended
        acc:    F32 x strips*n/2, element j * n/2 + block * 4 + c: column lane / 4 + 8 * (c / 2) of
                the warp's strip j, token 8 * block + 2 * (lane % 4) + c % 2; shares its registers
                with the result
    """

    n: int
    x_dtype: str
    half: Half
    groups: int
    zero_points: bool
    columns: int
    strips: int
    sets: int = 1
    tokens: bool = False
    ahead: int = 4

    def __post_init__(self) -> None:
        if self.groups not in (0, 1, 2, 4) or self.strips not in (1, 2) or self.sets not in (1, 2):
            raise ConfigError(
                "a stage has 0, 1, 2 or 4 groups, 1 or 2 strips, 1 or 2 sets of sums; got "
                f"groups = {self.groups}, strips = {self.strips}, sets = {self.sets}"
            )

    @property
    def multiply(self) -> Instruction:
        """`(words, scales, zeros, tables, strip, tokens, desc, bar, parity, acc) -> acc`."""
        text = _Text(self)
        sums: Any = F32 * (self.strips * self.n // 2)
        operands: dict[str, Any] = {
            "words": U32, "scales": U32, "zeros": U32, "tables": U32, "strip": U32, "tokens": U32,
            "desc": U64, "bar": U32, "parity": U32, "acc": sums,
        }  # fmt: skip
        return Instruction(
            "Stage8_" + "_".join(str(field) for field in astuple(self)), text.template(), operands,
            sums, text.twin, effect="memory", scope="warpgroup", tied="acc", arch="sm_90a",
        )  # fmt: skip


class _Text:
    """The text and the twin of `Stage8`."""

    def __init__(self, form: Stage8) -> None:
        self.form = form
        self.group_tiles = K_TILES // max(form.groups, 1)
        # products of a chain, each with four registers of A
        self.products = self.group_tiles // PRODUCT_TILES
        self.ahead = min(form.ahead, self.products)
        self.chains = form.strips * max(form.groups, 1)
        self.element = "e4m3" if form.x_dtype == "fp8" else "s8"
        self.tile_row, self.scale_row = form.columns * 8, form.columns * 2
        self.zero_row = form.columns // 2
        self.factor = 1 / int4_bytes.factor(form.x_dtype, form.zero_points)
        self.needs_factor = self.factor != 1

    def place(self, chain: int) -> tuple[int, int, int]:
        """Return the strip of a chain, its group, and its first tile: strips run first."""
        group, strip = divmod(chain, self.form.strips)
        return strip, group, group * self.group_tiles

    # -- the text

    def template(self) -> str:
        form, sum_type = self.form, "f32" if self.form.x_dtype == "fp8" else "b32"
        partials = [name for s in range(form.sets) for name in self._partial(s)]
        made = {self._fragment(c, i) for c in range(self.chains) for i in range(self.products)}
        fragments = [f"{a}_{c}" for a in sorted(made) for c in range(4)]
        words = [f"w{k}" for k in range(self.group_tiles)]
        lines = [
            f".reg .b32 c, q, zero, {', '.join((*int4_bytes.REGISTERS, *fragments, *words))};",
            f".reg .{sum_type} {', '.join(partials)};",
            ".reg .f32 s0, s1, x0, x1, sum;",
            ".reg .b16 h0, h1;",
            ".reg .b32 low, high;",
            f".reg .b64 {', '.join(f'x8_{i}' for i in range(K_TILES // PRODUCT_TILES))};",
            ".reg .pred keep, drop, ended;",
            "setp.ne.b32 drop, 0, 0;",
            "setp.eq.b32 keep, 0, 0;",
            "mov.b64 {low, high}, <desc>;",
            "mov.b64 x8_0, <desc>;",
        ]
        for i in range(1, K_TILES // PRODUCT_TILES):
            lines += [f"add.u32 low, low, {_K_STEP};", f"mov.b64 x8_{i}, {{low, high}};"]
        if form.zero_points:
            lines += int4_bytes.zero_registers(form.x_dtype)
        else:
            lines += int4_bytes.set_symmetric(form.x_dtype)
        return braced([*lines, *self._body()])

    def _body(self) -> list[str]:
        ahead = self.ahead
        lines = [*self._load_words(0), *self._operands(0, 0, self.products)]
        for chain in range(self.chains):
            lines += self._multiply(chain)
            if chain + 1 < self.chains:
                # else ptxas would dequantise before the products begin, or after they have ended
                lines += self._hold(f"begun{chain}")
                lines += [*self._load_words(chain + 1), *self._operands(chain + 1, 0, ahead)]
                lines += self._hold(f"made{chain}")
            if self.form.sets == 2 and chain:
                lines += self._scale(chain - 1)
            lines.append("wgmma.wait_group.sync.aligned 0;")
            if chain + 1 < self.chains:
                lines += self._operands(chain + 1, ahead, self.products)
            if self.form.sets == 1:
                lines += self._scale(chain)
        return lines + (self._scale(self.chains - 1) if self.form.sets == 2 else [])

    def _hold(self, label: str) -> list[str]:
        """Return a loop, across which ptxas moves no instructions: the phase has ended."""
        return [
            f"{label}:",
            "mbarrier.try_wait.parity.shared::cta.b64 ended, [<bar>], <parity>;",
            f"@!ended bra {label};",
        ]

    def _partial(self, chain: int) -> list[str]:
        return [f"p{chain % self.form.sets}_{e}" for e in range(self.form.n // 2)]

    def _fragment(self, chain: int, i: int) -> str:
        return f"a{(chain * self.products + i) % (self.products + self.ahead)}"

    def _load_words(self, chain: int) -> list[str]:
        strip, _, first = self.place(chain)
        return [
            f"ld.shared.u32 w{k}, [<words>+{(first + k) * self.tile_row + 4 * strip}];"
            for k in range(self.group_tiles)
        ]

    def _operands(self, chain: int, begin: int, end: int) -> list[str]:
        """Return how A of some products of a chain is made."""
        strip, group, _ = self.place(chain)
        form, lines = self.form, []
        make = int4_bytes.convert
        if form.zero_points:
            make = int4_bytes.convert_with_zeros
        if form.zero_points and begin == 0:
            if form.groups:
                lines.append(f"ld.shared.u32 zero, [<zeros>+{group * self.zero_row}];")
            else:
                lines.append("mov.b32 zero, <zeros>;")
            lines += ["shl.b32 q, <strip>, 2;", "shr.u32 zero, zero, q;"]
            lines += int4_bytes.set_zero_points(form.x_dtype, "zero", 4 * strip, "<tables>")
        for i in range(begin, end):
            for half in range(PRODUCT_TILES):
                a = self._fragment(chain, i)
                pair = (f"{a}_{2 * half}", f"{a}_{2 * half + 1}")
                lines += make(form.x_dtype, f"w{PRODUCT_TILES * i + half}", pair)
        return lines

    def _multiply(self, chain: int) -> list[str]:
        """Return the products of a chain."""
        _, _, first = self.place(chain)
        kind, flags = ("s32.s8.s8", "") if self.element == "s8" else ("f32.e4m3.e4m3", ", 1, 1")
        lines = ["wgmma.fence.sync.aligned;"]
        for i in range(self.products):
            a = ", ".join(f"{self._fragment(chain, i)}_{c}" for c in range(4))
            sums = ", ".join(self._partial(chain))
            lines.append(
                f"wgmma.mma_async.sync.aligned.m64n{self.form.n}k32.{kind} {{{sums}}}, {{{a}}}, "
                f"x8_{first // PRODUCT_TILES + i}, {'keep' if i else 'drop'}{flags};"
            )
        return [*lines, "wgmma.commit_group.sync.aligned;"]

    def _scale(self, chain: int) -> list[str]:
        """Return how the sums of a chain are scaled and added to those of its strip."""
        strip, group, _ = self.place(chain)
        form, n = self.form, self.form.n
        if form.groups:
            lines = [
                f"ld.shared.u32 c, [<scales>+{group * self.scale_row + 4 * strip}];",
                set_factors(form.half, "c"),
            ]
            if self.needs_factor:
                lines += [f"mul.f32 {s}, {s}, {_float(self.factor)};" for s in ("s0", "s1")]
        else:
            lines = [f"mov.f32 {s}, {_float(self.factor)};" for s in ("s0", "s1")]
        partial = self._partial(chain)
        for block in range(n // 8):
            if form.tokens:
                lines.append(f"ld.shared.v2.f32 {{x0, x1}}, [<tokens>+{32 * block}];")
            for c in range(4):
                e = 4 * block + c
                d, p = f"<d.{strip * n // 2 + e}>", partial[e]
                if form.x_dtype == "int8":
                    lines.append(f"cvt.rn.f32.s32 sum, {p};")
                    p = "sum"
                if form.tokens:
                    lines.append(f"mul.rn.f32 sum, {p}, x{c % 2};")
                    p = "sum"
                lines.append(f"fma.rn.f32 {d}, {p}, s{c // 2}, {d};")
        return lines

    # -- the twin

    def twin(
        self, lanes: Lanes, words: Array, scales: Array, zeros: Array, tables: Array, strip: Array,
        tokens: Array, desc: Array, bar: Array, parity: Array, acc: Array,
    ) -> Any:  # fmt: skip
        """Return acc plus the weights times the tokens."""
        # another parity is one of a phase that may never end
        turns = set(zip(bar.tolist(), parity.tolist(), strict=True))
        if not all(lanes.block.phase_ended(*turn) for turn in turns):
            return BLOCKED
        out, n, watch = acc.copy(), self.form.n, lanes.block.watch
        if self.form.zero_points and self.form.x_dtype == "fp8":
            self._check_tables(lanes, tables)
        for chain in range(self.chains):
            at, _, first = self.place(chain)
            total: Array = np.zeros((len(words), n // 2), SUM[self.element].dtype)
            for i in range(self.products):
                tile = first + PRODUCT_TILES * i
                a = self._twin_a(lanes, chain, tile, words, zeros, strip)
                place = desc + np.uint64(tile // PRODUCT_TILES * _K_STEP)
                keep = np.full(len(a), i > 0, np.uint32)
                product = wgmma8_rs(n, self.element)
                total = product.twin(lanes, total, a, place, keep)
            watch.commit_products(lanes.thread)
            watch.wait_products(lanes.thread, 0)
            part = slice(at * n // 2, (at + 1) * n // 2)
            out[:, part] = self._twin_scale(lanes, chain, scales, tokens, total, out[:, part])
        return out

    def _twin_a(
        self, lanes: Lanes, chain: int, tile: int, words: Array, zeros: Array, strip: Array
    ) -> Array:
        at, group, _ = self.place(chain)
        zero = np.full((len(words), 2), SYMMETRIC_ZERO_POINT)
        if self.form.zero_points:
            held = zeros[:, None]
            if self.form.groups:
                place = zeros + np.uint32(group * self.zero_row)
                held = lanes.load_shared(place, 4).view(np.uint32)
            shift = 4 * (strip[:, None] + np.uint32(at)) + np.array([0, 16], np.uint32)
            zero = held >> shift & 15
        parts = []
        for half in range(PRODUCT_TILES):
            place = words + np.uint32((tile + half) * self.tile_row + 4 * at)
            word = lanes.load_shared(place, 4).view(np.uint32)[:, 0]
            parts.append(
                int4_bytes.operand_bytes(word, zero, self.form.x_dtype, self.form.zero_points)
            )
        return np.concatenate(parts, axis=1)

    def _twin_scale(
        self, lanes: Lanes, chain: int, scales: Array, tokens: Array, total: Array, acc: Array
    ) -> Array:
        strip, group, _ = self.place(chain)
        form = self.form
        factors = np.full((len(scales), 2), np.float32(self.factor))
        if form.groups:
            place = scales + np.uint32(group * self.scale_row + 4 * strip)
            held = lanes.load_shared(place, 4).view(np.uint32)
            factors = (widen(held, form.half) * np.float32(self.factor)).astype(np.float32)
        # elements 2 and 3 of four are of the second column
        factors = np.tile(factors.repeat(2, axis=1), form.n // 8).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            sums = total.astype(np.float32)
            if form.tokens:
                for block in range(form.n // 8):
                    held = lanes.load_shared(tokens + np.uint32(32 * block), 8).view(np.float32)
                    sums[:, 4 * block : 4 * block + 4] *= np.tile(held, 2)
            return (sums.astype(np.float64) * factors + acc).astype(np.float32)

    def _check_tables(self, lanes: Lanes, tables: Array) -> None:
        """Read what the text looks up, so that it is watched; what it holds is `operand_bytes`."""
        want = int4_bytes.sixteen(np.arange(16))
        for zero in range(16):
            held = lanes.load_shared(tables + np.uint32(zero * TABLE_BYTES), 16)
            assert (held == want[zero]).all(), "the tables of zero points are not written"


@cache
def scale_tokens(n: int, strips: int) -> Instruction:
    """Make `(address, acc) -> acc`: the sums of tokens times their scales.

    Operands of the instruction:
        address: U32 in shared memory, of the fp32 scale of the lane's first token, 2 * (lane % 4)
        acc:     F32 x strips*n/2, as in `Stage8`; shares its registers with the result
    """
    lines = [".reg .f32 x0, x1;"]
    for block in range(n // 8):
        lines.append(f"ld.shared.v2.f32 {{x0, x1}}, [<address>+{32 * block}];")
        for strip in range(strips):
            for c in range(4):
                d = f"<d.{strip * n // 2 + 4 * block + c}>"
                lines.append(f"mul.rn.f32 {d}, {d}, x{c % 2};")
    sums: Any = F32 * (strips * n // 2)

    def twin(lanes: Lanes, address: Array, acc: Array) -> Array:
        out = acc.copy().reshape(len(acc), strips, n // 2)
        for block in range(n // 8):
            held = lanes.load_shared(address + np.uint32(32 * block), 8).view(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                out[:, :, 4 * block : 4 * block + 4] *= np.tile(held, 2)[:, None]
        return out.reshape(acc.shape)

    return Instruction(
        f"scale_tokens_n{n}_{strips}", braced(lines), {"address": U32, "acc": sums}, sums, twin,
        effect="memory", tied="acc",
    )  # fmt: skip


def _float(value: float) -> str:
    """Return a literal of an fp32."""
    return f"0f{np.float32(value).view(np.uint32):08x}"
