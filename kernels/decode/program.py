"""The device program of decode: kernel.py says what is computed and how it is tiled."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.decode.result import make_write
from ferrum_numba.kernels.decode.steps import load_tokens, multiply_step, scale_sums
from ferrum_numba.kernels.decode.stream import Tokens, make_stream
from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.ptx.asynchronous import cp_async_16_ca_zfill, cp_async_commit
from ferrum_numba.ptx.special import thread_id


def make_tokens(config):
    """Return the 16-bit tokens of a config."""
    tile_m, step_k, n_tiles = config.tile_m, config.step_k, config.tile_m // 8
    x_row_bytes, half = config.x_row_bytes, HALVES[config.dtype]
    # a step's activations are copied in pieces of 16 bytes, some rows at once
    row_pieces = step_k // 8
    rows_at_once = 32 // row_pieces
    x_copies = tile_m // rows_at_once

    @cuda.jit(device=True, forceinline=True)
    def locate_tokens(x, lane_id, first_row, rows, x_columns):
        """Return where this lane copies a step's tokens from, and where in smem it reads them."""
        x_row = uint32(first_row + uint32(lane_id // uint32(row_pieces)))
        piece = uint32(lane_id % uint32(row_pieces))
        x_lane = x + (uint64(x_row) * uint64(uint32(x_columns * 2)) + uint64(piece * 16))
        # each lane addresses a token's row of one of the four matrices of two tiles
        token = uint32(lane_id & 7)
        if n_tiles == 1 and token >= rows:
            # the sums of rows past M are never read; these are there to be read
            token = uint32(0)
        return x_lane, uint32(token * x_row_bytes + (lane_id >> 3) * 16)

    @cuda.jit(device=True, forceinline=True)
    def fetch_x(x_lane, x_slot, rows, x_columns, k_step):
        """Begin to copy a step's activations for this warp, zeros where the weight is padded."""
        lane_id = uint32(thread_id() & 31)
        row = uint32(lane_id // uint32(row_pieces))
        piece = uint32(lane_id % uint32(row_pieces))
        to = uint32(x_slot + row * x_row_bytes + piece * 16)
        column = uint32(k_step * step_k + piece * 8)
        size = uint32(16) if column < x_columns else uint32(0)
        gmem = x_lane + uint64(k_step) * uint64(step_k * 2)
        for i in range(x_copies):
            if uint32(row + i * rows_at_once) < rows:
                cp_async_16_ca_zfill(to + i * (rows_at_once * x_row_bytes), gmem, size)
            gmem = gmem + uint64(uint32(x_columns * (2 * rows_at_once)))
        cp_async_commit()

    groups = 0 if config.carries else config.half_groups
    return Tokens(
        locate_tokens,
        fetch_x,
        load_tokens(config.half_tiles, n_tiles, x_row_bytes),
        step_k,
        multiply_step(config.half_tiles, n_tiles, half, groups, config.zero_rows),
        scale_sums(n_tiles, half),
    )


def build(config, early):
    """Return the kernel of a config: a function of the parameters of `Decode`, in their order."""
    stream = make_stream(config, early, make_tokens(config), make_write)

    def decode(
        x, packed, scales, zero_points, bias, out, slots,
        m, n, k, x_columns, out_columns, stripe_steps, has_bias,
    ):  # fmt: skip
        stream(
            x, packed, scales, zero_points, scales, bias, out, slots,
            m, n, k, x_columns, out_columns, stripe_steps, has_bias,
        )  # fmt: skip

    return decode
