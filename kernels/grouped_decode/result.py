"""What becomes of grouped_decode's sums: added over warps and blocks, rounded, written by pairs."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.shared.columns import make_complete, make_load_factors, store_columns
from ferrum_numba.kernels.shared.handoff import PIECE_BYTES, put_slot, take_slots
from ferrum_numba.kernels.shared.silu import silu_mul
from ferrum_numba.kernels.shared.tile import add_tile
from ferrum_numba.ptx.convert import PACK
from ferrum_numba.ptx.memory import ld_global_f32, st_global_v2, st_shared_v4_f32
from ferrum_numba.ptx.special import block_id, block_id_y, smem_base, thread_id

# sums of other blocks that a lane waits for together
SLOTS_AT_ONCE = 4


def make_write(config, schedule):
    """Return what writes four columns of a row of out, whose pair says where.

    write(first, second, row, piece, place, buffers, work, sizes): first are the sums of the
    columns, gated those of gate, and second those of up
    """
    tile_n, gated = config.tile_n, config.gated
    per_channel = config.half_groups == 0
    unit_columns = tile_n // 2 if gated else tile_n
    pair_of = schedule.pair_of
    load_factors = make_load_factors(config.dtype, per_channel)
    complete = make_complete(per_channel)
    pack_pair = PACK[HALVES[config.dtype]]

    @cuda.jit(device=True, forceinline=True)
    def scaled(sums, buffers, expert, column, sizes):
        """Return four columns' sums, scaled if nobody did, plus the bias."""
        scales, bias, _, _, _ = buffers
        n, _, _, has_bias, _ = sizes
        slab = uint64(expert) * uint64(uint32(n * 2))
        factors, shifts = load_factors(scales + slab, bias + slab, column, has_bias)
        return complete(sums, factors, shifts, has_bias)

    @cuda.jit(device=True, forceinline=True)
    def write(first, second, row, piece, place, buffers, work, sizes):
        """Write four columns of a row.

        piece: which four of the slice's columns of out
        place: the block of the list, the slice's number in it, and the expert
        """
        block, slice_of, expert = place
        _, _, out, topk_weights, _ = buffers
        _, _, out_columns, _, has_weights = sizes
        column = uint32(slice_of * tile_n + piece * 4)
        if gated:
            column = uint32(slice_of * tile_n + (piece >> 1) * 16 + (piece & 1) * 4)
        a, b, c, d = scaled(first, buffers, expert, column, sizes)
        if gated:
            e, f, g, h = scaled(second, buffers, expert, uint32(column + 8), sizes)
            a, b, c, d = silu_mul(a, e), silu_mul(b, f), silu_mul(c, g), silu_mul(d, h)
        pair = pair_of(work, block, row)
        if has_weights > 0:
            weight = ld_global_f32(topk_weights + (uint64(pair) << 2))
            a, b, c, d = a * weight, b * weight, c * weight, d * weight
        to_column = uint32(slice_of * unit_columns + piece * 4)
        if to_column < out_columns:
            to = out + ((uint64(pair) * uint64(out_columns) + uint64(to_column)) << 1)
            st_global_v2(to, (pack_pair(a, b), pack_pair(c, d)))

    return write


def make_sums(config):
    """Return what adds up four columns of a row, as the warps along K have them."""
    warps_k = config.warps_k
    sums_offset, sums_row_bytes = config.sums_offset, config.sums_row_bytes
    warp_sums_bytes = config.tile_m * sums_row_bytes
    add_sums = add_tile("shared", 4, 16)

    @cuda.jit(device=True, forceinline=True)
    def of_warps(smem, row, item):
        at = uint32(smem + sums_offset + row * sums_row_bytes + item * 16)
        zero = float32(0)
        total = (zero, zero, zero, zero)
        for i in range(warps_k):
            total = add_sums(at + i * warp_sums_bytes, total)
        return total

    return of_warps


def make_item_of(config):
    """Return which four columns of a row of sums a piece of out begins with."""
    gated = config.gated

    @cuda.jit(device=True, forceinline=True)
    def item(piece):
        if gated:
            return uint32((piece >> 1) * 4 + (piece & 1))
        return piece

    return item


