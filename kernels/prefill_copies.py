"""The warps of kernels/prefill.py that copy: x, packed weights, scales and zero points."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.prefill_schedule import (
    CONSUMER_WARPS,
    PRODUCER_WARPS,
    ROW_BYTES,
    make_schedule,
)
from ferrum_numba.ptx.asynchronous import (
    cp_async_16_zfill,
    cp_async_bulk,
    cp_async_mbarrier_arrive,
    mbarrier_expect_tx,
    mbarrier_wait,
)
from ferrum_numba.ptx.special import smem_base


def make_produce(config):
    """Return the producers' part: it fills the ring's stages, segment after segment."""
    tile_m, tile_n, tile_k = config.tile_m, config.tile_n, config.tile_k
    group_size, per_channel, has_zeros = config.group_size, config.group_size < 0, config.has_zeros
    w_offset, s_offset, z_offset = config.w_offset, config.s_offset, config.z_offset
    stage_bytes, bars_offset = config.stage_bytes, config.bars_offset
    scale_rows, scale_row_bytes, zero_row_bytes = config.scale_rows, tile_n * 2, tile_n // 2
    first_producer = 32 * CONSUMER_WARPS
    # rows of a stage that are copied whole: of weights, of scales, of zero points
    w_rows, w_row_bytes = tile_k // 16, tile_n * 8
    first_s, first_z = w_rows, w_rows + scale_rows
    items = first_z + (scale_rows if has_zeros else 0)
    # a thread copies one 16-byte piece of every `x_rows`-th row of x
    x_rows = 4 * PRODUCER_WARPS
    x_rounds = tile_m // x_rows
    num_tiles, corner, clamp, first_segment, next_segment, advance = make_schedule(config)

    @cuda.jit(device=True, inline="always")
    def fetch_weights(smem, bar, packed, scales, zero_points, n, column, k_tile):
        """Begin the copies of the packed rows and of their scales, one or two a warp."""
        thread = uint32(uint32(cuda.threadIdx.x) - first_producer)
        item = uint32((thread & 31) * PRODUCER_WARPS + (thread >> 5))
        if item < uint32(items):
            row = uint32(k_tile * w_rows + item)
            to = uint32(smem + w_offset + item * w_row_bytes)
            gmem = packed + ((uint64(row) * n + uint64(column)) << 3)
            size_bytes = uint32(w_row_bytes)
            group = uint32(0)
            if not per_channel:
                group = uint32(uint32(k_tile * tile_k) // uint32(group_size))
            if not per_channel and item >= uint32(first_s):
                row = uint32(item - first_s)
                to = uint32(smem + s_offset + row * scale_row_bytes)
                gmem = scales + ((uint64(uint32(row + group)) * n + uint64(column)) << 1)
                size_bytes = uint32(scale_row_bytes)
            if has_zeros and not per_channel and item >= uint32(first_z):
                row = uint32(item - first_z)
                to = uint32(smem + z_offset + row * zero_row_bytes)
                gmem = zero_points + ((uint64(uint32(row + group)) * n + uint64(column)) >> 1)
                size_bytes = uint32(zero_row_bytes)
            mbarrier_expect_tx(bar, size_bytes)
            cp_async_bulk(to, gmem, size_bytes, bar)

    @cuda.jit(device=True, inline="always")
    def fetch_x(smem, gmem, x_columns, inside, rows_left):
        """Begin the copies of this thread's pieces; what lies past M or K becomes zeros."""
        thread = uint32(uint32(cuda.threadIdx.x) - first_producer)
        r, c = uint32(thread >> 3), uint32(thread & 7)
        place = uint32(r * ROW_BYTES + (c ^ (r & 7)) * 16)
        step = uint64(x_columns) * uint64(x_rows * 2)
        for i in range(x_rounds):
            size_bytes = uint32(0)
            if inside and uint32(i * x_rows) < rows_left:
                size_bytes = uint32(16)
            cp_async_16_zfill(uint32(smem + place + i * (x_rows * ROW_BYTES)), gmem, size_bytes)
            gmem = gmem + step

    @cuda.jit(device=True, inline="always")
    def produce(sources, m, n, k, x_columns, stripe, striped):
        """Copy the stages of all segments of this block, in their order."""
        x, packed, scales, zero_points = sources
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        thread = uint32(uint32(cuda.threadIdx.x) - first_producer)
        r, c = uint32(thread >> 3), uint32(thread & 7)
        block = uint32(uint32(cuda.gridDim.x) - uint32(cuda.blockIdx.x) - 1)
        k_tiles, tiles = uint32(k // uint32(tile_k)), num_tiles(m, n)
        tile, k_tile, k_last, left = first_segment(block, k_tiles, stripe, striped)
        stage, phase = uint32(0), uint32(1)
        while tile < tiles:
            row, column = corner(tile, m, n)
            column = clamp(column, n)
            rows_left = uint32(m - uint32(row + r)) if uint32(row + r) < m else uint32(0)
            k_first = uint32(k_tile * tile_k + c * 8)
            gmem = x + ((uint64(uint32(row + r)) * x_columns + uint64(k_first)) << 1)
            while k_tile < k_last:
                bar = uint32(bars + stage * 16)
                to = uint32(smem + stage * stage_bytes)
                mbarrier_wait(bar + 8, phase)
                fetch_weights(to, bar, packed, scales, zero_points, n, column, k_tile)
                inside = uint32(k_tile * tile_k + c * 8) < x_columns
                fetch_x(to, gmem, x_columns, inside, rows_left)
                cp_async_mbarrier_arrive(bar)
                gmem = gmem + uint64(tile_k * 2)
                stage, phase = advance(stage, phase)
                k_tile = uint32(k_tile + 1)
            tile, k_tile, k_last, left = next_segment(tile, left, block, k_tiles, striped)

    return produce
