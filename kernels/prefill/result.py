"""What becomes of prefill's sums: added over the blocks, rounded, written."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.division import ceil_div
from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.prefill.steps import store_accumulator_transposed
from ferrum_numba.kernels.shared.tile import add_tile, store_tile
from ferrum_numba.ptx.convert import bf16_to_f32, f16_to_f32
from ferrum_numba.ptx.memory import (
    ld_acquire_gpu,
    ld_global_nc_u16,
    ld_shared_u32,
    red_add_release_gpu,
    st_global_u32,
    st_global_v4,
)
from ferrum_numba.ptx.special import cluster_ctarank, smem_base, thread_id
from ferrum_numba.ptx.sync import bar_sync, cluster_arrive, cluster_wait, mapa


def make_sum_of_blocks(config, schedule, rows):
    """Return what adds the sums of all blocks that share a tile: of its first `rows` rows."""
    strips, acc_floats = config.strips, rows // 2
    slot_bytes, slot_acc_bytes = config.tile_m * config.tile_n * 4, acc_floats * 512
    pair, unit_blocks = config.pair, config.unit_blocks
    unit_index = schedule.unit_index
    store_partial = store_tile("global", acc_floats, 2048)
    add_partial = add_tile("global", acc_floats, 2048)

    @cuda.jit(device=True, forceinline=True)
    def store_sums(gmem, acc):
        store_partial(gmem, acc[0])
        if strips > 1:
            store_partial(gmem + slot_acc_bytes, acc[1])

    @cuda.jit(device=True, forceinline=True)
    def add_sums(gmem, acc):
        acc0 = add_partial(gmem, acc[0])
        if strips == 1:
            return (acc0,)
        return acc0, add_partial(gmem + slot_acc_bytes, acc[1])

    @cuda.jit(device=True, forceinline=True)
    def sum_of_blocks(acc, partials, counters, tile, k_steps, stripe_steps, k_first):
        """Return the sum, in the units' order, if this one has a tile's first k.

        It waits for blocks of smaller index than its own in the grid, which began no later.
        """
        warpgroup = uint32(thread_id() >> 7)
        thread, unit = uint32(thread_id() & 127), unit_index()
        rank = uint32(0)
        if pair:
            rank = cluster_ctarank()
        which = uint32(uint32(tile * unit_blocks + rank) * 2 + warpgroup)
        counter = counters + (uint64(which) << 2)
        slot = uint32(unit * unit_blocks + rank)
        place = partials + uint64(uint32(warpgroup * (strips * slot_acc_bytes) + thread * 16))
        place = place + uint64(slot) * uint64(slot_bytes)
        if k_first > 0:
            store_sums(place, acc)
            bar_sync(uint32(1 + warpgroup), uint32(128))
            # what it releases is what all threads wrote before the barrier
            if thread == 0:
                red_add_release_gpu(counter, uint32(1))
        else:
            others = uint32(uint32(uint32(uint32(tile + 1) * k_steps - 1) // stripe_steps) - unit)
            if thread == 0:
                while ld_acquire_gpu(counter) != others:
                    pass
                st_global_u32(counter, uint32(0))  # ready for the next launch
            bar_sync(uint32(1 + warpgroup), uint32(128))
            while others > 0:
                place = place + uint64(unit_blocks * slot_bytes)
                acc = add_sums(place, acc)
                others = uint32(others - 1)
        return acc

    return sum_of_blocks


def make_sum_of_cluster(config):
    """Return what adds the sums of a cluster's blocks: those of its share of the rows a block."""
    cluster, strips, sums_offset = config.cluster, config.strips, config.sums_offset
    acc_floats = config.tile_m // 2
    share = acc_floats // cluster
    strip_bytes, slot_bytes = share * 512, 2 * config.strips * share * 512
    send0, send1, send2, send3 = (
        store_tile("cluster", acc_floats, 2048, r % cluster * share, (r % cluster + 1) * share)
        for r in range(4)
    )
    take0, take1, take2, take3 = (
        add_tile("shared", acc_floats, 2048, r % cluster * share, (r % cluster + 1) * share)
        for r in range(4)
    )

    @cuda.jit(device=True, forceinline=True)
    def send_share(rank, to, acc):
        if rank == 0:
            send0(to, acc)
        elif rank == 1:
            send1(to, acc)
        elif rank == 2:
            send2(to, acc)
        else:
            send3(to, acc)

    @cuda.jit(device=True, forceinline=True)
    def send(rank, own, place, acc):
        """Write what is a block's share to its slot for this one."""
        if own != rank:
            slot = own
            if own > rank:
                slot = uint32(own - 1)
            to = mapa(uint32(place + slot * slot_bytes), uint32(rank))
            send_share(rank, to, acc[0])
            if strips > 1:
                send_share(rank, uint32(to + strip_bytes), acc[1])

    @cuda.jit(device=True, forceinline=True)
    def take_share(rank, place, acc):
        """Add the others' sums, in their order."""
        for i in range(cluster - 1):
            at = uint32(place + i * slot_bytes)
            if rank == 0:
                acc = take0(at, acc)
            elif rank == 1:
                acc = take1(at, acc)
            elif rank == 2:
                acc = take2(at, acc)
            else:
                acc = take3(at, acc)
        return acc

    @cuda.jit(device=True, forceinline=True)
    def take(rank, place, acc):
        acc0 = take_share(rank, place, acc[0])
        if strips == 1:
            return (acc0,)
        return acc0, take_share(rank, uint32(place + strip_bytes), acc[1])

    @cuda.jit(device=True, forceinline=True)
    def sum_of_cluster(acc):
        """Return the sums of the rows that are this block's share, rank by rank; others are not."""
        tid, own = thread_id(), cluster_ctarank()
        place = uint32(smem_base() + sums_offset)
        place = uint32(place + (tid >> 7) * (strips * strip_bytes) + (tid & 127) * 16)
        # all blocks have begun
        cluster_wait()
        send(0, own, place, acc)
        send(1, own, place, acc)
        if cluster > 2:
            send(2, own, place, acc)
            send(3, own, place, acc)
        cluster_arrive()
        cluster_wait()
        if own == 0:
            acc = take(0, place, acc)
        elif own == 1:
            acc = take(1, place, acc)
        elif cluster > 2 and own == 2:
            acc = take(2, place, acc)
        elif cluster > 2:
            acc = take(3, place, acc)
        return acc

    return sum_of_cluster


