"""The warps that copy: each gathers some rows of x, and one lane of it copies rows of words."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.division import ceil_div
from ferrum_numba.kernels.prefill.copies import make_copy_scale_rows
from ferrum_numba.kernels.prefill.schedule import ROW_BYTES
from ferrum_numba.kernels.prefill.tile import PANEL_K, PRODUCER_WARPS
from ferrum_numba.ptx.asynchronous import (
    cp_async_16_zfill,
    cp_async_bulk,
    cp_async_commit,
    cp_async_wait,
    mbarrier_arrive,
    mbarrier_expect_tx,
    mbarrier_wait,
)
from ferrum_numba.ptx.memory import ld_global_cg_u32, ld_shared_v2, st_shared_u32
from ferrum_numba.ptx.special import smem_base, thread_id
from ferrum_numba.ptx.sync import (
    bar_warp_sync,
    fence_proxy_async_shared,
    griddepcontrol_launch_dependents,
    griddepcontrol_wait,
)

# rows that a warp copies together, two a lane: a lane has an eighth of their bytes
CHUNK_ROWS = 8
CHUNK_BYTES = CHUNK_ROWS * ROW_BYTES
# fp32 1
ONE = 0x3F800000


def make_find_rows(config, deal):
    """Return what looks up a tile's pairs: own rows for each warp, the rest for its end."""
    tile_m, chunks, chunk_step = config.tile_m, config.warp_chunks, config.chunk_step
    own_turns, row_turns = ceil_div(chunks * CHUNK_ROWS, 32), ceil_div(tile_m, 32)
    expert_of, pair_at = deal.expert_of, deal.pair_at

    @cuda.jit(device=True, forceinline=True)
    def find_rows(table, first_chunk, work_list, row, sizes):
        """Write where the rows of x lie that this warp copies, in units of 16 bytes.

        Of a row without a pair it is the first one: what it is multiplied by is nobody's.
        """
        x_columns, x_divisor, num_pairs, max_blocks = sizes
        lane_id = uint32(thread_id() & 31)
        for i in range(own_turns):
            own = uint32(lane_id + i * 32)
            chunk = uint32(first_chunk + uint32(own >> 3) * chunk_step)
            place = uint32(chunk * CHUNK_ROWS + (own & 7))
            if own < uint32(chunks * CHUNK_ROWS) and place < tile_m:
                pair, at = pair_at(work_list, max_blocks, uint32(row + place)), uint32(0)
                if pair < num_pairs:
                    at = uint32(uint32(pair // x_divisor) * uint32(x_columns >> 3))
                st_shared_u32(uint32(table + own * 4), at)

    @cuda.jit(device=True, forceinline=True)
    def leave_pairs(slot, work_list, topk_weights, row, sizes, has_weights):
        """Write what the end of a tile needs: pairs, their weights, the expert."""
        _, _, num_pairs, max_blocks = sizes
        lane_id = uint32(thread_id() & 31)
        for i in range(row_turns):
            place = uint32(lane_id + i * 32)
            if place < tile_m:
                pair, weight = pair_at(work_list, max_blocks, uint32(row + place)), uint32(ONE)
                if has_weights > 0 and pair < num_pairs:
                    weight = ld_global_cg_u32(topk_weights + (uint64(pair) << 2))
                st_shared_u32(uint32(slot + place * 4), pair)
                st_shared_u32(uint32(slot + (place + tile_m) * 4), weight)
        if lane_id == 0:
            st_shared_u32(uint32(slot + tile_m * 8), expert_of(work_list, row))

    return find_rows, leave_pairs


def make_copy_rows(config):
    """Return what begins to copy a warp's rows of x for a stage."""
    tile_m, chunks, chunk_step = config.tile_m, config.warp_chunks, config.chunk_step

    @cuda.jit(device=True, forceinline=True)
    def copy_rows(to, table, gmem, size_bytes, own_chunks):
        """Copy two rows a lane of each chunk that has rows.

        to: of the lane's first row and of its second, in the first chunk
        """
        first, second = to
        for i in range(chunks):
            if uint32(i) < own_chunks:
                upper, lower = ld_shared_v2(uint32(table + i * (CHUNK_ROWS * 4)))
                place = uint32(i * chunk_step * CHUNK_BYTES)
                cp_async_16_zfill(uint32(first + place), gmem + (uint64(upper) << 4), size_bytes)
                cp_async_16_zfill(uint32(second + place), gmem + (uint64(lower) << 4), size_bytes)

    @cuda.jit(device=True, forceinline=True)
    def own_chunks_of(first_chunk, rows):
        """Return how many of a warp's chunks have rows."""
        used = uint32(uint32(rows + (CHUNK_ROWS - 1)) // uint32(CHUNK_ROWS))
        left = uint32(used - first_chunk) if used > first_chunk else uint32(0)
        return uint32(uint32(left + (chunk_step - 1)) // uint32(chunk_step))

    return copy_rows, own_chunks_of


def make_fill(config, schedule, deal):
    """Return what fills the ring's stages, segment after segment, by one of the copying warps."""
    tile_n, tile_k, num_stages = config.tile_n, config.tile_k, config.num_stages
    stage_bytes, bars_offset, w_offset = config.stage_bytes, config.bars_offset, config.w_offset
    tables_offset, table_bytes = config.tables_offset, config.table_bytes
    tile_m, lag = config.tile_m, config.lag
    two_panels, panel_bytes = config.panels > 1, tile_m * ROW_BYTES
    row_bytes, own_rows = tile_n * 8, tile_k // 16 // PRODUCER_WARPS
    per_channel, group_size = config.group_size < 0, max(config.group_size, 1)
    copy_scale_rows, scale_bytes = make_copy_scale_rows(config)
    corner, own_column, advance = schedule.corner, schedule.own_column, schedule.advance
    first_segment, next_segment = schedule.first_segment, schedule.next_segment
    dealt, expert_of, rows_of, slot_of = deal.dealt, deal.expert_of, deal.rows_of, deal.slot_of
    find_rows, leave_pairs = make_find_rows(config, deal)
    copy_rows, own_chunks_of = make_copy_rows(config)

    @cuda.jit(device=True, forceinline=True)
    def pass_on(bars, stage, back):
        """Say that this warp's part of the stage so far back is there."""
        # wgmma reads through another proxy what lanes have copied
        fence_proxy_async_shared()
        bar_warp_sync()
        stage = uint32(stage - back) if stage >= back else uint32(stage + (num_stages - back))
        if uint32(thread_id() & 31) == 0:
            mbarrier_arrive(uint32(bars + stage * 16))

    @cuda.jit(device=True, forceinline=True)
    def places_of(role):
        """Return a warp's first chunk, the lane's places of two rows in it, and its column.

        Of two panels the warps have one each, of half of the chunks.
        """
        lane_id = uint32(thread_id() & 31)
        panel, first_chunk = uint32(0), role
        if two_panels:
            panel, first_chunk = uint32(role & 1), uint32(role >> 1)
        row, piece = uint32(uint32(lane_id >> 3) * 2), uint32(lane_id & 7)
        at = uint32(smem_base() + panel * panel_bytes + first_chunk * CHUNK_BYTES + row * ROW_BYTES)
        # the swizzle: piece ^ (row & 7)
        first = uint32(at + (piece ^ row) * 16)
        second = uint32(at + ROW_BYTES + (piece ^ (row + 1)) * 16)
        return first_chunk, (first, second), uint32(panel * PANEL_K + piece * 8)

    @cuda.jit(device=True, forceinline=True)
    def copy_words(stage, bar, words, row_step, scales, zero_points, group, n, column, role):
        """Copy this warp's rows of words, and one warp the scales, by one lane."""
        copied_bytes = uint32(own_rows * row_bytes)
        if not per_channel and role == 0:
            copied_bytes = uint32(own_rows * row_bytes + scale_bytes)
        mbarrier_expect_tx(bar, copied_bytes)
        to = uint32(stage + w_offset + role * (own_rows * row_bytes))
        cp_async_bulk(to, words, uint32(row_bytes), bar)
        if own_rows == 2:
            cp_async_bulk(to + row_bytes, words + row_step, uint32(row_bytes), bar)
        if not per_channel and role == 0:
            copy_scale_rows(stage, scales, zero_points, group, n, column, bar)

    @cuda.jit(device=True, forceinline=True)
    def fill(operands, work_list, topk_weights, k, n, sizes, has_weights, role):
        """Fill the ring for all segments of this block."""
        # what comes before may still write x, and read what lies where this block writes
        griddepcontrol_wait()
        x, packed, scales, zero_points = operands
        smem, x_columns = smem_base(), sizes[0]
        bars = uint32(smem + bars_offset)
        lane_id = uint32(thread_id() & 31)
        first_chunk, to, column_of_lane = places_of(role)
        table = uint32(smem + tables_offset + role * table_bytes)
        own_table = uint32(table + uint32(lane_id >> 3) * 8)
        k_steps, row_step = uint32(k // uint32(tile_k)), uint64(n) << 3
        groups = uint32(k // uint32(group_size)) if not per_channel else uint32(1)
        m, tiles, stripe_steps, striped_tiles = dealt()
        tile, k_step, k_stop, left = first_segment(k_steps, stripe_steps, striped_tiles)
        stage, phase = uint32(0), uint32(1)
        # stages that are copied, or being so, of which nobody knows yet
        turn, behind = uint32(0), uint32(0)
        # once round the ring all rows are copied: later those without a pair are there to be read
        least = own_chunks_of(first_chunk, uint32(tile_m))
        while tile < tiles:
            row, column = corner(tile, m, n)
            column, expert = own_column(column, n), expert_of(work_list, row)
            # other lanes have read what they will of the rows before
            bar_warp_sync()
            find_rows(table, first_chunk, work_list, row, sizes)
            own_chunks = own_chunks_of(first_chunk, rows_of(work_list, sizes[3], row))
            if role == 0:
                slot, slot_bar, parity = slot_of(turn)
                mbarrier_wait(slot_bar + 8, uint32(parity ^ 1))
                leave_pairs(slot, work_list, topk_weights, row, sizes, has_weights)
            bar_warp_sync()
            if role == 0 and lane_id == 0:
                mbarrier_arrive(slot_of(turn)[1])
            turn = uint32(turn + 1)
            word_row = uint32(uint32(expert * (k >> 4)) + uint32(k_step * (tile_k // 16)))
            word_row = uint32(word_row + role * own_rows)
            words = packed + ((uint64(word_row) * uint64(n) + uint64(column)) << 3)
            first_group, x_column = uint32(expert * groups), uint32(k_step * tile_k)
            gmem = x + (uint64(uint32(x_column + column_of_lane)) << 1)
            while k_step < k_stop:
                bar, at = uint32(bars + stage * 16), uint32(stage * stage_bytes)
                mbarrier_wait(bar + 8, phase)
                if lane_id == 0:
                    group = uint32(first_group + uint32(k_step * tile_k) // uint32(group_size))
                    copy_words(
                        uint32(smem + at), bar, words, row_step, scales, zero_points, group, n,
                        column, role,
                    )  # fmt: skip
                inside = uint32(k_step * tile_k + column_of_lane) < x_columns
                size_bytes = uint32(16) if inside else uint32(0)
                copy_rows(
                    (uint32(to[0] + at), uint32(to[1] + at)), own_table, gmem, size_bytes,
                    own_chunks if own_chunks > least else least,
                )  # fmt: skip
                cp_async_commit()
                behind = uint32(behind + 1)
                if behind > lag:
                    cp_async_wait(lag)
                    pass_on(bars, stage, lag)
                    behind = uint32(lag)
                words = words + row_step * uint64(tile_k // 16)
                gmem = gmem + uint64(tile_k * 2)
                stage, phase = advance(stage, phase)
                if stage == 0:
                    least = uint32(0)
                k_step = uint32(k_step + 1)
            # the rows of the next tile are looked up now: nobody shall wait for that
            cp_async_wait(0)
            while behind > 0:
                pass_on(bars, stage, behind)
                behind = uint32(behind - 1)
            m, tiles, _, striped_tiles = dealt()
            tile, k_step, k_stop, left = next_segment(tile, left, k_steps, striped_tiles)
        griddepcontrol_launch_dependents()

    return fill
