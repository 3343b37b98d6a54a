"""What becomes of a tile of pairs: each row is rounded and written where its pair says."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.division import ceil_div
from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.grouped_wgmma.steps import store_pairs
from ferrum_numba.kernels.prefill.result import make_load_strips, make_pieces
from ferrum_numba.ptx.memory import ld_shared_u32, st_global_v4
from ferrum_numba.ptx.special import smem_base, thread_id
from ferrum_numba.ptx.sync import bar_sync


def make_store_pairs(config, schedule, rows):
    """Return what writes the first `rows` rows of a tile.

    A warpgroup's columns leave together, `part_rows` rows at once.
    """
    tile_m, strips, gated = config.tile_m, config.strips, config.gated
    out_row_bytes, strip_bytes = config.out_row_bytes, config.strip_bytes
    # columns of the weight for one of out, and 16-byte pieces of a row of a warpgroup's
    ratio = 2 if gated else 1
    out_pieces = 4 * strips * strip_bytes // 16
    rows_at_once = 128 // out_pieces
    out_offset, part_bytes = config.out_offset, config.part_bytes
    part_rows = min(rows, config.part_rows)
    parts, turns = ceil_div(rows, part_rows), ceil_div(part_rows, rows_at_once)
    expert_offset = config.expert_offset
    half = HALVES[config.dtype]
    store0, store1, store2, store3 = (
        store_pairs(rows, out_row_bytes, half, gated, i * part_rows, min(rows, (i + 1) * part_rows))
        for i in range(4)
    )
    corner, own_column = schedule.corner, schedule.own_column
    load_strips = make_load_strips(config)
    find_piece, load_piece = make_pieces(config, strip_bytes)

    @cuda.jit(device=True, forceinline=True)
    def stage_strip(part, to, acc, columns, weights):
        """Round a part's rows of a strip into shared memory, transposed."""
        scale, shift = columns
        if part == 0:
            store0(to, acc, scale, shift, weights)
        elif part == 1:
            store1(to, acc, scale, shift, weights)
        elif part == 2:
            store2(to, acc, scale, shift, weights)
        else:
            store3(to, acc, scale, shift, weights)

    @cuda.jit(device=True, forceinline=True)
    def find_stage(tid):
        """Return where a warpgroup's rows lie on their way out, and a lane's place among them."""
        stage = uint32(smem_base() + out_offset + (tid >> 7) * part_bytes)
        to = uint32(stage + ((tid >> 5) & 3) * (strip_bytes * strips))
        if gated:
            return stage, uint32(to + (tid & 15) * out_row_bytes)
        to = uint32(to + (((tid >> 4) & 1) * 8 + (tid & 7)) * out_row_bytes)
        return stage, uint32(to + ((tid >> 3) & 1) * 16)

    @cuda.jit(device=True, forceinline=True)
    def write_rows(part, slot, out, column, nominal, sizes):
        """Write a part's rows from shared memory, 16 bytes a thread, where their pairs say."""
        out_columns, num_pairs = sizes
        # found here and not before: the accumulators leave no registers for it
        tid = thread_id()
        thread, stage = uint32(tid & 127), find_stage(tid)[0]
        row, piece = uint32(thread // uint32(out_pieces)), uint32(thread % uint32(out_pieces))
        start_row, places = uint32(stage + row * out_row_bytes), find_piece(piece)
        column = uint32(uint32(column + (tid >> 7) * (64 * strips)) // uint32(ratio) + piece * 8)
        # what the tile before has too is that tile's to write
        inside = column >= uint32(nominal // uint32(ratio)) and column < out_columns
        gmem = out + (uint64(column) << 1)
        own_rows = part_rows if part + 1 < parts else rows - (parts - 1) * part_rows
        for i in range(turns):
            place = uint32(row + i * rows_at_once)
            if inside and place < own_rows:
                pair = ld_shared_u32(uint32(slot + (place + part * part_rows) * 4))
                if pair < num_pairs:
                    at = uint32(start_row + i * (rows_at_once * out_row_bytes))
                    to = gmem + ((uint64(pair) * uint64(out_columns)) << 1)
                    st_global_v4(to, load_piece(at, places))

    @cuda.jit(device=True, forceinline=True)
    def store_part(part, acc, columns, slot, out, target):
        """Round a part of the rows, and write them: registers -> smem as rows -> gmem."""
        column, nominal, sizes = target
        tid = thread_id()
        warpgroup, to = uint32(tid >> 7), find_stage(tid)[1]
        weights = uint32(slot + (tile_m * 4 + part * (part_rows * 4)) + (tid & 3) * 8)
        bar_sync(uint32(1 + warpgroup), uint32(128))  # what was here before has left
        stage_strip(part, to, acc[0], columns[0], weights)
        if strips > 1:
            stage_strip(part, uint32(to + strip_bytes), acc[1], columns[1], weights)
        bar_sync(uint32(1 + warpgroup), uint32(128))
        write_rows(part, slot, out, column, nominal, sizes)

    @cuda.jit(device=True, forceinline=True)
    def store_tile(acc, out, scales, bias, slot, tile, sizes, has_bias):
        """Write a tile, part after part.

        slot: where its pairs, their weights, its expert and its rows lie
        """
        m, n, out_columns, num_pairs = sizes
        _, nominal = corner(tile, m, n)
        column = own_column(nominal, n)
        slab = (uint64(ld_shared_u32(uint32(slot + expert_offset))) * uint64(n)) << 1
        columns = load_strips(scales + slab, bias + slab, column, has_bias)
        target = (column, nominal, (out_columns, num_pairs))
        store_part(0, acc, columns, slot, out, target)
        if parts > 1:
            store_part(1, acc, columns, slot, out, target)
        if parts > 2:
            store_part(2, acc, columns, slot, out, target)
        if parts > 3:
            store_part(3, acc, columns, slot, out, target)

    return store_tile
