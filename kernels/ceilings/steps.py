"""A wgmma accumulator on its way out, written out in PTX; see kernels/prefill/steps.py."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import numpy as np

from ferrum_numba.ptx.instruction import F32, S32, U64, Array, Instruction, Lanes


@cache
def store_accumulator(n: int, row_bytes: int, integers: bool = False) -> Instruction:
    """Make `(address, acc)`: store a wgmma accumulator D [64, n] as rows in global memory.

    Args:
        n:         columns of D
        row_bytes: from one row of the destination to the next
        integers:  whether D is int32, not fp32

    Operands of the instruction:
        address: u64, of D[row, 2 * (lane % 4)] with row = 16 * warp + lane % 32 / 4; 8-byte aligned
        acc:     n/2 x f32 or s32, laid out as in `wgmma`
    """
    kind = cast(Any, S32 if integers else F32)
    pairs = range(n // 4)
    # accumulators 2i and 2i + 1 are neighbours: column block i / 2, row 8 * (i % 2) further
    offsets = [32 * (i // 2) + 8 * row_bytes * (i % 2) for i in pairs]
    lines = [
        f"st.global.v2.{kind.name} [<address>+{offsets[i]}], {{<acc.{2 * i}>, <acc.{2 * i + 1}>}};"
        for i in pairs
    ]

    def twin(lanes: Lanes, address: Array, acc: Array) -> None:
        for i in pairs:
            data = np.ascontiguousarray(acc[:, 2 * i : 2 * i + 2]).view(np.uint8)
            lanes.store_global(address + np.uint64(offsets[i]), data)

    operands = {"address": cast(Any, U64), "acc": kind * (n // 2)}
    return Instruction(
        f"store_accumulator_n{n}_{row_bytes}_{kind.name}", "\n".join(lines), operands, None, twin,
        effect="memory",
    )  # fmt: skip
