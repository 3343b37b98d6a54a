"""Instructions of prefill: stages whose last products run on, and the way of a tile out.

Indexing a tuple of 128 in a loop costs a branch an element, and straight-line Python compiles in
cubic time; so what is done to a whole accumulator is written out here, in PTX.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cache
from typing import Any, cast

import numpy as np

from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.shared.int4 import set_symmetric
from ferrum_numba.kernels.shared.stage_text import StageText
from ferrum_numba.ptx.convert import PACK
from ferrum_numba.ptx.instruction import BLOCKED, F32, U32, U64, Array, F32x2, Instruction, Lanes
from ferrum_numba.ptx.mma import stmatrix_x4_trans
from ferrum_numba.ptx.text import Half, braced


@cache
def store_accumulator_transposed(
    n: int, row_bytes: int, dtype: Half = "f16", begin: int = 0, end: int | None = None
) -> Instruction:
    """Make `(address, acc, scale, bias)`: store round(D * scale + bias) to shared memory, as D^T.

    Row c of the destination is column begin + c of D: a warp's 16 rows of D are 32 bytes of it.

    Args:
        n:          columns of D, a multiple of 16
        row_bytes:  from one row of the destination to the next
        dtype:      "f16" or "bf16", of what is stored
        begin, end: which columns, multiples of 16; all of them by default

    Operands of the instruction:
        address: u32, 16-byte aligned, of the row and the 16 bytes that this lane addresses of the
                 first 16 columns: row lane / 16 * 8 + lane % 8, 16-byte piece lane / 8 % 2
        acc:     n/2 x f32, laid out as in `wgmma`
        scale:   2 x f32, of the rows of D that the lane holds: lane / 4 and lane / 4 + 8
        bias:    2 x f32, of the same rows; one fma, then one rounding to dtype
    """
    lines = [".reg .f32 p, q;", ".reg .b32 h0, h1, h2, h3;"]
    columns = range(begin, n if end is None else end, 16)
    for first in columns:
        for i in range(4):
            # matrices in the order of the addresses: rows 0 to 7 and 8 to 15 of D, next 8 columns
            at = first // 2 + 2 * i
            lines += [
                f"fma.rn.f32 {r}, <acc.{at + j}>, <scale.{i % 2}>, <bias.{i % 2}>;"
                for j, r in enumerate("pq")
            ]
            lines.append(f"cvt.rn.{dtype}x2.f32 h{i}, q, p;")
        lines.append(
            "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 "
            f"[<address>+{(first - begin) * row_bytes}], {{h0, h1, h2, h3}};"
        )

    def twin(lanes: Lanes, address: Array, acc: Array, scale: Array, bias: Array) -> None:
        row = np.arange(n // 2) // 2 % 2
        exact = acc.astype(np.float64) * scale[:, row].astype(np.float64) + bias[:, row]
        # the fp32 fma rounds once, then the conversion rounds to dtype
        sums = exact.astype(np.float32)
        words = PACK[dtype].twin(sums[:, 0::2], sums[:, 1::2])
        for first in columns:
            place = address + np.uint32((first - begin) * row_bytes)
            stmatrix_x4_trans.twin(lanes, place, words[:, first // 4 : first // 4 + 4])

    return Instruction(
        f"store_accumulator_transposed_n{n}_{row_bytes}_{dtype}_{begin}_{end}",
        "{\n" + "\n".join(lines) + "\n}",
        {"address": U32, "acc": cast(Any, F32) * (n // 2), "scale": F32x2, "bias": F32x2},
        None, twin, effect="memory", scope="warp", arch="sm_90",
    )  # fmt: skip


@dataclass(frozen=True)
class StageAhead:
    """Instructions for stages whose last products run on while the next stage is begun.

    The products of one group of rows and one strip are a chain. While a chain runs, the sums of
    the one before are scaled and the weights of the next dequantised, across stages too: at the end
    of a stage its last chain is still running. `first` dequantises a stage's first chain;
    `multiply` scales and adds the last sums of the stage before and begins all chains; `last` ends
    those of the last stage. Two chains have two sets of registers in turn, so strips * groups
    must be even.

    n:           tokens, a multiple of 8
    half:        f16 or bf16
    groups:      of the stage's rows, each with its own scales
    zero_points: rows of zero points, 0 where every zero point is 8
    k_tiles:     tiles of the stage, 4 or 8; each four have a panel of tokens
    columns:     of the stage, which says how far apart its rows lie: see `row_strides`
    strips:    of a warp, side by side in one tile: 1, 2 or 4
    panel_rows: rows of a panel of tokens, of which the first n are multiplied; n by default

    Operands of the instructions, addresses in shared memory:
        words:   U32, the lane's words of its strips in the first tile
        scales:  U32, scales of the lane's columns: word j those of its strip j
        zeros:   U32, the lane's word of zero points; nibbles i and i + 4 belong to its columns of
                 the tile's strip i
        strip: U32, the number in the tile of the lane's first strip
        before:  U32, what `scales` was for the stage before, or for the first stage is for this one
        desc:    U64, descriptor of the tokens' first 16 of K
        bar:     U32, the mbarrier that says that the stage is there, and parity: U32, of the phase
                 that has ended
        a:       U32 x 4*chain, what `first` returned
        acc:     F32 x (strips+1)*n/2, the last n/2 of them sums that are still to be scaled: 0
                 before the first stage; shares its registers with the result

    q - z is exact in fp16 and bf16, products and sums are fp32, and a group's sum is scaled in fp32
    with one rounding: no weight is rounded.
    """

    n: int
    half: Half
    groups: int
    zero_points: int
    k_tiles: int
    columns: int
    strips: int
    panel_rows: int = 0

    def __post_init__(self) -> None:
        if self.strips * self.groups % 2 or not self.groups:
            raise ConfigError(
                "a stage needs groups, and an even number of chains; got "
                f"groups = {self.groups}, strips = {self.strips}"
            )

    @property
    def _sums(self) -> Any:
        return F32 * ((self.strips + 1) * self.n // 2)

    @property
    def _chain(self) -> Any:
        return U32 * (4 * self.k_tiles // self.groups)

    @property
    def _form(self) -> str:
        return "_".join(str(field) for field in astuple(self))

    @property
    def first(self) -> Instruction:
        """`(words, zeros, strip) -> a`."""
        text = _Ahead(self)
        operands: dict[str, Any] = {"words": U32, "zeros": U32, "strip": U32}
        return Instruction(
            f"StageAhead_first_{self._form}", text.first(), operands, self._chain,
            text.twin_first, effect="memory",
        )  # fmt: skip

    @property
    def multiply(self) -> Instruction:
        """`(words, scales, zeros, strip, before, desc, bar, parity, a, acc) -> acc`."""
        text = _Ahead(self)
        operands: dict[str, Any] = {
            "words": U32, "scales": U32, "zeros": U32, "strip": U32, "before": U32, "desc": U64,
            "bar": U32, "parity": U32, "a": self._chain, "acc": self._sums,
        }  # fmt: skip
        return Instruction(
            f"StageAhead_multiply_{self._form}", text.template(), operands, self._sums,
            text.twin_multiply, effect="memory", scope="warpgroup", tied="acc", arch="sm_90a",
        )  # fmt: skip

    @property
    def last(self) -> Instruction:
        """`(before, acc) -> acc`, whose last n/2 are 0."""
        text = _Ahead(self)
        return Instruction(
            f"StageAhead_last_{self._form}", text.last(), {"before": U32, "acc": self._sums},
            self._sums, text.twin_last,
            effect="memory", scope="warpgroup", tied="acc", arch="sm_90a",
        )  # fmt: skip


class _Ahead(StageText):
    """The text and the twins of `StageAhead`: a chain a batch."""

    def __init__(self, form: StageAhead) -> None:
        super().__init__(
            form.n, form.half, form.groups, form.zero_points, form.k_tiles, 1,
            form.columns, form.strips,
        )  # fmt: skip
        self.panel_rows = form.panel_rows or form.n
        self.batch = self.group_tiles
        self.batches = self.products // self.batch
        # the sums of the last chain, which the next stage scales, lie behind the others
        size = (form.strips + 1) * form.n // 2
        self.held = range(size - form.n // 2, size)

    def partial(self, chain: int) -> list[str]:
        # the last chain, which is odd, leaves its sums in the accumulator
        if chain % 2:
            return [f"<d.{e}>" for e in self.held]
        return [f"p_{e}" for e in range(self.n // 2)]

    def fragment(self, i: int) -> str:
        chain, place = divmod(i, self.batch)
        return f"a{chain % 2}_{place}"

    def first(self) -> str:
        lines = [f".reg .b32 q, one, z0, z1, m0, m1, {', '.join(self._registers())};"]
        lines += [*self._load_words(0), *self._load_zeros(min(self.zero_points, 1))]
        if not self.zero_points:
            lines.append(set_symmetric(self.half))
        lines += self._operands(0)
        for i in self._batch(0):
            lines += [f"mov.b32 <d.{4 * i + c}>, {self.fragment(i)}_{c};" for c in range(4)]
        return braced(lines)

    def last(self) -> str:
        lines = [".reg .b32 q, c;", ".reg .f32 s0, s1;", ".reg .b16 h0, h1;"]
        lines += ["wgmma.wait_group.sync.aligned 0;", *self._scale_before()]
        return braced([*lines, *(f"mov.f32 <d.{e}>, 0f00000000;" for e in self.held)])

    def _body(self) -> list[str]:
        lines = [
            ".reg .b32 c;",
            # the phase has ended: a loop, across which ptxas does not move the weights of the first
            # chain, which it would dequantise after the wait for the last products
            ".reg .pred ended;",
            "again:",
            "mbarrier.try_wait.parity.shared::cta.b64 ended, [<bar>], <parity>;",
            "@!ended bra again;",
        ]
        for i in self._batch(0):
            lines += [f"mov.b32 {self.fragment(i)}_{c}, <a.{4 * i + c}>;" for c in range(4)]
        for chain in self.chains():
            lines += ["wgmma.wait_group.sync.aligned 0;", *self._multiply(chain)]
            if chain + 1 < self.batches:
                lines += self._load_words(chain + 1)
            lines += self._scale(chain - 1) if chain else self._scale_before()
            if chain + 1 < self.batches:
                lines += self._operands(chain + 1)
        return lines

    def _loads(self) -> list[str]:
        return self._load_zeros(self.zero_points)

    def _load_zeros(self, rows: int) -> list[str]:
        lines = super()._load_zeros(rows)
        if rows:
            # so that the nibbles of strip j are where they are in a word of all four
            lines.append("shl.b32 q, <strip>, 2;")
            lines += [f"shr.u32 zero{g}, zero{g}, q;" for g in range(rows)]
        return lines

    def _load_words(self, chain: int) -> list[str]:
        places = (divmod(i, self.k_tiles) for i in self._batch(chain))
        return [
            f"ld.shared.u32 w{k}_{j}, [<words>+{k * self.tile_row + 4 * j}];" for j, k in places
        ]

    def _scale(self, chain: int, scales: str = "scales") -> list[str]:
        j, k = divmod(chain * self.batch, self.k_tiles)
        load = f"ld.shared.u32 c, [<{scales}>+{k // self.batch * self.scale_row + 4 * j}];"
        return [load, *self._add("c", self.partial(chain), j)]

    def _scale_before(self) -> list[str]:
        """Return how the sums of the last chain of the stage before are scaled and added."""
        return self._scale(self.batches - 1, "before")

    def twin_first(self, lanes: Lanes, words: Array, zeros: Array, strip: Array) -> Array:
        places = (words, zeros, strip)
        return np.concatenate([self._twin_a(lanes, i, places) for i in self._batch(0)], axis=1)

    def twin_multiply(
        self,
        lanes: Lanes,
        words: Array,
        scales: Array,
        zeros: Array,
        strip: Array,
        before: Array,
        desc: Array,
        bar: Array,
        parity: Array,
        a: Array,
        acc: Array,
    ) -> Any:
        # another parity is one of a phase that may never end
        turns = set(zip(bar.tolist(), parity.tolist(), strict=True))
        if not all(lanes.block.phase_ended(*turn) for turn in turns):
            return BLOCKED
        out = self.twin_last(lanes, before, acc)
        watch = lanes.block.watch
        for chain in self.chains():
            watch.wait_products(lanes.thread, 0)
            total = np.zeros((len(words), self.n // 2), np.float32)
            for i in self._batch(chain):
                if chain:
                    held = self._twin_a(lanes, i, (words, zeros, strip))
                else:
                    held = a[:, 4 * i : 4 * i + 4]
                total = self._twin_product(lanes, i, held, desc, total)
            watch.commit_products(lanes.thread)
            if chain + 1 < self.batches:
                part = self._part(chain)
                out[:, part] = self._twin_scale(lanes, chain, scales, total, out[:, part])
            else:
                out[:, self.held] = total
        return out

    def twin_last(self, lanes: Lanes, before: Array, acc: Array) -> Array:
        lanes.block.watch.wait_products(lanes.thread, 0)
        out, chain = acc.copy(), self.batches - 1
        part = self._part(chain)
        out[:, part] = self._twin_scale(lanes, chain, before, out[:, self.held], out[:, part])
        out[:, self.held] = 0
        return out