def make_finish(config, schedule):
    """Return what sums a slice over the warps along K, and writes it or hands it on.

    finish(acc, slice_id, k_stop, buffers, work, sizes), take_over(buffers, work, sizes)

    buffers: scales, bias, out, topk_weights, slots
    sizes:   n, k, out_columns, has_bias, has_weights
    """
    num_threads, row_items, gated = config.num_threads, config.row_items, config.gated
    row_pieces = row_items // 2 if gated else row_items
    warps_n = config.warps_n
    sums_offset, sums_row_bytes = config.sums_offset, config.sums_row_bytes
    warp_sums_bytes, partial_bytes = config.tile_m * sums_row_bytes, config.partial_bytes
    block_offset = config.block_offset
    store_sums = store_columns(config.tile_m // 8, sums_row_bytes)
    put = put_slot(1, PIECE_BYTES)
    kept_stripe, steps_of_slice = schedule.kept_stripe, schedule.steps_of_slice
    place_of = schedule.place_of
    expert_of, rows_of = schedule.expert_of, schedule.rows_of
    write, of_warps, item_at = make_write(config, schedule), make_sums(config), make_item_of(config)

    @cuda.jit(device=True, forceinline=True)
    def write_all(smem, place, rows, buffers, work, sizes):
        """Write a slice of which this block has all."""
        item = thread_id()
        while item < uint32(rows * row_pieces):
            row = uint32(item // uint32(row_pieces))
            piece = uint32(item - row * row_pieces)
            at = item_at(piece)
            total = of_warps(smem, row, at)
            second = total
            if gated:
                second = of_warps(smem, row, uint32(at + 2))
            write(total, second, row, piece, place, buffers, work, sizes)
            item = uint32(item + num_threads)

    @cuda.jit(device=True, forceinline=True)
    def finish(acc, slice_id, k_stop, buffers, work, sizes):
        """Sum a slice over the warps along K and over the blocks that share it, and write it."""
        n, k, _, _, _ = sizes
        smem = smem_base()
        # indices are found again: kept, they would cost the main loop its registers
        tid = thread_id()
        lane_id = uint32(tid & 31)
        warp_n = uint32(uint32(tid >> 5) % uint32(warps_n))
        warp_k = uint32(uint32(tid >> 5) // uint32(warps_n))
        (first, _), k_steps = kept_stripe(), steps_of_slice(k)
        begin = uint32(slice_id * k_steps)
        if begin > first:
            # the sums of the slice before have been read
            cuda.syncthreads()
        store_sums(
            smem
            + sums_offset
            + warp_k * warp_sums_bytes
            + (lane_id & 3) * (2 * sums_row_bytes)
            + (warp_n * 256 + (lane_id >> 2) * 4),
            acc,
        )
        cuda.syncthreads()
        block, slice_of = place_of(work, n, slice_id)
        rows = rows_of(work, block)
        if k_stop == k_steps and begin >= first:
            place = (block, slice_of, expert_of(work, block))
            write_all(smem, place, rows, buffers, work, sizes)
            return
        own = buffers[4] + uint64(
            uint32(block_id_y() * uint32(cuda.gridDim.x) + block_id())
        ) * uint64(partial_bytes)
        item = tid
        while item < uint32(rows * row_items):
            row = uint32(item // uint32(row_items))
            total = of_warps(smem, row, uint32(item - row * row_items))
            if k_stop < k_steps:
                put(own + uint64(item * 16), uint32(1), total)
            else:
                # this block ends the slice: it takes over from the others when its work is done
                st_shared_v4_f32(smem + block_offset + item * 16, total)
            item = uint32(item + num_threads)

    return finish


def make_take_over(config, schedule):
    """Return what adds the sums of the blocks before to those of the slice that this one ends."""
    num_threads, row_items, gated = config.num_threads, config.row_items, config.gated
    row_pieces = row_items // 2 if gated else row_items
    partial_bytes, block_offset = config.partial_bytes, config.block_offset
    slots_at_once = SLOTS_AT_ONCE
    take = take_slots(1, PIECE_BYTES, slots_at_once, partial_bytes, 0)
    add_sums = add_tile("shared", 4, 16)
    kept_stripe, steps_of_slice = schedule.kept_stripe, schedule.steps_of_slice
    first_stripe_of = schedule.first_stripe
    place_of, expert_of, rows_of = schedule.place_of, schedule.expert_of, schedule.rows_of
    write, item_at = make_write(config, schedule), make_item_of(config)

    @cuda.jit(device=True, forceinline=True)
    def take_all(smem, partial, count, item):
        """Return the other blocks' sums of four columns, and this one's."""
        zero = float32(0)
        total = (zero, zero, zero, zero)
        i = uint32(0)
        while i < count:
            at = partial + uint64(i) * uint64(partial_bytes) + uint64(item * 16)
            total = take(at, uint32(1), uint32(count - i), total)
            i = uint32(i + slots_at_once)
        return add_sums(smem + block_offset + item * 16, total)

    @cuda.jit(device=True, forceinline=True)
    def take_over(buffers, work, sizes):
        """Add what the stripes before this one have of the slice that this one ends; write it."""
        n, k, _, _, _ = sizes
        (first, end), k_steps = kept_stripe(), steps_of_slice(k)
        slice_id = uint32(first // k_steps)
        begin = uint32(slice_id * k_steps)
        if first > begin and uint32(begin + k_steps) <= end:
            smem = smem_base()
            block, slice_of = place_of(work, n, slice_id)
            place = (block, slice_of, expert_of(work, block))
            first_stripe = first_stripe_of(work, n, k, begin)
            count = uint32(block_id() - first_stripe)
            slot = uint32(block_id_y() * uint32(cuda.gridDim.x) + first_stripe)
            partial = buffers[4] + uint64(slot) * uint64(partial_bytes)
            if gated:
                # up is put there by another thread than takes it
                cuda.syncthreads()
            item = thread_id()
            while item < uint32(rows_of(work, block) * row_pieces):
                row = uint32(item // uint32(row_pieces))
                piece = uint32(item - row * row_pieces)
                at = uint32(row * row_items + item_at(piece))
                total = take_all(smem, partial, count, at)
                second = total
                if gated:
                    second = take_all(smem, partial, count, uint32(at + 2))
                write(total, second, row, piece, place, buffers, work, sizes)
                item = uint32(item + num_threads)

    return take_over
