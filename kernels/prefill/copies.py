"""The warps of prefill that copy: one x, two packed weights, one scales."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.prefill.schedule import ROW_BYTES
from ferrum_numba.kernels.prefill.tile import PANEL_K
from ferrum_numba.ptx.asynchronous import (
    cp_async_bulk,
    cp_async_bulk_tensor_2d,
    cp_async_bulk_tensor_2d_multicast,
    mbarrier_arrive_expect_tx,
    mbarrier_wait,
)
from ferrum_numba.ptx.memory import st_shared_u32, st_shared_v4
from ferrum_numba.ptx.special import cluster_ctarank, smem_base, thread_id
from ferrum_numba.ptx.sync import (
    bar_warp_sync,
    fence_proxy_async_shared,
    griddepcontrol_launch_dependents,
    griddepcontrol_wait,
)
from ferrum_numba.ptx.tensor_map import (
    MAP_BYTES,
    acquire_tensor_map,
    describe_matrix,
    publish_tensor_map,
)


def make_clear_rows(config):
    """Return what writes zeros where a stage has rows of x that no copy brings."""
    tile_m, stage_bytes, num_threads = config.tile_m, config.stage_bytes, config.num_threads
    num_stages, panels = config.num_stages, config.tile_k * config.x_bytes // ROW_BYTES

    @cuda.jit(device=True, forceinline=True)
    def clear_panel(panel, end):
        at = uint32(panel + thread_id() * 16)
        while at < end:
            st_shared_v4(at, (uint32(0), uint32(0), uint32(0), uint32(0)))
            at = uint32(at + num_threads * 16)

    @cuda.jit(device=True, forceinline=True)
    def clear_rows(m):
        """Clear the rows that the last tile of rows lacks, by all threads, before any copy."""
        rows = uint32(m % uint32(tile_m))
        if rows > 0:
            stage = smem_base()
            for _ in range(num_stages):
                for i in range(panels):
                    panel = uint32(stage + i * (tile_m * ROW_BYTES))
                    clear_panel(uint32(panel + rows * ROW_BYTES), panel + tile_m * ROW_BYTES)
                stage = uint32(stage + stage_bytes)
            # wgmma reads them through another proxy
            fence_proxy_async_shared()

    return clear_rows


def make_copy_x(config, schedule):
    """Return what fills the ring's stages with rows of x, segment after segment."""
    tile_m, tile_k, pair = config.tile_m, config.tile_k, config.pair
    stage_bytes, bars_offset, map_offset = config.stage_bytes, config.bars_offset, config.out_offset
    box_rows = tile_m // config.unit_blocks
    panels, panel_bytes = tile_k * config.x_bytes // ROW_BYTES, tile_m * ROW_BYTES
    num_tiles, corner = schedule.num_tiles, schedule.corner
    first_segment, next_segment = schedule.first_segment, schedule.next_segment
    advance = schedule.advance

    @cuda.jit(device=True, forceinline=True)
    def rows_of(rows):
        """Return the first of a tile's rows that this block copies, and how many of them."""
        first = uint32(0)
        if pair:
            # the blocks have half of a whole tile's each
            first = uint32(cluster_ctarank() * box_rows)
            rows = uint32(rows - first) if rows > first else uint32(0)
        return first, rows if rows < box_rows else uint32(box_rows)

    @cuda.jit(device=True, forceinline=True)
    def publish_maps(x, maps, m, x_columns):
        """Return the addresses of two maps of x: boxes of whole tiles, and of the last rows.

        They are this block's own, and made where the results will lie. Boxes that end with x take
        less time than boxes filled with zeros, see docs/designs/prefill.md#boxes.
        """
        whole = uint32(smem_base() + map_offset)
        last = uint32(whole + MAP_BYTES)
        lane_id = uint32(thread_id() & 31)
        gmem = maps + uint64(uint32(uint32(cuda.blockIdx.x) * (2 * MAP_BYTES)))
        _, last_rows = rows_of(uint32(m % uint32(tile_m)))
        st_shared_u32(uint32(whole + lane_id * 4), uint32(0))
        st_shared_u32(uint32(last + lane_id * 4), uint32(0))
        bar_warp_sync()
        row_bytes = uint64(x_columns) << 1
        if lane_id == 0:
            if m >= tile_m:
                describe_matrix(whole, x, x_columns, m, row_bytes, uint32(box_rows))
            if last_rows > 0:
                describe_matrix(last, x, x_columns, m, row_bytes, last_rows)
        bar_warp_sync()
        # the launch before may still copy by the maps that lie there, and write what is x here
        griddepcontrol_wait()
        if m >= tile_m:
            publish_tensor_map(gmem, whole)
            acquire_tensor_map(gmem)
        if last_rows > 0:
            publish_tensor_map(gmem + uint64(MAP_BYTES), last)
            acquire_tensor_map(gmem + uint64(MAP_BYTES))
        return gmem, gmem + uint64(MAP_BYTES)

    @cuda.jit(device=True, forceinline=True)
    def copy_panel(to, gmem, column, row, bar):
        """Begin to copy 64 columns of rows of a tile."""
        if pair:
            # to both blocks
            cp_async_bulk_tensor_2d_multicast(to, gmem, column, row, bar, uint32(3))
        else:
            cp_async_bulk_tensor_2d(to, gmem, column, row, bar)

    @cuda.jit(device=True, forceinline=True)
    def copy_x(x, maps, m, n, k, x_columns, stripe_steps, striped_tiles):
        """Copy x for the stages of all segments of this block, in their order.

        x_columns: of 16 bits
        """
        whole, last = publish_maps(x, maps, m, x_columns)
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        k_steps, tiles = uint32(k // uint32(tile_k)), num_tiles(m, n)
        if uint32(thread_id() & 31) == 0:
            tile, k_step, k_stop, left = first_segment(k_steps, stripe_steps, striped_tiles)
            stage, phase = uint32(0), uint32(1)
            while tile < tiles:
                row, _ = corner(tile, m, n)
                rows, gmem = uint32(m - row), last
                if rows >= tile_m:
                    rows, gmem = uint32(tile_m), whole
                first, own_rows = rows_of(rows)
                row, size_bytes = uint32(row + first), uint32(rows * (panels * ROW_BYTES))
                while k_step < k_stop:
                    bar = uint32(bars + stage * 16)
                    mbarrier_wait(bar + 8, phase)
                    mbarrier_arrive_expect_tx(bar, size_bytes)
                    to = uint32(smem + stage * stage_bytes + first * ROW_BYTES)
                    column = uint32(k_step * (panels * PANEL_K))
                    if own_rows > 0:
                        for i in range(panels):
                            panel = uint32(to + i * panel_bytes)
                            copy_panel(panel, gmem, uint32(column + i * PANEL_K), row, bar)
                    stage, phase = advance(stage, phase)
                    k_step = uint32(k_step + 1)
                tile, k_step, k_stop, left = next_segment(tile, left, k_steps, striped_tiles)

    return copy_x


def make_copy_word_rows(config):
    """Return what begins to copy half of a stage's rows of packed words.

    A thread that copies one row after the other takes its time, and the lanes of a warp take it one
    after the other: so two warps share the rows.
    """
    row_bytes, own_rows = config.tile_n * 8, config.tile_k // 32

    @cuda.jit(device=True, forceinline=True)
    def copy_word_rows(to, gmem, row_step, bar):
        """Copy two rows or four.

        row_step: bytes from a row to the next, in gmem
        """
        cp_async_bulk(to, gmem, uint32(row_bytes), bar)
        cp_async_bulk(to + row_bytes, gmem + row_step, uint32(row_bytes), bar)
        if own_rows == 4:
            more = gmem + row_step * uint64(2)
            cp_async_bulk(to + 2 * row_bytes, more, uint32(row_bytes), bar)
            cp_async_bulk(to + 3 * row_bytes, more + row_step, uint32(row_bytes), bar)

    return copy_word_rows


def make_copy_weights(config, schedule):
    """Return what fills the ring's stages with half of the rows of packed weights."""
    tile_n, tile_k = config.tile_n, config.tile_k
    w_offset, stage_bytes, bars_offset = config.w_offset, config.stage_bytes, config.bars_offset
    w_rows, row_bytes = tile_k // 16, tile_n * 8
    own_rows = w_rows // 2
    num_tiles, corner = schedule.num_tiles, schedule.corner
    own_column, first_segment = schedule.own_column, schedule.first_segment
    next_segment, advance = schedule.next_segment, schedule.advance
    copy_word_rows = make_copy_word_rows(config)

    @cuda.jit(device=True, forceinline=True)
    def copy_weights(packed, m, n, k, stripe_steps, striped_tiles, part):
        """Copy the upper or the lower half of the rows of every stage, by one lane."""
        first_row = uint32(part * own_rows)
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        k_steps, tiles = uint32(k // uint32(tile_k)), num_tiles(m, n)
        tile, k_step, k_stop, left = first_segment(k_steps, stripe_steps, striped_tiles)
        stage, phase = uint32(0), uint32(1)
        row_step = uint64(n) << 3
        to_first = uint32(smem + w_offset + first_row * row_bytes)
        while tile < tiles:
            _, column = corner(tile, m, n)
            column = own_column(column, n)
            row = uint32(k_step * w_rows + first_row)
            gmem = packed + ((uint64(row) * n + uint64(column)) << 3)
            while k_step < k_stop:
                bar = uint32(bars + stage * 16)
                mbarrier_wait(bar + 8, phase)
                mbarrier_arrive_expect_tx(bar, uint32(own_rows * row_bytes))
                copy_word_rows(uint32(to_first + stage * stage_bytes), gmem, row_step, bar)
                gmem = gmem + row_step * uint64(w_rows)
                stage, phase = advance(stage, phase)
                k_step = uint32(k_step + 1)
            tile, k_step, k_stop, left = next_segment(tile, left, k_steps, striped_tiles)
        griddepcontrol_launch_dependents()

    return copy_weights


def make_copy_scale_rows(config):
    """Return what begins to copy a stage's scales, and its zero points, and their bytes."""
    tile_n, s_offset, z_offset = config.tile_n, config.s_offset, config.z_offset
    scale_rows, has_zero_points = config.scale_rows, config.has_zero_points
    s_bytes, z_bytes = tile_n * 2, tile_n // 2
    copied_bytes = scale_rows * (s_bytes + (z_bytes if has_zero_points else 0))

    @cuda.jit(device=True, forceinline=True)
    def copy_scale_rows(to, scales, zero_points, group, n, column, bar):
        """Copy the rows of a stage.

        group: the first of them
        """
        for i in range(scale_rows):
            place = uint64(uint32(group + i)) * n + uint64(column)
            s_to = uint32(to + (s_offset + i * s_bytes))
            cp_async_bulk(s_to, scales + (place << 1), uint32(s_bytes), bar)
            if has_zero_points:
                z_to = uint32(to + (z_offset + i * z_bytes))
                cp_async_bulk(z_to, zero_points + (place >> 1), uint32(z_bytes), bar)

    return copy_scale_rows, copied_bytes


def make_copy_scales(config, schedule):
    """Return what fills the ring's stages with scales and zero points, segment after segment."""
    tile_k, group_size = config.tile_k, config.group_size
    stage_bytes, bars_offset = config.stage_bytes, config.bars_offset
    num_tiles, corner = schedule.num_tiles, schedule.corner
    own_column, first_segment = schedule.own_column, schedule.first_segment
    next_segment, advance = schedule.next_segment, schedule.advance
    copy_scale_rows, copied_bytes = make_copy_scale_rows(config)

    @cuda.jit(device=True, forceinline=True)
    def copy_scales(scales, zero_points, m, n, k, stripe_steps, striped_tiles):
        """Copy the scales of every stage of this block, and its zero points, by one lane."""
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        k_steps, tiles = uint32(k // uint32(tile_k)), num_tiles(m, n)
        tile, k_step, k_stop, left = first_segment(k_steps, stripe_steps, striped_tiles)
        stage, phase = uint32(0), uint32(1)
        while tile < tiles:
            _, column = corner(tile, m, n)
            column = own_column(column, n)
            while k_step < k_stop:
                bar = uint32(bars + stage * 16)
                mbarrier_wait(bar + 8, phase)
                mbarrier_arrive_expect_tx(bar, uint32(copied_bytes))
                to = uint32(smem + stage * stage_bytes)
                group = uint32(uint32(k_step * tile_k) // uint32(group_size))
                copy_scale_rows(to, scales, zero_points, group, n, column, bar)
                stage, phase = advance(stage, phase)
                k_step = uint32(k_step + 1)
            tile, k_step, k_stop, left = next_segment(tile, left, k_steps, striped_tiles)

    return copy_scales
