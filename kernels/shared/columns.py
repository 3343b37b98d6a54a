"""A slice's sums on their way out: fragments to rows in shared memory, four columns to memory.

Where weights are the A operand, a lane holds columns of the weight, 8 apart, of some tokens; out is
written by rows. So a block's sums pass through shared memory, and a thread writes four columns of a
token at once: scaled if nobody did, with the bias, rounded once.
"""

from functools import cache

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.shared.int4 import STRIPS
from ferrum_numba.ptx.convert import PACK, UNPACK
from ferrum_numba.ptx.instruction import F32, U32, Array, Instruction, Lanes
from ferrum_numba.ptx.memory import ld_global_nc_u32, st_global_v2


@cache
def store_columns(n_tiles: int, row_bytes: int) -> Instruction:
    """Make `(address, acc)`: write an accumulator to shared memory, a row of 64 fp32 a token.

    address: U32, of token 2 * (lane % 4) and column lane / 4; rows lie row_bytes apart
    """
    places = [
        (8 * block + c % 2) * row_bytes + 4 * (16 * j + 8 * (c // 2))
        for j in range(STRIPS)
        for block in range(n_tiles)
        for c in range(4)
    ]
    lines = [f"st.shared.f32 [<address>+{place}], <acc.{i}>;" for i, place in enumerate(places)]

    def twin(lanes: Lanes, address: Array, acc: Array) -> None:
        for i, place in enumerate(places):
            data = np.ascontiguousarray(acc[:, i : i + 1]).view(np.uint8)
            lanes.store_shared(address + np.uint32(place), data)

    return Instruction(
        f"store_columns_{n_tiles}x{row_bytes}", "\n".join(lines),
        {"address": U32, "acc": F32 * (16 * n_tiles)}, None, twin, effect="memory",
    )  # fmt: skip


def make_load_factors(dtype, per_channel):
    """Return what loads what four neighbouring columns are multiplied by, and what is added."""
    unpack_pair = UNPACK[HALVES[dtype]]

    @cuda.jit(device=True, forceinline=True)
    def load_columns(gmem, column):
        """Return four columns of one row, in fp32, as `permute_scales` of one group puts them."""
        pair = uint32((column & uint32(0xFFFFFFE0)) + (column & 7) * 4 + ((column >> 3) & 3) * 2)
        at = gmem + (uint64(pair) << 1)
        low = unpack_pair(ld_global_nc_u32(at))
        high = unpack_pair(ld_global_nc_u32(at + uint64(16)))
        return low[0], low[1], high[0], high[1]

    @cuda.jit(device=True, forceinline=True)
    def load_factors(scales, bias, column, has_bias):
        """Return the factors, 1 where the sums are scaled already, and the bias, 0 without one."""
        factors = (float32(1), float32(1), float32(1), float32(1))
        if per_channel:
            factors = load_columns(scales, column)
        shifts = (float32(0), float32(0), float32(0), float32(0))
        if has_bias > 0:
            shifts = load_columns(bias, column)
        return factors, shifts

    return load_factors


def make_complete(per_channel):
    """Return what completes four columns of a token: times the factors, plus the bias."""

    @cuda.jit(device=True, forceinline=True)
    def complete(sums, factors, shifts, has_bias):
        """Return the sums, times the factors if nobody scaled them, plus the bias."""
        first, second, third, last = sums
        if per_channel:
            first, second = first * factors[0], second * factors[1]
            third, last = third * factors[2], last * factors[3]
        if has_bias > 0:
            first, second = first + shifts[0], second + shifts[1]
            third, last = third + shifts[2], last + shifts[3]
        return first, second, third, last

    return complete


def make_write_columns(dtype, per_channel):
    """Return what writes four columns of a token."""
    pack_pair, complete = PACK[HALVES[dtype]], make_complete(per_channel)

    @cuda.jit(device=True, forceinline=True)
    def write_columns(to, sums, factors, shifts, has_bias):
        """Write four columns: times the factors if nobody scaled them, plus the bias, rounded."""
        first, second, third, last = complete(sums, factors, shifts, has_bias)
        st_global_v2(to, (pack_pair(first, second), pack_pair(third, last)))

    return write_columns
