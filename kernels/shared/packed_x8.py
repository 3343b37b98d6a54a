"""What kernels of 8-bit activations on the packed layout share: their operands.

    x8   [M, Kp] 8 bits       rows padded with zeros, `interleave`d: see
                              kernels/shared/int4_bytes.py
    sx   [H, Mp] float32      scales of x8, side by side for neighbouring rows; Mp is M, or the next
                              multiple of 4, so that a bulk copy may begin at every H

The weight's operands are those of kernels/shared/packed.py, byte for byte; so are Kp and Np.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.contract import Inputs, Kernel
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.w4a8 import OP, W4A8Problem
from ferrum_numba.layout import Tile

Array = npt.NDArray[Any]

# of scales of x8: 16 bytes
M_MULTIPLE = 4
# of the fp8 codes of a column with a zero point, a byte a code; and of all sixteen zero points
TABLE_BYTES, TABLES_BYTES = 16, 256


def interleave(x8: Array) -> Array:
    """Return rows in the order of the packed tiles' slots: [M, K] of 8 bits, K a multiple of 16.

    Of every sixteen columns: 0, 8, 1, 9, ... 7, 15.
    """
    rows, columns = x8.shape
    halves = x8.reshape(rows, columns // 16, 2, 8)
    return np.ascontiguousarray(halves.swapaxes(2, 3)).reshape(rows, columns)


class PackedX8Kernel(Kernel):
    """What every W4A8 GEMM on this layout does alike."""

    op = OP

    def refuses(self, problem: W4A8Problem) -> str | None:
        """Return why no config can run this problem, with the nearest that can, or None."""
        return layout.refuse_groups(self.name, problem.weight)

    def specialise(self, config: Any, problem: W4A8Problem) -> Any:
        """Return the config for the problem's groups, types and zero points."""
        return replace(
            config,
            group_size=layout.group_size_of(problem.weight),
            dtype=problem.dtype,
            has_zero_points=problem.zero_points != "none",
            x_dtype=problem.x_dtype,
            x_group=problem.x_group,
        )

    def scalars(self, problem: W4A8Problem, **own: int) -> dict[str, int]:
        """Return the sizes that every kernel on this layout takes, and a design's own.

        n and k are those of the packed weight; x8 has k columns and out out_columns.
        """
        K, N = layout.stored_shape(problem.weight)
        return {
            "m": problem.M,
            "n": N,
            "k": K,
            "out_columns": problem.N,
            "has_bias": int(problem.bias),
            **own,
        }

    def tiles(self, config: Any) -> tuple[Tile, ...]:
        """Return who holds what of a tile of the packed weight."""
        return (layout.packed_tile(),)

    def prepare(self, problem: W4A8Problem, inputs: Inputs) -> dict[str, Array]:
        """Return x8 and its scales in their order, and the packed weight."""
        K, _ = layout.stored_shape(problem.weight)
        x8 = np.ascontiguousarray(inputs["x8"]).view(np.uint8)
        return {
            "x8": interleave(np.pad(x8, ((0, 0), (0, K - problem.K)))),
            "sx": np.pad(inputs["sx"].T, ((0, 0), (0, -problem.M % M_MULTIPLE)), constant_values=1),
            **dict.fromkeys(("zero_points", "bias"), np.zeros(4, np.int32)),
            **layout.pack_operands(problem.weight, inputs),
        }
