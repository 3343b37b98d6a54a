"""What becomes of decode's sums: added over warps and blocks, rounded, written."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.shared.columns import make_load_factors, make_write_columns, store_columns
from ferrum_numba.kernels.shared.handoff import PIECE_BYTES, put_slot, take_slots
from ferrum_numba.kernels.shared.tile import add_tile
from ferrum_numba.ptx.asynchronous import mbarrier_wait, st_async_v4
from ferrum_numba.ptx.memory import st_shared_v4_f32
from ferrum_numba.ptx.special import block_id, block_id_y, cluster_ctarank, smem_base, thread_id
from ferrum_numba.ptx.sync import mapa

# sums of other blocks that a lane waits for together
SLOTS_AT_ONCE = 4


def make_write(config):
    """Return what writes four columns of a token of a slice, an item of its sums."""
    tile_n, row_items, per_channel = config.tile_n, config.row_items, config.half_groups == 0
    load_factors = make_load_factors(config.dtype, per_channel)
    write_columns = make_write_columns(config.dtype, per_channel)

    @cuda.jit(device=True, forceinline=True)
    def write(total, slice_id, item, scales, bias, out, first_row, out_columns, has_bias):
        """Write a slice's four columns of a token."""
        r = uint32(item // uint32(row_items))
        column = uint32(slice_id * tile_n + uint32(item - r * row_items) * 4)
        factors, shifts = load_factors(scales, bias, column, has_bias)
        if column < out_columns:
            row = uint64(uint32(first_row + r))
            to = out + ((row * uint64(out_columns) + uint64(column)) << 1)
            write_columns(to, total, factors, shifts, has_bias)

    return write


def make_finish(config, schedule, write):
    """Return what sums a slice over the warps along K, and writes it or hands it on."""
    num_threads, row_items = config.num_threads, config.row_items
    warps_n, warps_k = config.warps_n, config.warps_k
    cluster, clustered = config.cluster, config.cluster > 1
    sums_offset, sums_row_bytes = config.sums_offset, config.sums_row_bytes
    warp_sums_bytes, partial_bytes = config.tile_m * sums_row_bytes, config.partial_bytes
    block_offset, bar_offset = config.block_offset, config.bar_offset
    store_sums = store_columns(config.tile_m // 8, sums_row_bytes)
    add_sums = add_tile("shared", 4, 16)
    put = put_slot(1, PIECE_BYTES)
    stripe_of, block_rows = schedule.stripe_of, schedule.block_rows

    @cuda.jit(device=True, forceinline=True)
    def sum_of_warps(smem, item):
        """Add up what the warps along K have of four columns of a token."""
        r = uint32(item // uint32(row_items))
        at = uint32(smem + sums_offset + r * sums_row_bytes + uint32(item - r * row_items) * 16)
        zero = float32(0)
        total = (zero, zero, zero, zero)
        for i in range(warps_k):
            total = add_sums(at + i * warp_sums_bytes, total)
        return total

    # by numba: inlined by NVVM, the main loop of 16 tokens was up to 4 % slower
    @cuda.jit(device=True, inline="always")
    def finish_cluster(slice_id, smem, scales, bias, out, m, out_columns, has_bias):
        """Send the block's sums to the first block of the cluster, which adds and writes them."""
        first_row, rows = block_rows(m)
        items = uint32(rows * row_items)
        rank = cluster_ctarank()
        item = thread_id()
        if rank > 0:
            to = mapa(uint32(smem + block_offset) + uint32(rank - 1) * partial_bytes, uint32(0))
            bar = mapa(uint32(smem + bar_offset), uint32(0))
            while item < items:
                st_async_v4(to + item * 16, sum_of_warps(smem, item), bar)
                item = uint32(item + num_threads)
        else:
            while item < items:
                total = sum_of_warps(smem, item)
                mbarrier_wait(smem + bar_offset, uint32(0))
                for i in range(cluster - 1):
                    at = uint32(smem + (block_offset + i * partial_bytes))
                    total = add_sums(at + item * 16, total)
                write(total, slice_id, item, scales, bias, out, first_row, out_columns, has_bias)
                item = uint32(item + num_threads)

    @cuda.jit(device=True, forceinline=True)
    def finish(
        acc, slice_id, k_stop, scales, bias, out, slots,
        m, n, k, out_columns, stripe_steps, has_bias,
    ):  # fmt: skip
        """Sum a slice over the warps along K and over the blocks that share it, and write it."""
        smem = smem_base()
        # indices are found again: kept, they would cost the main loop its registers
        tid = thread_id()
        lane_id = uint32(tid & 31)
        warp_n = uint32(uint32(tid >> 5) % uint32(warps_n))
        warp_k = uint32(uint32(tid >> 5) // uint32(warps_n))
        first, _, k_steps = stripe_of(n, k, stripe_steps)
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
        if clustered:
            finish_cluster(slice_id, smem, scales, bias, out, m, out_columns, has_bias)
            return
        first_row, rows = block_rows(m)
        items = uint32(rows * row_items)
        own = slots + uint64(uint32(block_id_y() * uint32(cuda.gridDim.x) + block_id())) * uint64(
            partial_bytes
        )
        item = tid
        while item < items:
            total = sum_of_warps(smem, item)
            if k_stop < k_steps:
                put(own + uint64(item * 16), uint32(1), total)
            elif begin < first:
                # this block ends the slice: it takes over from the others when its work is done
                st_shared_v4_f32(smem + block_offset + item * 16, total)
            else:
                write(total, slice_id, item, scales, bias, out, first_row, out_columns, has_bias)
            item = uint32(item + num_threads)

    return finish


def make_take_over(config, schedule, write):
    """Return what adds the sums of the blocks before to those of the slice that this one ends."""
    num_threads, row_items = config.num_threads, config.row_items
    partial_bytes, block_offset = config.partial_bytes, config.block_offset
    slots_at_once = SLOTS_AT_ONCE
    take = take_slots(1, PIECE_BYTES, slots_at_once, partial_bytes, 0)
    add_sums = add_tile("shared", 4, 16)
    stripe_of, block_rows = schedule.stripe_of, schedule.block_rows

    @cuda.jit(device=True, forceinline=True)
    def take_over(scales, bias, out, slots, m, n, k, out_columns, stripe_steps, has_bias):
        """Add what the stripes before this one have of the slice that this one ends; write it."""
        first, end, k_steps = stripe_of(n, k, stripe_steps)
        slice_id = uint32(first // k_steps)
        begin = uint32(slice_id * k_steps)
        if first > begin and uint32(begin + k_steps) <= end:
            smem = smem_base()
            first_row, rows = block_rows(m)
            first_stripe = uint32(begin // stripe_steps)
            count = uint32(block_id() - first_stripe)
            slot = uint32(block_id_y() * uint32(cuda.gridDim.x) + first_stripe)
            partial = slots + uint64(slot) * uint64(partial_bytes)
            zero = float32(0)
            item = thread_id()
            while item < uint32(rows * row_items):
                total = (zero, zero, zero, zero)
                i = uint32(0)
                while i < count:
                    at = partial + uint64(i) * uint64(partial_bytes) + uint64(item * 16)
                    total = take(at, uint32(1), uint32(count - i), total)
                    i = uint32(i + slots_at_once)
                total = add_sums(smem + block_offset + item * 16, total)
                write(total, slice_id, item, scales, bias, out, first_row, out_columns, has_bias)
                item = uint32(item + num_threads)

    return take_over
