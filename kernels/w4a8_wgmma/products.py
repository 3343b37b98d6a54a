"""The warpgroups of w4a8_wgmma that multiply: a stage's weights times its rows of x8."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.prefill.schedule import ROW_BYTES
from ferrum_numba.kernels.shared.packed_x8 import TABLES_BYTES
from ferrum_numba.kernels.w4a8_wgmma.steps import Stage8, scale_tokens
from ferrum_numba.ptx.asynchronous import cp_async_4, cp_async_commit, cp_async_wait
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.memory import st_shared_u32
from ferrum_numba.ptx.special import smem_base, thread_id
from ferrum_numba.ptx.sync import bar_sync
from ferrum_numba.ptx.wgmma import smem_descriptor


def make_products(config):
    """Return (start, multiply_stage, finish) of a warp's sums.

    start() -> sums of zero
    multiply_stage(sums, at, places, zero, bar, phase) -> sums: the products of a stage have ended
    finish(sums) -> a tuple of sums a strip

    at:     where the stage lies
    places: of the lane's words, scales and zero points in it, the number of its first strip, and
            of its first token among those of a tile, in bytes
    zero:   the lane's word of zero points where a column has one
    bar:    of the stage, and the phase of it that has ended
    """
    acc_floats, strips = config.tile_m // 2, config.strips
    per_channel = config.group_size < 0
    zeros, describe_x = splat_f32(strips * acc_floats), smem_descriptor(128, 8 * ROW_BYTES)
    tables_offset, tokens_offset = config.tables_offset, config.tokens_offset
    multiply = Stage8(
        config.tile_m,
        config.x_dtype,
        HALVES[config.dtype],
        config.scale_rows,
        config.has_zero_points,
        config.tile_n,
        strips,
        config.sets,
        config.x_group > 0,
        config.ahead,
    ).multiply

    @cuda.jit(device=True, forceinline=True)
    def start():
        return zeros(float32(0))

    @cuda.jit(device=True, forceinline=True)
    def multiply_stage(acc, at, places, zero, bar, phase):
        w_place, s_place, z_place, strip, t_place = places
        if not per_channel:
            zero = uint32(at + z_place)
        return multiply(
            uint32(at + w_place), uint32(at + s_place), zero, uint32(smem_base() + tables_offset),
            strip, uint32(at + tokens_offset + t_place), describe_x(at),
            bar, phase, acc,
        )  # fmt: skip

    @cuda.jit(device=True, forceinline=True)
    def finish(acc):
        if strips == 1:
            return (acc,)
        return acc[:acc_floats], acc[acc_floats:]

    return start, multiply_stage, finish


def make_write_tables(config):
    """Return what writes the bytes of all zero points, by as many threads as there are words."""
    tables_offset, words = config.tables_offset, TABLES_BYTES // 4

    @cuda.jit(device=True, forceinline=True)
    def write_tables():
        tid = thread_id()
        if tid < words:
            zero, word = uint32(tid >> 2), uint32(0)
            for i in range(4):
                code = uint32(uint32(tid & 3) * 4 + i)
                entry = uint32(code - zero)
                if code < zero:
                    # the sign, above the four bits of the difference
                    entry = uint32(uint32(zero - code) + 16)
                word = uint32(word | uint32(entry << (8 * i)))
            st_shared_u32(uint32(smem_base() + tables_offset + tid * 4), word)

    return write_tables


def make_token_scales(config):
    """Return (fetch, scale): one scale a row of x8, for the sums of a tile.

    fetch(sx, row, m): begin to bring those of a tile's rows, by each warpgroup for itself
    scale(sums, t_place) -> sums, multiplied by them: all lanes of a warpgroup
    """
    tile_m, own_offset = config.tile_m, config.own_offset
    multiply = scale_tokens(tile_m, config.strips)

    @cuda.jit(device=True, forceinline=True)
    def fetch(sx, row, m):
        at = uint32(smem_base() + own_offset + uint32(thread_id() >> 7) * (4 * tile_m))
        token = uint32(thread_id() & 127)
        while token < tile_m:
            place = uint32(at + token * 4)
            if uint32(row + token) < m:
                cp_async_4(place, sx + (uint64(uint32(row + token)) << 2))
            else:
                # sums of rows that are not there are multiplied, too
                st_shared_u32(place, uint32(0))
            token = uint32(token + 128)
        cp_async_commit()

    @cuda.jit(device=True, forceinline=True)
    def scale(acc, t_place):
        warpgroup = uint32(thread_id() >> 7)
        cp_async_wait(0)
        bar_sync(uint32(1 + warpgroup), uint32(128))
        return multiply(uint32(smem_base() + own_offset + warpgroup * (4 * tile_m) + t_place), acc)

    return fetch, scale
