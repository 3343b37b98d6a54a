"""The device code of kernels/decode.py, which says what is computed and how it is tiled."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.ptx.asynchronous import cp_async_16_ca, cp_async_commit, cp_async_wait
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.decode import (
    TILE_BYTES,
    load_tiles,
    load_tokens,
    load_words,
    multiply_step,
    prefetch_l2,
    put_slot,
    scale_sums,
    store_columns,
    take_slots,
)
from ferrum_numba.ptx.memory import (
    ld_global_nc_u32,
    st_global_v2,
    st_shared_v4,
    st_shared_v4_f32,
)
from ferrum_numba.ptx.special import block_id, cluster_ctarank, smem_base, thread_id
from ferrum_numba.ptx.sync import (
    bar_warp_sync,
    cluster_arrive,
    cluster_wait,
    griddepcontrol_launch_dependents,
    griddepcontrol_wait,
    ld_shared_cluster_v4,
    mapa,
)
from ferrum_numba.ptx.tile import PACK, UNPACK, add_tile

# sums of other blocks that a lane waits for together
SLOTS_AT_ONCE = 4


def build(config, early):
    """Return the kernel of a config: a function of the parameters of `Decode`, in their order."""
    tile_m, tile_n, step_k = config.tile_m, config.tile_n, config.step_k
    warps_n, warps_k, num_threads = config.warps_n, config.warps_k, config.num_threads
    half_tiles, n_tiles = config.half_tiles, config.tile_m // 8
    half_groups, zero_rows = config.half_groups, config.zero_rows
    has_groups, has_zeros = half_groups > 0, zero_rows > 0
    group_size = config.group_size if has_groups else 1
    two_scales = config.two_scales
    x_slot_bytes, x_row_bytes = config.x_slot_bytes, config.x_row_bytes
    sums_row_bytes, partial_bytes = config.sums_row_bytes, config.partial_bytes
    sums_offset = 2 * config.num_warps * x_slot_bytes
    warp_sums_bytes = tile_m * sums_row_bytes
    block_offset = config.smem_bytes - config.partial_bytes
    cluster, clustered = config.cluster, config.cluster > 1
    prefetch_steps = config.prefetch_steps
    prefetches = prefetch_steps > 0
    slots_at_once = SLOTS_AT_ONCE
    k_tiles, half_k = 2 * half_tiles, step_k // 2

    # a step's activations are copied in pieces of 16 bytes, some rows at once
    row_pieces = step_k // 8
    rows_at_once = 32 // row_pieces
    x_copies = tile_m // rows_at_once
    clear_rounds = -(-sums_offset // (16 * num_threads))
    # four columns of a token are an item of the epilogue
    row_items = tile_n // 4

    zeros = splat_f32(16 * n_tiles)
    load = load_tiles(half_tiles)
    load_scales = load_words(max(half_groups, 1), 4)
    load_zeros = load_words(max(zero_rows, 2), 1)
    load_x = load_tokens(half_tiles, n_tiles, x_row_bytes)
    half = HALVES[config.dtype]
    # where both halves are of one group, the sums of a whole step are scaled at once
    carries = has_groups and not two_scales
    multiply = multiply_step(half_tiles, n_tiles, half, 0 if carries else half_groups, zero_rows)
    scale = scale_sums(n_tiles, half)
    one_zero_row = zero_rows == 1
    store_sums = store_columns(n_tiles, sums_row_bytes)
    add_sums = add_tile("shared", 4, 16)
    take = take_slots(slots_at_once, partial_bytes)
    pack_pair, unpack_pair = PACK[half], UNPACK[half]

    @cuda.jit(device=True, inline="always")
    def locate(packed, n, k_step, slice_id):
        """Return the address of this lane's 16 bytes of the first tile of a step."""
        tid = thread_id()
        strip = uint32(slice_id * warps_n + uint32(tid >> 5) % uint32(warps_n))
        row = uint64(uint32(k_step * k_tiles)) * uint64(uint32(n * 8))
        return packed + row + uint64(uint32(strip * TILE_BYTES + (tid & 31) * 16))

    @cuda.jit(device=True, inline="always")
    def prefetch(tile, n, k_step, k_stop, steps):
        """Bring the step that comes `steps` after this one to L2: a lane a line of 128 bytes."""
        # eight lanes read a line of a tile: each brings it for another tile
        row = uint32(thread_id() & 7)
        if uint32(k_step + steps * warps_k) < k_stop and row < uint32(k_tiles):
            row = uint32(row + steps * (warps_k * k_tiles))
            prefetch_l2(tile + uint64(row) * uint64(uint32(n * 8)))

    @cuda.jit(device=True, inline="always")
    def fetch_scales(scales, n, k_step, slice_id, i):
        """Load the scales of half a step; the multiplication takes any words if there are none."""
        if not has_groups:
            return uint32(0), uint32(0), uint32(0), uint32(0)
        tid = thread_id()
        strip = uint32(slice_id * warps_n + uint32(tid >> 5) % uint32(warps_n))
        group = uint32(uint32(k_step * step_k + i * half_k) // uint32(group_size))
        row_bytes = uint64(uint32(n * 2))
        lane = uint64(uint32(strip * 128 + uint32(uint32(tid & 31) >> 2) * 16))
        return load_scales(scales + uint64(group) * row_bytes + lane, row_bytes)

    @cuda.jit(device=True, inline="always")
    def fetch_zeros(zero_points, n, k_step, slice_id, i):
        """Load the zero points of half a step, or nothing."""
        if not has_zeros:
            return (uint32(0),)
        tid = thread_id()
        strip = uint32(slice_id * warps_n + uint32(tid >> 5) % uint32(warps_n))
        group = uint32(uint32(k_step * step_k + i * half_k) // uint32(group_size))
        group = group if has_groups else uint32(0)
        row_bytes = uint64(uint32(n >> 1))
        lane = uint64(uint32(strip * 32 + uint32(uint32(tid & 31) >> 2) * 4))
        gmem = zero_points + uint64(group) * row_bytes + lane
        if one_zero_row:
            return (ld_global_nc_u32(gmem),)
        return load_zeros(gmem, row_bytes)

    @cuda.jit(device=True, inline="always")
    def fetch_x(x_lane, smem, rows, k, k_step):
        """Begin to copy a step's activations for this warp."""
        row = uint32(uint32(thread_id() & 31) // uint32(row_pieces))
        gmem = x_lane + uint64(k_step) * uint64(step_k * 2)
        for i in range(x_copies):
            if uint32(row + i * rows_at_once) < rows:
                cp_async_16_ca(smem + i * (rows_at_once * x_row_bytes), gmem)
            gmem = gmem + uint64(uint32(k * (2 * rows_at_once)))
        cp_async_commit()

    @cuda.jit(device=True, inline="always")
    def stripe_of(m, n, k, units_per_block):
        """Return this block's first step, the step after its last, and the steps of a slice."""
        # found again where it is needed: kept, it would cost the main loop its registers
        m_tiles = uint32(uint32(m + (tile_m - 1)) // uint32(tile_m))
        k_steps = uint32(k // uint32(step_k))
        if clustered:
            bid = block_id()
            rank = uint32(bid % uint32(cluster))
            begin = uint32(uint32(uint32(bid // uint32(cluster)) // m_tiles) * k_steps)
            first = uint32(begin + uint32(rank * k_steps) // uint32(cluster))
            return first, uint32(begin + uint32((rank + 1) * k_steps) // uint32(cluster)), k_steps
        first = uint32(uint32(block_id() // m_tiles) * units_per_block)
        end = uint32(uint32(n // uint32(tile_n)) * k_steps)
        if uint32(end - first) > units_per_block:
            end = uint32(first + units_per_block)
        return first, end, k_steps

    @cuda.jit(device=True, inline="always")
    def next_segment(slice_id, k_stop, end, k_steps):
        """Return the next slice of a stripe and the step after its last, 0 if none is left."""
        done = uint32(uint32(slice_id * k_steps) + k_stop)
        k_stop = uint32(0)
        if done < end:
            k_stop = uint32(end - done) if uint32(end - done) < k_steps else k_steps
        return uint32(slice_id + 1), k_stop

    @cuda.jit(device=True, inline="always")
    def settle(slice_id, k_step, k_stop, warp_k, end, k_steps):
        """Return this step or the warp's first of a later slice; k_stop is 0 if none is left."""
        while k_step >= k_stop and k_stop > uint32(0):
            slice_id, k_stop = next_segment(slice_id, k_stop, end, k_steps)
            k_step = warp_k
        return slice_id, k_step, k_stop

    @cuda.jit(device=True, inline="always")
    def write_columns(sums, out, scales, bias, row, column, n, has_bias):
        """Write four columns of a token: scaled if nobody did, with the bias, rounded once."""
        first, second, third, fourth = sums
        # where `permute_scales` of one group puts a pair of columns
        pair = uint64(uint32((column & uint32(0xFFFFFFE0)) + (column & 7) * 4)) * uint64(2)
        pair = pair + uint64(uint32((column >> 3) & 3) * 4)
        if not has_groups:
            low = unpack_pair(ld_global_nc_u32(scales + pair))
            high = unpack_pair(ld_global_nc_u32(scales + pair + uint64(16)))
            first = first * low[0]
            second = second * low[1]
            third = third * high[0]
            fourth = fourth * high[1]
        if has_bias > uint32(0):
            low = unpack_pair(ld_global_nc_u32(bias + pair))
            high = unpack_pair(ld_global_nc_u32(bias + pair + uint64(16)))
            first = first + low[0]
            second = second + low[1]
            third = third + high[0]
            fourth = fourth + high[1]
        to = out + ((uint64(row) * uint64(n) + uint64(column)) << 1)
        st_global_v2(to, (pack_pair(first, second), pack_pair(third, fourth)))

    @cuda.jit(device=True, inline="always")
    def finish(
        acc, slice_id, k_stop, scales, bias, out, slots,
        m, n, k, units_per_block, has_bias,
    ):  # fmt: skip
        """Sum a slice over the warps along K and over the blocks that share it, and write it."""
        smem = smem_base()
        # indices are found again: kept, they would cost the main loop its registers
        tid = thread_id()
        bid = block_id()
        lane_id = uint32(tid & 31)
        warp_n = uint32(uint32(tid >> 5) % uint32(warps_n))
        warp_k = uint32(uint32(tid >> 5) // uint32(warps_n))
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
        m_tiles = uint32(uint32(m + (tile_m - 1)) // uint32(tile_m))
        bid = uint32(bid // uint32(cluster))
        stripe = uint32(bid // m_tiles)
        m_tile = uint32(bid - uint32(stripe * m_tiles))
        first_row = uint32(m_tile * tile_m)
        rows = uint32(m - first_row) if uint32(m - first_row) < uint32(tile_m) else uint32(tile_m)
        items = uint32(rows * row_items)
        zero = float32(0)
        if clustered:
            # in-block sums, then every block adds its share of all blocks' sums, in their order
            block_sums = uint32(smem + block_offset)
            item = tid
            while item < items:
                r = uint32(item // uint32(row_items))
                c = uint32(item - uint32(r * row_items))
                total = (zero, zero, zero, zero)
                for i in range(warps_k):
                    at = uint32(smem + (sums_offset + i * warp_sums_bytes))
                    total = add_sums(at + r * sums_row_bytes + c * 16, total)
                st_shared_v4_f32(block_sums + item * 16, total)
                item = uint32(item + num_threads)
            cluster_arrive()
            cluster_wait()
            item = uint32(tid * cluster + cluster_ctarank())
            while item < items:
                r = uint32(item // uint32(row_items))
                c = uint32(item - uint32(r * row_items))
                total = (zero, zero, zero, zero)
                for i in range(cluster):
                    part = ld_shared_cluster_v4(mapa(block_sums + item * 16, uint32(i)))
                    total = (
                        total[0] + part[0],
                        total[1] + part[1],
                        total[2] + part[2],
                        total[3] + part[3],
                    )
                column = uint32(slice_id * tile_n + c * 4)
                write_columns(total, out, scales, bias, first_row + r, column, n, has_bias)
                item = uint32(item + cluster * num_threads)
            # nobody leaves while another reads its sums
            cluster_arrive()
            cluster_wait()
            return
        first, _, k_steps = stripe_of(m, n, k, units_per_block)
        begin = uint32(slice_id * k_steps)
        whole = begin >= first and k_stop == k_steps
        first_stripe = uint32(begin // units_per_block)
        # a slice's slots follow each other from the second one of the stripe that begins it
        slot = uint32(uint32(uint32(cuda.gridDim.x) // m_tiles) * m_tile + first_stripe)
        partial = slots + uint64(uint32(slot * 2 + 1)) * uint64(partial_bytes)
        own = partial + uint64(uint32(stripe - first_stripe)) * uint64(partial_bytes)
        item = tid
        while item < items:
            r = uint32(item // uint32(row_items))
            c = uint32(item - uint32(r * row_items))
            total = (zero, zero, zero, zero)
            for i in range(warps_k):
                at = uint32(smem + (sums_offset + i * warp_sums_bytes))
                total = add_sums(at + r * sums_row_bytes + c * 16, total)
            if whole:
                column = uint32(slice_id * tile_n + c * 4)
                write_columns(total, out, scales, bias, first_row + r, column, n, has_bias)
            elif k_stop == k_steps:
                # this block ends the slice: it takes over from the others when its work is done
                st_shared_v4_f32(smem + block_offset + item * 16, total)
            else:
                put_slot(own + uint64(item * 16), total)
            item = uint32(item + num_threads)

    @cuda.jit(device=True, inline="always")
    def take_over(scales, bias, out, slots, m, n, k, units_per_block, has_bias):
        """Add what the stripes before this one have of the slice that this one ends; write it."""
        first, end, k_steps = stripe_of(m, n, k, units_per_block)
        slice_id = uint32(first // k_steps)
        begin = uint32(slice_id * k_steps)
        if first > begin and uint32(begin + k_steps) <= end:
            smem = smem_base()
            tid = thread_id()
            m_tiles = uint32(uint32(m + (tile_m - 1)) // uint32(tile_m))
            stripe = uint32(block_id() // m_tiles)
            m_tile = uint32(block_id() - uint32(stripe * m_tiles))
            first_row = uint32(m_tile * tile_m)
            rows = uint32(m - first_row)
            if rows > uint32(tile_m):
                rows = uint32(tile_m)
            first_stripe = uint32(begin // units_per_block)
            count = uint32(stripe - first_stripe)
            slot = uint32(uint32(uint32(cuda.gridDim.x) // m_tiles) * m_tile + first_stripe)
            partial = slots + uint64(uint32(slot * 2 + 1)) * uint64(partial_bytes)
            zero = float32(0)
            item = tid
            while item < uint32(rows * row_items):
                r = uint32(item // uint32(row_items))
                c = uint32(item - uint32(r * row_items))
                total = (zero, zero, zero, zero)
                i = uint32(0)
                while i < count:
                    at = partial + uint64(i) * uint64(partial_bytes) + uint64(item * 16)
                    total = take(at, uint32(count - i), total)
                    i = uint32(i + slots_at_once)
                total = add_sums(smem + block_offset + item * 16, total)
                column = uint32(slice_id * tile_n + c * 4)
                write_columns(total, out, scales, bias, first_row + r, column, n, has_bias)
                item = uint32(item + num_threads)

    def decode(
        x, packed, scales, zero_points, bias, out, slots,
        m, n, k, units_per_block, has_bias,
    ):  # fmt: skip
        # index: which stripe, which tokens, which tile
        smem = smem_base()
        tid = thread_id()
        lane_id = uint32(tid & 31)
        warp_k = uint32(uint32(tid >> 5) // uint32(warps_n))
        m_tiles = uint32(uint32(m + (tile_m - 1)) // uint32(tile_m))
        stripe = uint32(uint32(cuda.blockIdx.x) // uint32(cluster))
        first_row = uint32(uint32(stripe % m_tiles) * tile_m)
        rows = uint32(m - first_row)
        unit, end, k_steps = stripe_of(m, n, k, units_per_block)
        slice_id = uint32(unit // k_steps)
        k_step = uint32(unit - uint32(slice_id * k_steps))
        k_stop = uint32(k_step + uint32(end - unit))
        if k_stop > k_steps:
            k_stop = k_steps
        x_slot = uint32(smem + uint32(tid >> 5) * (2 * x_slot_bytes))
        x_both = uint32(x_slot + x_slot + x_slot_bytes)
        # where this lane's 16 bytes of a step's first rows go, and where they come from
        piece = uint32(lane_id % uint32(row_pieces))
        piece_row = uint32(lane_id // uint32(row_pieces))
        x_to = uint32(piece_row * x_row_bytes + piece * 16)
        x_lane = x + (
            uint64(uint32(first_row + piece_row)) * uint64(uint32(k * 2)) + uint64(piece * 16)
        )
        # each lane addresses a token's row of one of the four matrices of two tiles
        token_lane = uint32((lane_id & 7) * x_row_bytes + (lane_id >> 3) * 16)
        tile_stride = uint64(uint32(n * 8))

        # prologue: load weights; then, when the launch before has ended, the tokens
        step = uint32(k_step + warp_k)
        next_slice, next_step, next_stop = settle(slice_id, step, k_stop, warp_k, end, k_steps)
        # a warp without a step loads another's
        first_slice, first_step = slice_id, k_step
        if next_stop > uint32(0):
            first_slice, first_step = next_slice, next_step
        tile = locate(packed, n, first_step, first_slice)
        first = load(tile, tile_stride)
        first_scale = fetch_scales(scales, n, first_step, first_slice, 0)
        first_zero = fetch_zeros(zero_points, n, first_step, first_slice, 0)
        second = load(tile + tile_stride * uint64(half_tiles), tile_stride)
        second_scale = first_scale
        second_zero = first_zero
        if two_scales:
            second_scale = fetch_scales(scales, n, first_step, first_slice, 1)
            second_zero = fetch_zeros(zero_points, n, first_step, first_slice, 1)
        for i in range(clear_rounds):
            at = uint32(uint32(tid + i * num_threads) * 16)
            if at < uint32(sums_offset):
                # rows past M are read, and must be numbers
                st_shared_v4(smem + at, (uint32(0), uint32(0), uint32(0), uint32(0)))
        cuda.syncthreads()
        next_slice, next_step, next_stop = settle(
            next_slice, uint32(next_step + warps_k), next_stop, warp_k, end, k_steps
        )
        tile = locate(packed, n, next_step, next_slice)
        for i in range(prefetch_steps):
            prefetch(tile, n, next_step, next_stop, i)
        if early:
            if next_stop == uint32(0):
                griddepcontrol_launch_dependents()
            griddepcontrol_wait()
        fetch_x(x_lane, x_slot + x_to, rows, k, first_step)
        while k_stop > uint32(0):
            acc = zeros(float32(0))

            # main loop: one step a turn; the loads run a step ahead, across slices
            while step < k_stop:
                cp_async_wait(0)
                bar_warp_sync()
                more = next_stop > uint32(0)
                if more:
                    fetch_x(x_lane, uint32(x_both - x_slot) + x_to, rows, k, next_step)
                    if prefetches:
                        prefetch(tile, n, next_step, next_stop, prefetch_steps)
                token = load_x(x_slot + token_lane)
                if carries:
                    total = multiply(first, token, first_scale, first_zero, zeros(float32(0)))
                else:
                    acc = multiply(first, token, first_scale, first_zero, acc)
                if more:
                    first = load(tile, tile_stride)
                    if two_scales:
                        first_scale = fetch_scales(scales, n, next_step, next_slice, 0)
                        first_zero = fetch_zeros(zero_points, n, next_step, next_slice, 0)
                token = load_x(x_slot + token_lane + step_k)
                if carries:
                    total = multiply(second, token, first_scale, first_zero, total)
                    acc = scale(total, first_scale, acc)
                elif two_scales:
                    acc = multiply(second, token, second_scale, second_zero, acc)
                else:
                    acc = multiply(second, token, first_scale, first_zero, acc)
                if more:
                    second = load(tile + tile_stride * uint64(half_tiles), tile_stride)
                    if two_scales:
                        second_scale = fetch_scales(scales, n, next_step, next_slice, 1)
                        second_zero = fetch_zeros(zero_points, n, next_step, next_slice, 1)
                    else:
                        first_scale = fetch_scales(scales, n, next_step, next_slice, 0)
                        first_zero = fetch_zeros(zero_points, n, next_step, next_slice, 0)
                next_step = uint32(next_step + warps_k)
                tile = tile + tile_stride * uint64(warps_k * k_tiles)
                if more and next_step >= next_stop:
                    _, end, k_steps = stripe_of(m, n, k, units_per_block)
                    next_slice, next_step, next_stop = settle(
                        next_slice, next_step, next_stop, warp_k, end, k_steps
                    )
                    tile = locate(packed, n, next_step, next_slice)
                    for i in range(prefetch_steps):
                        prefetch(tile, n, next_step, next_stop, i)
                    if early and next_stop == uint32(0):
                        griddepcontrol_launch_dependents()
                x_slot = uint32(x_both - x_slot)
                step = uint32(step + warps_k)

            finish(
                acc, slice_id, k_stop, scales, bias, out, slots,
                m, n, k, units_per_block, has_bias,
            )  # fmt: skip
            _, end, k_steps = stripe_of(m, n, k, units_per_block)
            slice_id, k_stop = next_segment(slice_id, k_stop, end, k_steps)
            step = warp_k
        if not clustered:
            take_over(scales, bias, out, slots, m, n, k, units_per_block, has_bias)

    return decode
