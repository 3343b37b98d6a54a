"""The step of decode_wgmma: a stage's weights times its tokens, one instruction to the kernel."""

from __future__ import annotations

from functools import cache
from typing import Any

from ferrum_numba.kernels.shared.stage_text import PANEL_TILES, StageText
from ferrum_numba.ptx.instruction import F32, U32, U64, Instruction
from ferrum_numba.ptx.text import Half


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

    A warp has all four strips of its tiles, 64 columns, and a warpgroup 256.

    n:           tokens, a multiple of 8
    groups:      of the stage's rows, each with its own scales; 0: the codes minus their zero points
                 are multiplied as they are, and the sums scaled by somebody else
    zero_points: rows of zero points, 0 where every zero point is 8
    k_tiles:     tiles of the stage, 4 or 8; each four have a panel of tokens
    in_flight:   groups of products that run while the weights of the next are dequantised

    Operands of the instruction, addresses in shared memory:
        words:  U32, the lane's 16 bytes of the first tile
        scales: U32, scales of the lane's columns: word j those of strip j
        zeros:  U32, the lane's word of zero points; nibbles j and j + 4 belong to its columns of
                strip j
        desc:   U64, descriptor of the tokens' first 16 of K
        acc:    F32 x 2*n; shares its registers with the result

    q - z is exact in fp16 and bf16, products and sums are fp32, and a group's sum is scaled in fp32
    with one rounding: no weight is rounded.
    """
    stage = StageText(n, half, groups, zero_points, k_tiles, in_flight)
    operands: dict[str, Any] = {
        "words": U32, "scales": U32, "zeros": U32, "desc": U64, "acc": F32 * (2 * n)
    }  # fmt: skip
    return Instruction(
        f"multiply_stage_{n}_{half}_{groups}_{zero_points}_{k_tiles}_{in_flight}",
        stage.template(), operands, F32 * (2 * n), stage.twin,
        effect="memory", scope="warpgroup", tied="acc", arch="sm_90a",
    )  # fmt: skip
