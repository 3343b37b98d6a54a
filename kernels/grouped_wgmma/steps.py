"""The way of a tile of pairs out: scaled, activated where gated, weighted, rounded, transposed."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import numpy as np

from ferrum_numba.kernels.shared.silu import silu_mul
from ferrum_numba.ptx.convert import PACK
from ferrum_numba.ptx.instruction import F32, U32, Array, F32x2, Instruction, Lanes
from ferrum_numba.ptx.mma import stmatrix_x1_trans, stmatrix_x2_trans, stmatrix_x4_trans
from ferrum_numba.ptx.text import Half

_STORES = {2: stmatrix_x2_trans, 4: stmatrix_x4_trans}


@cache
def store_pairs(
    n: int, row_bytes: int, dtype: Half, gated: bool, begin: int = 0, end: int | None = None
) -> Instruction:
    """Make `(address, acc, scale, bias, weights)`: store a strip of pairs to shared memory, as D^T.

    A strip is a warp's 16 rows of D, the columns of out. Row c of the destination is pair
    begin + c: 32 bytes of w[c] * (D * scale + bias), or, gated, 16 bytes of w[c] * silu(gate) * up,
    where gate are the upper 8 rows of D, and up the lower ones.

    Args:
        n:          columns of D, a multiple of 8
        row_bytes:  from one row of the destination to the next
        dtype:      "f16" or "bf16", of what is stored
        gated:      whether gate and up become one
        begin, end: which columns, multiples of 8; all of them by default

    Operands of the instruction:
        address: u32, 16-byte aligned, of the row and the 16 bytes that this lane addresses of the
                 first 16 columns: row lane / 16 * 8 + lane % 8, 16-byte piece lane / 8 % 2; gated,
                 row lane % 16
        acc:     n/2 x f32, laid out as in `wgmma`
        scale:   2 x f32, of the rows of D that the lane holds: lane / 4 and lane / 4 + 8
        bias:    2 x f32, of the same rows
        weights: u32, shared memory: w[2 * (lane % 4)], fp32; those of later pairs follow

    One fma, then a product with w in fp32, then one rounding to dtype.
    """
    lines = [".reg .f32 w0, w1, v0, v1, v2, v3;", ".reg .b32 h0, h1, h2, h3;"]
    end = n if end is None else end
    columns = range(begin, end, 16)
    for first in columns:
        blocks = min(2, (end - first) // 8)
        for block in range(blocks):
            lines += _pairs(first, block, (first - begin + 8 * block) * 4, dtype, gated)
        count = blocks if gated else 2 * blocks
        words = ", ".join(f"h{i}" for i in range(count))
        lines.append(
            f"stmatrix.sync.aligned.m8n8.x{count}.trans.shared.b16 "
            f"[<address>+{(first - begin) * row_bytes}], {{{words}}};"
        )

    def twin(
        lanes: Lanes, address: Array, acc: Array, scale: Array, bias: Array, weights: Array
    ) -> None:
        row = np.arange(n // 2) // 2 % 2
        exact = acc.astype(np.float64) * scale[:, row].astype(np.float64) + bias[:, row]
        sums = exact.astype(np.float32)
        for first in columns:
            place = address + np.uint32((first - begin) * row_bytes)
            words = _twin_pairs(lanes, sums, first, weights + np.uint32((first - begin) * 4))
            packed = PACK[dtype].twin(words[..., 0], words[..., 1])
            if packed.shape[1] == 1:
                stmatrix_x1_trans.twin(lanes, place, packed[:, 0])
            else:
                _STORES[packed.shape[1]].twin(lanes, place, packed)

    def _twin_pairs(lanes: Lanes, sums: Array, first: int, weights: Array) -> Array:
        """Return [lanes, registers, 2] of 16 pairs, or of the last 8."""
        # [lanes, block of 8 pairs, upper or lower row, pair]
        held = sums[:, first // 2 : min(first + 16, end) // 2].reshape(len(sums), -1, 2, 2)
        if gated:
            held = silu_mul.twin(held[:, :, 0], held[:, :, 1])[:, :, None]
        blocks = [lanes.load_shared(weights + np.uint32(32 * i), 8) for i in range(held.shape[1])]
        factors = np.stack([b.view(np.float32) for b in blocks], axis=1)
        return (held * factors[:, :, None]).reshape(len(sums), -1, 2)

    return Instruction(
        f"store_pairs_n{n}_{row_bytes}_{dtype}_{gated}_{begin}_{end}",
        "{\n" + "\n".join(lines) + "\n}",
        {
            "address": U32, "acc": cast(Any, F32) * (n // 2), "scale": F32x2, "bias": F32x2,
            "weights": U32,
        },
        None, twin, effect="memory", scope="warp", arch="sm_90",
    )  # fmt: skip


def _pairs(first: int, block: int, offset: int, dtype: Half, gated: bool) -> list[str]:
    """Return how 8 pairs become halves: two registers, or one where gated."""
    lines = [f"ld.shared.v2.f32 {{w0, w1}}, [<weights>+{offset}];"]
    at = first // 2 + 4 * block
    lines += [
        f"fma.rn.f32 v{i}, <acc.{at + i}>, <scale.{i // 2}>, <bias.{i // 2}>;" for i in range(4)
    ]
    if gated:
        lines += [_gate(f"v{i}", f"v{i + 2}") for i in range(2)]
    for row in range(1 if gated else 2):
        lines += [f"mul.f32 v{2 * row + i}, v{2 * row + i}, w{i};" for i in range(2)]
        h = block if gated else 2 * block + row
        lines.append(f"cvt.rn.{dtype}x2.f32 h{h}, v{2 * row + 1}, v{2 * row};")
    return lines


def _gate(gate: str, up: str) -> str:
    """Return how a register of gate becomes silu(gate) * up."""
    text: str = silu_mul.template
    return text.replace("<gate>", gate).replace("<up>", up).replace("<d>", gate)
