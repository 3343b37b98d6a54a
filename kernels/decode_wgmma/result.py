"""What becomes of decode_wgmma's sums: added over the blocks, rounded, written."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.shared.columns import make_load_factors, make_write_columns, store_columns
from ferrum_numba.kernels.shared.handoff import put_slot, take_slots
from ferrum_numba.kernels.shared.tile import add_tile
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.special import block_id, smem_base, thread_id

# what sums a slice: threads, pieces of four columns of a token that each of them has at once, and
# slots of other blocks that it reads at once
MOST_SUMMING, PIECES, SLOTS = 256, 4, 3
# between two looks at what another block has not handed over yet
PAUSE_NS = 64


def make_write_pieces(config, rows_at_once):
    """Return what writes a thread's sums."""
    per_channel = config.group_size < 0
    load_factors = make_load_factors(config.dtype, per_channel)
    write_columns = make_write_columns(config.dtype, per_channel)

    @cuda.jit(device=True, forceinline=True)
    def write_pieces(sums, out, scales, bias, row, column, m, out_columns, has_bias):
        """Write the same four columns of four tokens, `rows_at_once` apart."""
        factors, shifts = load_factors(scales, bias, column, has_bias)
        to = out + ((uint64(row) * uint64(out_columns) + uint64(column)) << 1)
        step = uint64(out_columns) * uint64(2 * rows_at_once)
        if row < m:
            write_columns(to, sums[0:4], factors, shifts, has_bias)
        if uint32(row + rows_at_once) < m:
            to = to + step
            write_columns(to, sums[4:8], factors, shifts, has_bias)
        if uint32(row + 2 * rows_at_once) < m:
            to = to + step
            write_columns(to, sums[8:12], factors, shifts, has_bias)
        if uint32(row + 3 * rows_at_once) < m:
            to = to + step
            write_columns(to, sums[12:16], factors, shifts, has_bias)

    return write_pieces


def make_finish(config, stripe_of):
    """Return what sums a slice, of which each warpgroup has its share, and writes it.

    The block that has a slice's first steps adds the sums of the blocks after it, in their order.
    They hand them over in slots, words of zero until they have arrived: nothing else is waited for.
    """
    tile_m, tile_n, num_warpgroups = config.tile_m, config.tile_n, config.num_warpgroups
    sums_offset, partial_bytes = config.sums_offset, config.partial_bytes
    sums_row_bytes, group_sums_bytes = config.sums_row_bytes, tile_m * config.sums_row_bytes
    # a piece is four columns of a token; a thread has some of them, of tokens `rows_at_once` apart
    summing = min(MOST_SUMMING, config.num_threads)
    rows_at_once, piece_bytes, pieces = summing * 4 // tile_n, summing * 16, PIECES
    slots_at_once = SLOTS
    store_sums = store_columns(tile_m // 8, sums_row_bytes)
    no_sums = splat_f32(4 * PIECES)
    add_sums = add_tile("shared", 4 * PIECES, rows_at_once * sums_row_bytes)
    put = put_slot(PIECES, piece_bytes)
    take = take_slots(PIECES, piece_bytes, SLOTS, partial_bytes, PAUSE_NS)
    write_pieces = make_write_pieces(config, rows_at_once)

    @cuda.jit(device=True, forceinline=True)
    def shares_of(slice_id, n, k, stripe_steps):
        """Return how many blocks' sums this block adds, and whether it has the slice's first steps.

        The one that has them adds those of the blocks after it; no other adds any.
        """
        _, unit, end, k_steps = stripe_of(n, k, stripe_steps)
        begin = uint32(slice_id * k_steps)
        others = uint32(0)
        while end < uint32(begin + k_steps):
            others = uint32(others + 1)
            end = uint32(end + stripe_steps)
        mine = begin >= unit
        return others if mine else uint32(0), mine

    @cuda.jit(device=True, forceinline=True)
    def take_others(own, count, others):
        """Return the sums of the blocks after this one, in their order."""
        total = no_sums(float32(0))
        while others > 0:
            total = take(own + uint64(partial_bytes), count, others, total)
            own = own + uint64(slots_at_once * partial_bytes)
            done = others if others < slots_at_once else uint32(slots_at_once)
            others = uint32(others - done)
        return total

    @cuda.jit(device=True, forceinline=True)
    def finish(
        acc, slice_id, scales, bias, out, slots,
        m, n, k, out_columns, stripe_steps, has_bias,
    ):  # fmt: skip
        """Sum a slice over the warpgroups and over the blocks that share it, and write it."""
        # indices are found again: kept, they would cost the main loop its registers
        tid = thread_id()
        lane_id = uint32(tid & 31)
        first_row = uint32(uint32(cuda.blockIdx.y) * tile_m)
        rows = uint32(m - first_row) if uint32(m - first_row) < tile_m else uint32(tile_m)
        others, mine = shares_of(slice_id, n, k, stripe_steps)
        slot = uint32(uint32(cuda.gridDim.x) * uint32(cuda.blockIdx.y + 1) - 1 - block_id())
        own = slots + uint64(slot) * uint64(partial_bytes) + uint64(tid * 16)
        row, piece = uint32(tid // uint32(tile_n // 4)), uint32(tid % uint32(tile_n // 4))
        sums = uint32(smem_base() + sums_offset)
        to = uint32(sums + uint32(tid >> 7) * group_sums_bytes + ((tid >> 5) & 3) * 256)
        to = uint32(to + (lane_id & 3) * (2 * sums_row_bytes) + (lane_id >> 2) * 4)
        # the sums of the slice before have been read
        cuda.syncthreads()
        store_sums(to, acc)
        cuda.syncthreads()
        at = uint32(sums + row * sums_row_bytes + piece * 16)
        column = uint32(slice_id * tile_n + piece * 4)
        while tid < summing and row < rows:
            # how many tokens from this one on are this thread's
            count = uint32(uint32(rows - row + (rows_at_once - 1)) // uint32(rows_at_once))
            total = take_others(own, count, others)
            for i in range(num_warpgroups):
                total = add_sums(uint32(at + i * group_sums_bytes), total)
            if not mine:
                put(own, count, total)
            elif column < out_columns:
                token = uint32(first_row + row)
                write_pieces(total, out, scales, bias, token, column, m, out_columns, has_bias)
            row = uint32(row + pieces * rows_at_once)
            at = uint32(at + pieces * rows_at_once * sums_row_bytes)
            own = own + uint64(pieces * piece_bytes)

    return finish
