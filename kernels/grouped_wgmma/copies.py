"""The warps that copy: each gathers some rows of x, and one lane of it copies rows of words."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.grouped_wgmma.order import make_order
from ferrum_numba.kernels.prefill.copies import make_copy_scale_rows
from ferrum_numba.kernels.prefill.schedule import ROW_BYTES
from ferrum_numba.kernels.prefill.tile import PANEL_K, PRODUCER_WARPS
from ferrum_numba.ptx.asynchronous import (
    cp_async_16_zfill,
    cp_async_bulk,
    cp_async_commit,
    cp_async_mbarrier_arrive,
    cp_async_wait,
    mbarrier_arrive,
    mbarrier_arrive_expect_tx,
    mbarrier_wait,
)
from ferrum_numba.ptx.memory import ld_global_cg_u32, ld_shared_v2, st_shared_u32
from ferrum_numba.ptx.special import smem_base, thread_id
from ferrum_numba.ptx.sync import (
    bar_warp_sync,
    griddepcontrol_launch_dependents,
    griddepcontrol_wait,
)

# rows that a warp copies together, two a lane: a lane has an eighth of their bytes
CHUNK_ROWS = 8
CHUNK_BYTES = CHUNK_ROWS * ROW_BYTES
# fp32 1
ONE = 0x3F800000


def make_look_up(config, deal):
    """Return (look_up, keep_rows): a tile's pairs, asked for ahead, and what is made of them.

    Each warp has the pairs of the rows that it copies, two a lane at most.
    """
    tile_m, chunks, chunk_step = config.tile_m, config.warp_chunks, config.chunk_step
    own_rows = chunks * CHUNK_ROWS
    expert_offset, rows_offset = config.expert_offset, config.rows_offset
    expert_of, rows_of, pair_at = deal.expert_of, deal.rows_of, deal.pair_at
    two_turns = own_rows > 32
    (_, row_of), ordered = make_order(config), config.short_m > 0

    @cuda.jit(device=True, forceinline=True)
    def place_of(first_chunk, own):
        """Return which row of the tile is a warp's own-th."""
        return uint32(uint32(first_chunk + uint32(own >> 3) * chunk_step) * CHUNK_ROWS + (own & 7))

    @cuda.jit(device=True, forceinline=True)
    def look_up_pair(work_list, first_chunk, own, row, sizes):
        place, pair = place_of(first_chunk, own), sizes[2]
        if own < own_rows and place < tile_m:
            pair = pair_at(work_list, sizes[3], uint32(row + place))
        return pair

    @cuda.jit(device=True, forceinline=True)
    def look_up(work_list, first_chunk, row, sizes):
        """Return the expert of a tile, how many rows it has, and the lane's pairs."""
        if ordered:
            row = row_of(row)
        lane_id = uint32(thread_id() & 31)
        pair = look_up_pair(work_list, first_chunk, lane_id, row, sizes)
        other = pair
        if two_turns:
            other = look_up_pair(work_list, first_chunk, uint32(lane_id + 32), row, sizes)
        return expert_of(work_list, row), rows_of(work_list, sizes[3], row), pair, other

    @cuda.jit(device=True, forceinline=True)
    def keep_row(table, first_chunk, own, pair, sizes):
        """Write where a row of x lies, in units of 16 bytes.

        Of a row without a pair it is the first one: what it is multiplied by is nobody's.
        """
        if own < own_rows:
            at = uint32(0)
            if pair < sizes[2]:
                at = uint32(uint32(pair // sizes[1]) * uint32(sizes[0] >> 3))
            st_shared_u32(uint32(table + own * 4), at)

    @cuda.jit(device=True, forceinline=True)
    def leave_pair(slot, topk_weights, first_chunk, own, pair, sizes, has_weights):
        """Write a row's pair, and its weight, where the end of the tile finds them."""
        place = place_of(first_chunk, own)
        if own < own_rows and place < tile_m:
            weight = uint32(ONE)
            if has_weights > 0 and pair < sizes[2]:
                weight = ld_global_cg_u32(topk_weights + (uint64(pair) << 2))
            st_shared_u32(uint32(slot + place * 4), pair)
            st_shared_u32(uint32(slot + (place + tile_m) * 4), weight)

    @cuda.jit(device=True, forceinline=True)
    def keep_rows(table, first_chunk, found, sizes):
        lane_id = uint32(thread_id() & 31)
        keep_row(table, first_chunk, lane_id, found[2], sizes)
        if two_turns:
            keep_row(table, first_chunk, uint32(lane_id + 32), found[3], sizes)

    @cuda.jit(device=True, forceinline=True)
    def leave_pairs(slot, topk_weights, first_chunk, found, sizes, has_weights):
        lane_id = uint32(thread_id() & 31)
        leave_pair(slot, topk_weights, first_chunk, lane_id, found[2], sizes, has_weights)
        if two_turns:
            own = uint32(lane_id + 32)
            leave_pair(slot, topk_weights, first_chunk, own, found[3], sizes, has_weights)
        if first_chunk == 0 and lane_id == 0:
            st_shared_u32(uint32(slot + expert_offset), found[0])
            st_shared_u32(uint32(slot + rows_offset), found[1])

    return look_up, keep_rows, leave_pairs


def make_copy_rows(config):
    """Return what begins to copy a warp's rows of x for a stage."""
    chunks, chunk_step = config.warp_chunks, config.chunk_step

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
    tile_n, tile_k = config.tile_n, config.tile_k
    stage_bytes, bars_offset, w_offset = config.stage_bytes, config.bars_offset, config.w_offset
    tables_offset, table_bytes = config.tables_offset, config.table_bytes
    tile_m = config.tile_m
    two_panels, panel_bytes = config.panels > 1, tile_m * ROW_BYTES
    row_bytes, own_rows = tile_n * 8, tile_k // 16 // config.word_warps
    x_warps, first_word_warp = config.x_warps, PRODUCER_WARPS - config.word_warps
    all_gather = config.x_warps == PRODUCER_WARPS
    per_channel, group_size = config.group_size < 0, max(config.group_size, 1)
    copy_scale_rows, scale_bytes = make_copy_scale_rows(config)
    corner, own_column, advance = schedule.corner, schedule.own_column, schedule.advance
    first_segment, next_segment = schedule.first_segment, schedule.next_segment
    dealt, slot_of = deal.dealt, deal.slot_of
    look_up, keep_rows, leave_pairs = make_look_up(config, deal)
    copy_rows, own_chunks_of = make_copy_rows(config)

    @cuda.jit(device=True, forceinline=True)
    def places_of(role):
        """Return a warp's first chunk, the lane's places of two rows in it, and its column.

        Of two panels the warps that gather have one each.
        """
        lane_id = uint32(thread_id() & 31)
        panel, first_chunk = uint32(0), role
        if two_panels:
            panel, first_chunk = uint32(role & 1), uint32(0)
        row, piece = uint32(uint32(lane_id >> 3) * 2), uint32(lane_id & 7)
        at = uint32(smem_base() + panel * panel_bytes + first_chunk * CHUNK_BYTES + row * ROW_BYTES)
        # the swizzle: piece ^ (row & 7)
        first = uint32(at + (piece ^ row) * 16)
        second = uint32(at + ROW_BYTES + (piece ^ (row + 1)) * 16)
        return first_chunk, (first, second), uint32(panel * PANEL_K + piece * 8)

    @cuda.jit(device=True, forceinline=True)
    def copy_words(stage, bar, words, row_step, scales, zero_points, group, n, column, part):
        """Copy this warp's rows of words, and one warp the scales, by one lane."""
        copied_bytes = uint32(own_rows * row_bytes)
        if not per_channel and part == 0:
            copied_bytes = uint32(own_rows * row_bytes + scale_bytes)
        mbarrier_arrive_expect_tx(bar, copied_bytes)
        to = uint32(stage + w_offset + part * (own_rows * row_bytes))
        for i in range(own_rows):
            gmem = words + row_step * uint64(i)
            cp_async_bulk(uint32(to + i * row_bytes), gmem, uint32(row_bytes), bar)
        if not per_channel and part == 0:
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
        part = uint32(role - first_word_warp)
        gathers, copies = all_gather or role < x_warps, all_gather or role >= first_word_warp
        table = uint32(smem + tables_offset + role * table_bytes)
        own_table = uint32(table + uint32(lane_id >> 3) * 8)
        k_steps, row_step = uint32(k // uint32(tile_k)), uint64(n) << 3
        groups = uint32(k // uint32(group_size)) if not per_channel else uint32(1)
        m, tiles, stripe_steps, striped_tiles = dealt()
        tile, k_step, k_stop, left = first_segment(k_steps, stripe_steps, striped_tiles)
        stage, phase = uint32(0), uint32(1)
        turn = uint32(0)
        found = (uint32(0), uint32(0), uint32(0), uint32(0))
        if tile < tiles:
            row, _ = corner(tile, m, n)
            found = look_up(work_list, first_chunk, row, sizes)
        # once round the ring all rows are copied: later those without a pair are there to be read
        least = own_chunks_of(first_chunk, uint32(tile_m))
        while tile < tiles:
            _, column = corner(tile, m, n)
            column, (expert, rows, _, _) = own_column(column, n), found
            slot, slot_bar, parity = slot_of(turn)
            # other lanes have read what they will of the rows before
            bar_warp_sync()
            if gathers:
                keep_rows(table, first_chunk, found, sizes)
            own_chunks = own_chunks_of(first_chunk, rows)
            # of two panels one warp's rows are another's too
            leaves = not two_panels or role == 0
            if leaves:
                mbarrier_wait(slot_bar + 8, uint32(parity ^ 1))
                leave_pairs(slot, topk_weights, first_chunk, found, sizes, has_weights)
            bar_warp_sync()
            if leaves and lane_id == 0:
                mbarrier_arrive(slot_bar)
            turn = uint32(turn + 1)
            # the next tile's are on their way while this one's rows are copied
            _, tiles, _, striped_tiles = dealt()
            next_tile, next_first, next_stop, left = next_segment(
                tile, left, k_steps, striped_tiles
            )
            if next_tile < tiles:
                next_row, _ = corner(next_tile, m, n)
                found = look_up(work_list, first_chunk, next_row, sizes)
            word_row = uint32(uint32(expert * (k >> 4)) + uint32(k_step * (tile_k // 16)))
            word_row = uint32(word_row + part * own_rows)
            words = packed + ((uint64(word_row) * uint64(n) + uint64(column)) << 3)
            first_group, x_column = uint32(expert * groups), uint32(k_step * tile_k)
            gmem = x + (uint64(uint32(x_column + column_of_lane)) << 1)
            while k_step < k_stop:
                bar, at = uint32(bars + stage * 16), uint32(stage * stage_bytes)
                mbarrier_wait(bar + 8, phase)
                if copies and lane_id == 0:
                    group = uint32(first_group + uint32(k_step * tile_k) // uint32(group_size))
                    copy_words(
                        uint32(smem + at), bar, words, row_step, scales, zero_points, group, n,
                        column, part,
                    )  # fmt: skip
                if gathers:
                    inside = uint32(k_step * tile_k + column_of_lane) < x_columns
                    size_bytes = uint32(16) if inside else uint32(0)
                    copy_rows(
                        (uint32(to[0] + at), uint32(to[1] + at)), own_table, gmem, size_bytes,
                        own_chunks if own_chunks > least else least,
                    )  # fmt: skip
                    cp_async_mbarrier_arrive(bar)
                words = words + row_step * uint64(tile_k // 16)
                gmem = gmem + uint64(tile_k * 2)
                stage, phase = advance(stage, phase)
                if stage == 0:
                    least = uint32(0)
                k_step = uint32(k_step + 1)
            tile, k_step, k_stop = next_tile, next_first, next_stop
        # who leaves has no copy in flight
        cp_async_commit()
        cp_async_wait(0)
        griddepcontrol_launch_dependents()

    return fill