def make_load_strips(config):
    """Return what loads the factors and the bias of a warp's columns."""
    strips, per_channel, places = config.strips, config.group_size < 0, 4 // config.strips
    widen = {"fp16": f16_to_f32, "bf16": bf16_to_f32}[config.dtype]

    @cuda.jit(device=True, forceinline=True)
    def load_pair(gmem, column, strip):
        """Return the fp32 values of columns lane / 4 and lane / 4 + 8 of a strip.

        They lie where `permute_scales` of one group puts them.
        """
        g = uint32(uint32(thread_id() & 31) >> 2)
        place = uint32(column + (strip >> 1) * 32 + (g >> 1) * 8 + (strip & 1) * 4 + (g & 1))
        at = gmem + (uint64(place) << 1)
        return widen(ld_global_nc_u16(at)), widen(ld_global_nc_u16(at + 4))

    @cuda.jit(device=True, forceinline=True)
    def load_strip(scales, bias, column, strip, has_bias):
        """Return what the sums of a strip are multiplied by, and what is added."""
        scale = (float32(1), float32(1))
        if per_channel:
            scale = load_pair(scales, column, strip)
        shift = (float32(0), float32(0))
        if has_bias > 0:
            shift = load_pair(bias, column, strip)
        return scale, shift

    @cuda.jit(device=True, forceinline=True)
    def load_strips(scales, bias, column, has_bias):
        """Return `load_strip` of each strip that the lane has in its warp."""
        tid = thread_id()
        place = uint32(uint32((tid >> 5) + ((tid >> 3) & 3)) % uint32(places))
        strip = uint32(uint32(((tid >> 5) * strips) & uint32(0xFFFFFFFC)) + place * strips)
        first = load_strip(scales, bias, column, strip, has_bias)
        if strips == 1:
            return (first,)
        return first, load_strip(scales, bias, column, uint32(strip + 1), has_bias)

    return load_strips


