"""A wgmma accumulator on its way out, rounded and transposed: one call instead of a hundred stores.

Indexing a tuple of 128 in a loop costs a branch an element, and straight-line Python compiles in
cubic time; so the stores of a whole accumulator are written out here, in PTX.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import numpy as np

from ferrum_numba.ptx.convert import PACK
from ferrum_numba.ptx.instruction import F32, U32, Array, F32x2, Instruction, Lanes
from ferrum_numba.ptx.mma import stmatrix_x4_trans
from ferrum_numba.ptx.text import Half


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
