"""The device program of w4a8_decode: kernel.py says what is computed and how it is tiled."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.decode.steps import multiply_step, scale_sums
from ferrum_numba.kernels.decode.stream import Tokens, make_stream
from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.w4a8_decode.result import make_write
from ferrum_numba.kernels.w4a8_decode.steps import load_bytes, multiply_bytes, widen_tokens
from ferrum_numba.ptx.asynchronous import cp_async_16_ca, cp_async_commit
from ferrum_numba.ptx.special import thread_id


def make_tokens(config):
    """Return the 8-bit tokens of a config: fp8 is multiplied as fp16, int8 as it is."""
    tile_m, step_k, n_tiles = config.tile_m, config.step_k, config.tile_m // 8
    x_row_bytes, half = config.x_row_bytes, HALVES[config.dtype]
    # a step's activations are copied in pieces of 16 bytes, some rows at once
    row_pieces = step_k // 16
    rows_at_once = 32 // row_pieces
    x_copies = max(1, tile_m // rows_at_once)
    groups = 0 if config.carries else config.half_groups
    shape = (config.half_tiles, n_tiles)
    load_words = load_bytes(*shape, x_row_bytes)

    @cuda.jit(device=True, forceinline=True)
    def locate(x8, lane_id, first_row, rows, x_columns):
        """Return where this lane copies a step's tokens from, and where in smem it reads them."""
        x_row = uint32(first_row + uint32(lane_id // uint32(row_pieces)))
        piece = uint32(lane_id % uint32(row_pieces))
        x_lane = x8 + (uint64(x_row) * uint64(x_columns) + uint64(piece * 16))
        token = uint32(lane_id >> 2)
        if n_tiles == 1 and token >= rows:
            # the sums of rows past M are never read; these are there to be read
            token = uint32(0)
        return x_lane, uint32(token * x_row_bytes + uint32(lane_id & 3) * 4)

    @cuda.jit(device=True, forceinline=True)
    def fetch(x_lane, x_slot, rows, x_columns, k_step):
        """Begin to copy a step's activations for this warp."""
        lane_id = uint32(thread_id() & 31)
        row = uint32(lane_id // uint32(row_pieces))
        piece = uint32(lane_id % uint32(row_pieces))
        to = uint32(x_slot + row * x_row_bytes + piece * 16)
        gmem = x_lane + uint64(uint32(k_step * step_k))
        for i in range(x_copies):
            if uint32(row + i * rows_at_once) < rows:
                cp_async_16_ca(to + i * (rows_at_once * x_row_bytes), gmem)
            gmem = gmem + uint64(uint32(x_columns * rows_at_once))
        cp_async_commit()

    if config.x_dtype == "int8":
        multiply = multiply_bytes(*shape, half, groups, config.zero_rows)
        load = load_words
    else:
        multiply = multiply_step(*shape, "f16", groups, config.zero_rows, half)
        widen = widen_tokens(*shape)

        @cuda.jit(device=True, forceinline=True)
        def load(address):
            return widen(load_words(address))

    return Tokens(locate, fetch, load, step_k // 2, multiply, scale_sums(n_tiles, half))


def build(config, early):
    """Return the kernel of a config: a function of `W4A8Decode`'s parameters, in their order."""
    stream = make_stream(config, early, make_tokens(config), make_write)

    def w4a8_decode(
        x8, sx, packed, scales, zero_points, bias, out, slots,
        m, n, k, x_columns, out_columns, stripe_steps, has_bias,
    ):  # fmt: skip
        stream(
            x8, packed, scales, zero_points, (scales, sx), bias, out, slots,
            m, n, k, x_columns, out_columns, stripe_steps, has_bias,
        )  # fmt: skip

    return w4a8_decode
