"""The warps of kernels/prefill.py that copy: one x, two packed weights, one scales."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.prefill_schedule import PANEL_K, ROW_BYTES, make_schedule
from ferrum_numba.ptx.asynchronous import (
    cp_async_bulk,
    cp_async_bulk_tensor_2d,
    cp_async_bulk_tensor_2d_multicast,
    mbarrier_arrive_expect_tx,
    mbarrier_wait,
)
from ferrum_numba.ptx.memory import st_shared_u32
from ferrum_numba.ptx.special import cluster_ctarank, smem_base
from ferrum_numba.ptx.sync import (
    bar_warp_sync,
    griddepcontrol_launch_dependents,
    griddepcontrol_wait,
)
from ferrum_numba.ptx.tensor_map import (
    MAP_BYTES,
    acquire_tensor_map,
    describe_matrix,
    publish_tensor_map,
)


def make_copy_x(config):
    """Return what fills the ring's stages with rows of x, segment after segment."""
    tile_k, stage_bytes, bars_offset = config.tile_k, config.stage_bytes, config.bars_offset
    map_offset, x_bytes = config.out_offset, config.w_offset
    pair, box_rows = config.pair, config.tile_m // config.unit_blocks
    panels, panel_bytes = tile_k // PANEL_K, config.tile_m * ROW_BYTES
    describe = describe_matrix(box_rows)
    num_tiles, corner, _, _, first_segment, next_segment, advance = make_schedule(config)

    @cuda.jit(device=True, inline="always")
    def publish_map(x, maps, m, x_columns):
        """Return the address of a map of x, which is this block's own.

        It is made where the results will lie.
        """
        smem = uint32(smem_base() + map_offset)
        lane_id = uint32(uint32(cuda.threadIdx.x) & 31)
        gmem = maps + uint64(uint32(uint32(cuda.blockIdx.x) * MAP_BYTES))
        st_shared_u32(uint32(smem + lane_id * 4), uint32(0))
        bar_warp_sync()
        if lane_id == uint32(0):
            describe(smem, x, x_columns, m, uint64(x_columns) << 1)
        bar_warp_sync()
        # the launch before may still copy by the map that lies there, and write what is x here
        griddepcontrol_wait()
        publish_tensor_map(gmem, smem)
        acquire_tensor_map(gmem)
        return gmem

    @cuda.jit(device=True, inline="always")
    def copy_panel(to, gmem, column, row, bar):
        """Begin to copy 64 columns of the rows of a tile."""
        if pair:
            # half of the rows, to both blocks
            part = uint32(cluster_ctarank() * box_rows)
            to = uint32(to + part * ROW_BYTES)
            cp_async_bulk_tensor_2d_multicast(to, gmem, column, uint32(row + part), bar, uint32(3))
        else:
            cp_async_bulk_tensor_2d(to, gmem, column, row, bar)

    @cuda.jit(device=True, inline="always")
    def copy_x(x, maps, m, n, k, x_columns, stripe, striped):
        """Copy x for the stages of all segments of this block, in their order."""
        gmem = publish_map(x, maps, m, x_columns)
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        k_tiles, tiles = uint32(k // uint32(tile_k)), num_tiles(m, n)
        if uint32(uint32(cuda.threadIdx.x) & 31) == uint32(0):
            tile, k_tile, k_last, left = first_segment(k_tiles, stripe, striped)
            stage, phase = uint32(0), uint32(1)
            while tile < tiles:
                row, _ = corner(tile, m, n)
                while k_tile < k_last:
                    bar = uint32(bars + stage * 16)
                    mbarrier_wait(bar + 8, phase)
                    mbarrier_arrive_expect_tx(bar, uint32(x_bytes))
                    to = uint32(smem + stage * stage_bytes)
                    column = uint32(k_tile * tile_k)
                    for i in range(panels):
                        panel, its_column = (
                            uint32(to + i * panel_bytes),
                            uint32(column + i * PANEL_K),
                        )
                        copy_panel(panel, gmem, its_column, row, bar)
                    stage, phase = advance(stage, phase)
                    k_tile = uint32(k_tile + 1)
                tile, k_tile, k_last, left = next_segment(tile, left, k_tiles, striped)

    return copy_x


def make_copy_weights(config):
    """Return what fills the ring's stages with half of the rows of packed weights.

    A thread that copies one row after the other takes its time, and the lanes of a warp take it one
    after the other: so two warps share the rows.
    """
    tile_n, tile_k = config.tile_n, config.tile_k
    w_offset, stage_bytes, bars_offset = config.w_offset, config.stage_bytes, config.bars_offset
    w_rows, row_bytes = tile_k // 16, tile_n * 8
    own_rows = w_rows // 2
    num_tiles, corner, own_column, _, first_segment, next_segment, advance = make_schedule(config)

    @cuda.jit(device=True, inline="always")
    def copy_weights(packed, m, n, k, stripe, striped, part):
        """Copy the upper or the lower half of the rows of every stage, by one lane."""
        first_row = uint32(part * own_rows)
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        k_tiles, tiles = uint32(k // uint32(tile_k)), num_tiles(m, n)
        tile, k_tile, k_last, left = first_segment(k_tiles, stripe, striped)
        stage, phase = uint32(0), uint32(1)
        row_step = uint64(n) << 3
        to_first = uint32(smem + w_offset + first_row * row_bytes)
        while tile < tiles:
            _, column = corner(tile, m, n)
            column = own_column(column, n)
            row = uint32(k_tile * w_rows + first_row)
            gmem = packed + ((uint64(row) * n + uint64(column)) << 3)
            while k_tile < k_last:
                bar = uint32(bars + stage * 16)
                mbarrier_wait(bar + 8, phase)
                mbarrier_arrive_expect_tx(bar, uint32(own_rows * row_bytes))
                to = uint32(to_first + stage * stage_bytes)
                cp_async_bulk(to, gmem, uint32(row_bytes), bar)
                cp_async_bulk(to + row_bytes, gmem + row_step, uint32(row_bytes), bar)
                if own_rows == 4:
                    more = gmem + row_step * uint64(2)
                    cp_async_bulk(to + 2 * row_bytes, more, uint32(row_bytes), bar)
                    cp_async_bulk(to + 3 * row_bytes, more + row_step, uint32(row_bytes), bar)
                gmem = gmem + row_step * uint64(w_rows)
                stage, phase = advance(stage, phase)
                k_tile = uint32(k_tile + 1)
            tile, k_tile, k_last, left = next_segment(tile, left, k_tiles, striped)
        griddepcontrol_launch_dependents()

    return copy_weights


def make_copy_scales(config):
    """Return what fills the ring's stages with scales and zero points, segment after segment."""
    tile_n, tile_k = config.tile_n, config.tile_k
    group_size, has_zeros = config.group_size, config.has_zeros
    s_offset, z_offset = config.s_offset, config.z_offset
    stage_bytes, bars_offset = config.stage_bytes, config.bars_offset
    scale_rows, s_bytes, z_bytes = config.scale_rows, tile_n * 2, tile_n // 2
    copied_bytes = scale_rows * (s_bytes + (z_bytes if has_zeros else 0))
    num_tiles, corner, own_column, _, first_segment, next_segment, advance = make_schedule(config)

    @cuda.jit(device=True, inline="always")
    def copy_scales(scales, zero_points, m, n, k, stripe, striped):
        """Copy the scales of every stage of this block, and its zero points, by one lane."""
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        k_tiles, tiles = uint32(k // uint32(tile_k)), num_tiles(m, n)
        tile, k_tile, k_last, left = first_segment(k_tiles, stripe, striped)
        stage, phase = uint32(0), uint32(1)
        while tile < tiles:
            _, column = corner(tile, m, n)
            column = own_column(column, n)
            while k_tile < k_last:
                bar = uint32(bars + stage * 16)
                mbarrier_wait(bar + 8, phase)
                mbarrier_arrive_expect_tx(bar, uint32(copied_bytes))
                to = uint32(smem + stage * stage_bytes)
                group = uint32(uint32(k_tile * tile_k) // uint32(group_size))
                for i in range(scale_rows):
                    place = uint64(uint32(group + i)) * n + uint64(column)
                    s_to = uint32(to + (s_offset + i * s_bytes))
                    cp_async_bulk(s_to, scales + (place << 1), uint32(s_bytes), bar)
                    if has_zeros:
                        z_to = uint32(to + (z_offset + i * z_bytes))
                        cp_async_bulk(z_to, zero_points + (place >> 1), uint32(z_bytes), bar)
                stage, phase = advance(stage, phase)
                k_tile = uint32(k_tile + 1)
            tile, k_tile, k_last, left = next_segment(tile, left, k_tiles, striped)

    return copy_scales
