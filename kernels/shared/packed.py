"""What all kernels on the packed layout share: the operands, and how a shape is padded to fit it.

    packed       [Kp/16, 2*Np] int32  Marlin's tiles, rows in the order of their groups
    scales       [G, Np]              permuted: per group for the weights, of one group for the sums
    zero_points  [G, Np/8] int32      of an asymmetric weight: vLLM's order
    bias         [Np]                 where there is one, permuted as the scales of one group
    perm         [K] int32            of a weight in act-order: packed row k was row perm[k]; it is
                                      for gathering x's columns, no GEMM reads it

Kp and Np are K and N, or the next larger that the tiles of every kernel divide: such a weight is
padded once, when it is made, with codes of 8 and scales of 0. x [M, K] and out [M, N] are never
padded. Where K and N divide, the bytes are those of IST-DASLab's and vLLM's Marlin.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba.contract import Inputs, Kernel
from ferrum_numba.division import round_up
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.dtypes import refuse_dtype
from ferrum_numba.kernels.w4a16 import OP, W4A16Problem
from ferrum_numba.layout import Tile
from ferrum_numba.reference.marlin_layout import (
    TILE_K,
    TILE_N,
    pack_weight,
    pack_zero_points,
    permute_scales,
    tile_order,
)
from ferrum_numba.reference.w4a16 import SYMMETRIC_ZERO_POINT

Array = npt.NDArray[Any]

# what the layout's kernels are made for; K itself counts as -1
GROUP_SIZES = (128, 64, 32, -1)
# what N and K are padded to multiples of: a tile of 64 columns, and 64 rows of K a stage
N_MULTIPLE, K_MULTIPLE = 64, 64


def refuse_kind(group_size: int, dtype: str) -> None:
    """Raise a `ConfigError` where no kernel on this layout is compiled for such a weight."""
    if group_size not in GROUP_SIZES:
        raise ConfigError(f"group_size must be one of {GROUP_SIZES}; got {group_size}")
    refuse_dtype(dtype)


def refuse_groups(kernel: str, problem: W4A16Problem) -> str | None:
    """Return why a kernel on this layout cannot run a weight of such groups, or None."""
    if problem.num_groups == 1 or problem.group_size in GROUP_SIZES:
        return None
    nearest = min(GROUP_SIZES[:-1], key=lambda size: abs(size - problem.group_size))
    return (
        f"{kernel} needs group_size in {GROUP_SIZES}; got {problem.group_size}, "
        f"the nearest is {nearest}"
    )


def group_size_of(problem: W4A16Problem) -> int:
    """Return the group size, with one group for the whole of K as -1."""
    return -1 if problem.num_groups == 1 else problem.group_size


def padded_shape(K: int, N: int, group_size: int) -> tuple[int, int]:
    """Return K and N as they are stored: N to a multiple of 64, K to one of 64 and of the group.

    group_size: rows that share a scale; -1, or K, for all
    """
    k_multiple = K_MULTIPLE if group_size in (-1, K) else max(K_MULTIPLE, group_size)
    return round_up(K, k_multiple), round_up(N, N_MULTIPLE)


def stored_shape(problem: W4A16Problem) -> tuple[int, int]:
    """Return K and N of a problem's weight as they are stored."""
    return padded_shape(problem.K, problem.N, group_size_of(problem))


def pack_operands(problem: W4A16Problem, inputs: Inputs) -> dict[str, Array]:
    """Return a weight's operands by name (see the module); those it does not have are absent."""
    operands = pack_other_operands(problem, inputs)
    codes = inputs["codes"]
    if "perm" in operands:
        codes = codes[operands["perm"]]
    K, N = stored_shape(problem)
    padding = ((0, K - problem.K), (0, N - problem.N))
    padded = np.pad(codes, padding, constant_values=SYMMETRIC_ZERO_POINT)
    return {"packed": pack_weight(padded), **operands}


def pack_other_operands(problem: W4A16Problem, inputs: Inputs) -> dict[str, Array]:
    """Return a weight's operands but the weight itself, of what tests make and checkpoints hold.

    inputs: scales [G, N], and where the weight has them zero_points [G, N] uint8, g_idx [K] int32
            of a weight in act-order, bias [N]
    """
    padding = _group_padding(problem)
    scales = np.pad(inputs["scales"], padding)
    operands = {"scales": permute_scales(scales, problem.num_groups > 1)}
    if "zero_points" in inputs:
        operands["zero_points"] = pack_zero_points(np.pad(inputs["zero_points"], padding))
    if "bias" in inputs:
        operands["bias"] = pack_bias(problem, inputs["bias"])
    if problem.act_order:
        # stable: the rows of a group stay in the order of the checkpoint
        operands["perm"] = np.argsort(inputs["g_idx"], kind="stable").astype(np.int32)
    return operands


def pack_bias(problem: W4A16Problem, bias: Array) -> Array:
    """Return a bias [N] padded and permuted."""
    padded = np.pad(bias, (0, stored_shape(problem)[1] - problem.N))
    packed: Array = permute_scales(padded[None], False)[0]
    return packed


class PackedKernel(Kernel):
    """What every GEMM on this layout does alike."""

    op = OP

    def refuses(self, problem: W4A16Problem) -> str | None:
        """Return why no config can run this problem, with the nearest that can, or None."""
        if problem.act_order:
            return (
                f"{self.name} needs the columns of x in the order of the packed rows, as "
                "MarlinLinear gathers them; got act_order = True"
            )
        return refuse_groups(self.name, problem)

    def specialise(self, config: Any, problem: W4A16Problem) -> Any:
        """Return the config for the problem's groups, type and zero points."""
        return replace(
            config,
            group_size=group_size_of(problem),
            dtype=problem.dtype,
            has_zero_points=problem.zero_points != "none",
        )

    def scalars(self, problem: W4A16Problem, **own: int) -> dict[str, int]:
        """Return the sizes that every kernel on this layout takes, and a design's own.

        n and k are those of the packed weight; x has x_columns and out out_columns.
        """
        K, N = stored_shape(problem)
        return {
            "m": problem.M,
            "n": N,
            "k": K,
            "x_columns": problem.K,
            "out_columns": problem.N,
            "has_bias": int(problem.bias),
            **own,
        }

    def tiles(self, config: Any) -> tuple[Tile, ...]:
        """Return who holds what of a tile of the packed weight."""
        return (packed_tile(),)

    def prepare(self, problem: W4A16Problem, inputs: Inputs) -> dict[str, Array]:
        """Return x as it is and the packed weight; what is never read gets a few words."""
        absent = dict.fromkeys(("zero_points", "bias"), np.zeros(4, np.int32))
        return {"x": inputs["x"], **absent, **pack_operands(problem, inputs)}


def packed_tile() -> Tile:
    """Return which lane holds which code of a tile of the packed weight, in which word."""
    lane, place = np.empty((TILE_K, TILE_N), np.int64), np.empty((TILE_K, TILE_N), "U3")
    order = tile_order()
    for (holder, word, nibble), source in np.ndenumerate(order):
        lane.flat[source], place.flat[source] = holder, f"{word}.{nibble}"
    return Tile("packed weight, 16 bytes a lane", "k", "n", lane, place, "word.nibble")


def _group_padding(problem: W4A16Problem) -> tuple[tuple[int, int], tuple[int, int]]:
    K, N = stored_shape(problem)
    size = group_size_of(problem)
    groups = 1 if size == -1 else K // size
    return (0, groups - problem.num_groups), (0, N - problem.N)
