"""The warps that copy: two gather rows of x, two copy packed words, scales and zero points."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.division import ceil_div
from ferrum_numba.kernels.prefill.copies import make_copy_scale_rows, make_copy_word_rows
from ferrum_numba.kernels.prefill.schedule import ROW_BYTES
from ferrum_numba.kernels.prefill.tile import PANEL_K
from ferrum_numba.ptx.asynchronous import (
    cp_async_16_zfill,
    cp_async_commit,
    cp_async_mbarrier_arrive,
    cp_async_wait,
    mbarrier_arrive,
    mbarrier_arrive_expect_tx,
    mbarrier_wait,
)
from ferrum_numba.ptx.memory import ld_global_cg_u32, ld_shared_v4, st_shared_u32
from ferrum_numba.ptx.special import smem_base, thread_id
from ferrum_numba.ptx.sync import (
    bar_warp_sync,
    griddepcontrol_launch_dependents,
    griddepcontrol_wait,
)

# warps that gather x
X_WARPS = 2
# rows that a lane copies together, of 16 that a warp does: it has an eighth of their bytes
LANE_ROWS, WARP_ROWS = 4, 16
# of a row without a pair
NO_ROW = 0xFFFFFFFF
# fp32 1
ONE = 0x3F800000


def make_gather(config, schedule, deal):
    """Return what fills the ring's stages with the pairs' rows of x, segment after segment."""
    tile_m, tile_k = config.tile_m, config.tile_k
    stage_bytes, bars_offset, rows_offset = (
        config.stage_bytes,
        config.bars_offset,
        config.rows_offset,
    )
    panels, panel_bytes = tile_k // PANEL_K, tile_m * ROW_BYTES
    # the warps have a panel each, or every second 16 rows
    step = X_WARPS // panels
    row_turns = ceil_div(tile_m, 32)
    own_first_row = 0 if panels > 1 else WARP_ROWS
    own_column_step, own_panel_bytes = (PANEL_K, panel_bytes) if panels > 1 else (0, 0)
    corner, first_segment = schedule.corner, schedule.first_segment
    next_segment, advance = schedule.next_segment, schedule.advance
    dealt, expert_of, pair_at = deal.dealt, deal.expert_of, deal.pair_at
    slot_of = deal.slot_of

    @cuda.jit(device=True, forceinline=True)
    def find_rows(table, slot, work_list, topk_weights, row, sizes, has_weights, role):
        """Write where the rows of a tile lie in x, in units of 16 bytes, for this warp.

        The first one writes besides what the end of the tile needs: pairs, weights, the expert.
        """
        x_columns, x_divisor, num_pairs, max_blocks = sizes
        lane_id = uint32(thread_id() & 31)
        for i in range(row_turns):
            place = uint32(lane_id + i * 32)
            if place < tile_m:
                pair, at = pair_at(work_list, max_blocks, uint32(row + place)), uint32(NO_ROW)
                if pair < num_pairs:
                    at = uint32(uint32(pair // x_divisor) * uint32(x_columns >> 3))
                st_shared_u32(uint32(table + place * 4), at)
                if role == 0:
                    weight = uint32(ONE)
                    if has_weights > 0 and pair < num_pairs:
                        weight = ld_global_cg_u32(topk_weights + (uint64(pair) << 2))
                    st_shared_u32(uint32(slot + place * 4), pair)
                    st_shared_u32(uint32(slot + (place + tile_m) * 4), weight)
        if role == 0 and lane_id == 0:
            st_shared_u32(uint32(slot + tile_m * 8), expert_of(work_list, row))

    @cuda.jit(device=True, forceinline=True)
    def copy_group(to, gmem, places, limit):
        """Begin to copy a lane's pieces of 4 rows; zeros where there is no row or no column."""
        for i in range(LANE_ROWS):
            size_bytes = uint32(0)
            if places[i] < limit:
                size_bytes = uint32(16)
            # the swizzle: piece ^ (row & 7)
            cp_async_16_zfill(
                uint32((to ^ uint32(i * 16)) + i * ROW_BYTES),
                gmem + (uint64(places[i]) << 4),
                size_bytes,
            )

    @cuda.jit(device=True, forceinline=True)
    def gather(x, work_list, topk_weights, k, n, sizes, has_weights, role):
        """Gather x for the stages of all segments of this block, by one of two warps."""
        # what comes before may still write x, and read what lies where this block writes
        griddepcontrol_wait()
        x_columns = sizes[0]
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        lane_id = uint32(thread_id() & 31)
        quarter, piece = uint32(lane_id >> 3), uint32(lane_id & 7)
        table = uint32(smem + rows_offset + role * (tile_m * 4))
        end = uint32(table + tile_m * 4)
        own_rows = uint32(table + role * (own_first_row * 4) + quarter * (LANE_ROWS * 4))
        own_place = uint32(role * (own_panel_bytes + own_first_row * ROW_BYTES))
        own_place = uint32(own_place + quarter * (LANE_ROWS * ROW_BYTES))
        own_place = uint32(smem + own_place + (piece ^ ((quarter & 1) * LANE_ROWS)) * 16)
        own_column = uint32(role * own_column_step + piece * 8)
        k_steps = uint32(k // uint32(tile_k))
        m, tiles, stripe_steps, striped_tiles = dealt()
        tile, k_step, k_stop, left = first_segment(k_steps, stripe_steps, striped_tiles)
        stage, phase = uint32(0), uint32(1)
        turn = uint32(0)
        while tile < tiles:
            row, _ = corner(tile, m, n)
            slot, slot_bar, parity = slot_of(turn)
            if role == 0:
                mbarrier_wait(slot_bar + 8, uint32(parity ^ 1))
            # other lanes have read what they will of the rows before
            bar_warp_sync()
            find_rows(table, slot, work_list, topk_weights, row, sizes, has_weights, role)
            bar_warp_sync()
            if role == 0 and lane_id == 0:
                mbarrier_arrive(slot_bar)
            turn = uint32(turn + 1)
            while k_step < k_stop:
                bar = uint32(bars + stage * 16)
                mbarrier_wait(bar + 8, phase)
                column = uint32(k_step * tile_k + own_column)
                limit = uint32(NO_ROW) if column < x_columns else uint32(0)
                gmem = x + (uint64(column) << 1)
                to, at = uint32(own_place + stage * stage_bytes), own_rows
                while at < end:
                    copy_group(to, gmem, ld_shared_v4(at), limit)
                    to = uint32(to + step * (WARP_ROWS * ROW_BYTES))
                    at = uint32(at + step * (WARP_ROWS * 4))
                cp_async_mbarrier_arrive(bar)
                stage, phase = advance(stage, phase)
                k_step = uint32(k_step + 1)
            m, tiles, _, striped_tiles = dealt()
            tile, k_step, k_stop, left = next_segment(tile, left, k_steps, striped_tiles)
        # who leaves has no copy in flight
        cp_async_commit()
        cp_async_wait(0)

    return gather


def make_copy_expert(config, schedule, deal):
    """Return what fills the ring's stages with packed words, scales and zero points."""
    tile_n, tile_k, group_size = config.tile_n, config.tile_k, config.group_size
    w_offset, stage_bytes, bars_offset = config.w_offset, config.stage_bytes, config.bars_offset
    w_rows, row_bytes = tile_k // 16, tile_n * 8
    own_rows = w_rows // 2
    word_bytes = own_rows * row_bytes
    per_channel = group_size < 0
    copy_word_rows = make_copy_word_rows(config)
    copy_scale_rows, scale_bytes = make_copy_scale_rows(config)
    corner, own_column = schedule.corner, schedule.own_column
    first_segment, next_segment = schedule.first_segment, schedule.next_segment
    advance, dealt, expert_of = schedule.advance, deal.dealt, deal.expert_of

    @cuda.jit(device=True, forceinline=True)
    def copy_expert(packed, scales, zero_points, work_list, n, k, role):
        """Copy half of the rows of words of every stage, and one warp the rest, by one lane."""
        first_row = uint32(role * own_rows)
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        k_steps = uint32(k // uint32(tile_k))
        m, tiles, stripe_steps, striped_tiles = dealt()
        tile, k_step, k_stop, left = first_segment(k_steps, stripe_steps, striped_tiles)
        stage, phase = uint32(0), uint32(1)
        row_step = uint64(n) << 3
        to_first = uint32(smem + w_offset + first_row * row_bytes)
        copied_bytes = uint32(word_bytes)
        if not per_channel and role > 0:
            copied_bytes = uint32(word_bytes + scale_bytes)
        # rows of words, and of scales, of an expert
        expert_rows, groups = uint32(k >> 4), uint32(1)
        if not per_channel:
            groups = uint32(k // uint32(group_size))
        while tile < tiles:
            row, column = corner(tile, m, n)
            column = own_column(column, n)
            expert = expert_of(work_list, row)
            word_row = uint32(uint32(expert * expert_rows) + uint32(k_step * w_rows + first_row))
            gmem = packed + ((uint64(word_row) * uint64(n) + uint64(column)) << 3)
            first_group = uint32(expert * groups)
            while k_step < k_stop:
                bar = uint32(bars + stage * 16)
                mbarrier_wait(bar + 8, phase)
                mbarrier_arrive_expect_tx(bar, copied_bytes)
                to = uint32(stage * stage_bytes)
                copy_word_rows(uint32(to_first + to), gmem, row_step, bar)
                if not per_channel and role > 0:
                    group = uint32(uint32(k_step * tile_k) // uint32(group_size))
                    group = uint32(group + first_group)
                    copy_scale_rows(uint32(smem + to), scales, zero_points, group, n, column, bar)
                gmem = gmem + row_step * uint64(w_rows)
                stage, phase = advance(stage, phase)
                k_step = uint32(k_step + 1)
            m, tiles, _, striped_tiles = dealt()
            tile, k_step, k_stop, left = next_segment(tile, left, k_steps, striped_tiles)
        # not before the launch before has ended: one further on may rely on it
        griddepcontrol_wait()
        griddepcontrol_launch_dependents()

    return copy_expert