def make_pieces(config, strip_bytes):
    """Return (find_piece, load_piece): of a row on its way out, 16 bytes.

    strip_bytes: of a strip, 32 as it is, 16 where gate and up have become one
    """
    strips, places = config.strips, 4 // config.strips
    strip_pieces = strip_bytes // 16
    tile_pieces, tile_bytes, place_bytes = 4 * strip_pieces, 4 * strip_bytes, strip_bytes * strips

    @cuda.jit(device=True, forceinline=True)
    def load_piece(start, places_of):
        """Return eight columns of a row, two from each place that a warp's lanes left them in."""
        first, second, third, fourth = places_of
        return (
            ld_shared_u32(start + first),
            ld_shared_u32(start + second),
            ld_shared_u32(start + third),
            ld_shared_u32(start + fourth),
        )

    @cuda.jit(device=True, forceinline=True)
    def find_piece(piece):
        """Return where in a row the four words of eight columns lie; see `load_strips`."""
        strip = uint32(uint32(piece % uint32(tile_pieces)) // uint32(strip_pieces))
        half = uint32(piece % uint32(strip_pieces))
        place, rest = uint32(strip // uint32(strips)), uint32(strip % uint32(strips))
        at = uint32(
            uint32(piece // uint32(tile_pieces)) * tile_bytes + rest * strip_bytes + half * 16
        )
        # a lane's place is its warp's and lane / 8 further
        return (
            uint32(at + place * place_bytes),
            uint32(at + uint32(uint32(place + 3) % uint32(places)) * place_bytes + 4),
            uint32(at + uint32(uint32(place + 2) % uint32(places)) * place_bytes + 8),
            uint32(at + uint32(uint32(place + 1) % uint32(places)) * place_bytes + 12),
        )

    return find_piece, load_piece


def make_store_result(config, schedule):
    """Return what writes a tile; a warpgroup's columns leave together, `part_rows` rows at once."""
    tile_m, strips, out_row_bytes = config.tile_m, config.strips, config.out_row_bytes
    cluster = config.cluster
    find_piece, load_piece = make_pieces(config, 32)
    out_pieces, rows_at_once = 8 * strips, 16 // strips
    out_offset, part_rows, part_bytes = config.out_offset, config.part_rows, config.part_bytes
    parts = ceil_div(tile_m, part_rows)
    store_out0, store_out1, store_out2, store_out3 = (
        store_accumulator_transposed(
            tile_m,
            out_row_bytes,
            HALVES[config.dtype],
            i * part_rows,
            min(tile_m, (i + 1) * part_rows),
        )
        for i in range(4)
    )
    corner, own_column = schedule.corner, schedule.own_column
    load_strips = make_load_strips(config)

    @cuda.jit(device=True, forceinline=True)
    def stage_strip(part, to, acc, columns):
        """Round a part's rows of a strip into shared memory, transposed."""
        scale, shift = columns
        if part == 0:
            store_out0(to, acc, scale, shift)
        elif part == 1:
            store_out1(to, acc, scale, shift)
        elif part == 2:
            store_out2(to, acc, scale, shift)
        else:
            store_out3(to, acc, scale, shift)

    @cuda.jit(device=True, forceinline=True)
    def store_part(part, acc, columns, smem, gmem, target):
        """Round a part of the rows, and write them: registers -> smem as rows -> gmem."""
        to, start_row, piece = smem
        inside, row, m, step = target
        warpgroup = uint32(thread_id() >> 7)
        bar_sync(uint32(1 + warpgroup), uint32(128))  # what was here before has left
        stage_strip(part, to, acc[0], columns[0])
        if strips > 1:
            stage_strip(part, uint32(to + 32), acc[1], columns[1])
        bar_sync(uint32(1 + warpgroup), uint32(128))
        rows = part_rows if part + 1 < parts else tile_m - (parts - 1) * part_rows
        for i in range(rows // rows_at_once):
            if inside and uint32(row + i * rows_at_once) < m:
                st_global_v4(
                    gmem, load_piece(start_row + i * (rows_at_once * out_row_bytes), piece)
                )
            gmem = gmem + step
        return gmem, uint32(row + rows)

    @cuda.jit(device=True, forceinline=True)
    def store_result(acc, out, scales, bias, tile, sizes, has_bias):
        """Write a tile, part after part."""
        m, n, out_columns = sizes
        row, nominal = corner(tile, m, n)
        tid = thread_id()
        warpgroup, lane_id, thread = uint32(tid >> 7), uint32(tid & 31), uint32(tid & 127)
        column = own_column(nominal, n)
        columns = load_strips(scales, bias, column, has_bias)
        stage = uint32(smem_base() + out_offset + warpgroup * part_bytes)
        to = uint32(((lane_id >> 4) * 8 + (lane_id & 7)) * out_row_bytes)
        to = uint32(stage + to + ((tid >> 5) & 3) * (32 * strips) + ((lane_id >> 3) & 1) * 16)
        r, c = uint32(thread // uint32(out_pieces)), uint32(thread % uint32(out_pieces))
        smem = (to, uint32(stage + r * out_row_bytes), find_piece(c))
        column = uint32(column + warpgroup * (64 * strips) + c * 8)
        row = uint32(row + r)
        # what the tile before has too is that tile's to write
        inside = column >= nominal and column < out_columns
        gmem = out + ((uint64(row) * out_columns + uint64(column)) << 1)
        step = uint64(out_columns) * uint64(rows_at_once * 2)
        if cluster > 1:
            # a block's share is the part of its rank
            rank = cluster_ctarank()
            row = uint32(row + rank * part_rows)
            gmem = gmem + step * uint64(uint32(rank * (part_rows // rows_at_once)))
            target = (inside, row, m, step)
            if rank == 0:
                store_part(0, acc, columns, smem, gmem, target)
            elif rank == 1:
                store_part(1, acc, columns, smem, gmem, target)
            elif cluster > 2 and rank == 2:
                store_part(2, acc, columns, smem, gmem, target)
            elif cluster > 2:
                store_part(3, acc, columns, smem, gmem, target)
            return
        gmem, row = store_part(0, acc, columns, smem, gmem, (inside, row, m, step))
        if parts > 1:
            gmem, row = store_part(1, acc, columns, smem, gmem, (inside, row, m, step))
        if parts > 2:
            gmem, row = store_part(2, acc, columns, smem, gmem, (inside, row, m, step))
        if parts > 3:
            store_part(3, acc, columns, smem, gmem, (inside, row, m, step))

    return store_result
