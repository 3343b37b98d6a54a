"""The device program of marlin: kernel.py says what is computed and how it is tiled."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.division import ceil_div
from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.marlin.result import make_result
from ferrum_numba.kernels.shared.int4 import dequantize as make_dequantize
from ferrum_numba.kernels.shared.stripes import first_segment, stripe_bounds
from ferrum_numba.kernels.shared.tile import (
    ldmatrix_tile,
    mma_tile,
)
from ferrum_numba.ptx.asynchronous import (
    cp_async_16,
    cp_async_16_zfill,
    cp_async_commit,
    cp_async_wait,
)
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.memory import (
    ld_global_nc_u32,
    ld_shared_u32,
    ld_shared_v4,
)
from ferrum_numba.ptx.special import smem_base


def build(config):
    """Return the kernel of a config: a function of the parameters of `Marlin`, in their order."""
    tile_m, tile_n, tile_k = config.tile_m, config.tile_n, config.tile_k
    num_threads, num_stages, warps_k = config.num_threads, config.num_stages, config.warps_k
    group_size, per_channel = config.group_size, config.group_size < 0
    has_zero_points = config.has_zero_points
    half = HALVES[config.dtype]
    warps_n, m_blocks = tile_n // 64, tile_m // 16
    k_blocks = tile_k // 16 // warps_k  # of one warp in a stage
    groups_in_stage = config.scale_rows > 1

    # a stage is copied in pieces of 16 bytes; a thread copies the same columns of every row it has
    a_row_pieces, b_row_pieces, s_row_pieces = tile_k // 8, tile_n // 2, tile_n // 8
    a_rows, b_rows = num_threads // a_row_pieces, num_threads // b_row_pieces
    s_pieces = config.scale_rows * s_row_pieces
    z_pieces, z_row_pieces = config.z_stage_bytes // 16, tile_n // 32
    a_rounds, b_rounds = ceil_div(tile_m, a_rows), ceil_div(tile_k // 16, b_rows)
    s_rounds = ceil_div(s_pieces, num_threads)
    a_ragged = tile_m % a_rows != 0

    b_offset = config.a_stage_bytes
    s_offset = b_offset + config.b_stage_bytes
    z_offset = s_offset + config.s_stage_bytes
    stage_bytes = config.stage_bytes
    ring_bytes = num_stages * stage_bytes
    sums_bytes = config.sums_bytes
    in_flight = num_stages - 2

    # a warp's sums are four accumulators of a strip of 16 columns each
    zeros = splat_f32(8 * m_blocks)
    load_a = ldmatrix_tile(m_blocks, 16 * tile_k * 2)
    mma = mma_tile(m_blocks, half)
    convert = make_dequantize(half, zeros=has_zero_points, scaled=not per_channel)
    result = make_result(config)
    sum_of_warps, sum_of_blocks = result.sum_of_warps, result.sum_of_blocks
    scale_and_bias, store_result = result.scale_and_bias, result.store_result

    @cuda.jit(device=True, forceinline=True)
    def fetch_to_shared(stage, place, n, x_columns, k_step):
        a_gmem, b_gmem, s_gmem, z_gmem, rows_left = place
        tid = uint32(cuda.threadIdx.x)
        r = uint32(tid // uint32(a_row_pieces))
        c = uint32(tid % uint32(a_row_pieces))
        smem = uint32(stage + r * (tile_k * 2) + (c ^ (r & 7)) * 16)
        gmem = a_gmem + uint64(k_step) * uint64(tile_k * 2)
        inside = uint32(k_step * tile_k + c * 8) < x_columns
        for i in range(a_rounds):
            if not a_ragged or uint32(r + i * a_rows) < tile_m:
                # what lies past M or K becomes zeros
                present = inside and uint32(i * a_rows) < rows_left
                size = uint32(16) if present else uint32(0)
                cp_async_16_zfill(smem + i * (a_rows * tile_k * 2), gmem, size)
                gmem = gmem + uint64(x_columns) * uint64(a_rows * 2)
        smem = uint32(stage + b_offset + tid * 16)
        gmem = b_gmem + uint64(k_step) * uint64(uint32(n * (tile_k // 2)))
        for i in range(b_rounds):
            cp_async_16(smem + i * (num_threads * 16), gmem)
            gmem = gmem + uint64(n) * uint64(b_rows * 8)
        for i in range(s_rounds):
            p = uint32(tid + i * num_threads)
            if p < s_pieces:
                r = uint32(p // uint32(s_row_pieces))
                c = uint32(p % uint32(s_row_pieces))
                group = uint32(uint32(k_step * tile_k) // uint32(group_size) + r)
                gmem = s_gmem + uint64(group) * uint64(uint32(n * 2)) + uint64(c * 16)
                cp_async_16(stage + s_offset + p * 16, gmem)
        if tid < z_pieces:
            r = uint32(tid // uint32(z_row_pieces))
            c = uint32(tid % uint32(z_row_pieces))
            group = uint32(uint32(k_step * tile_k) // uint32(group_size) + r)
            gmem = z_gmem + uint64(group) * uint64(n >> 1) + uint64(c * 16)
            cp_async_16(stage + z_offset + tid * 16, gmem)

    @cuda.jit(device=True, forceinline=True)
    def corner(slice_id, m_tiles):
        tile_column = uint32(slice_id // m_tiles)
        return uint32((slice_id - uint32(tile_column * m_tiles)) * tile_m), uint32(
            tile_column * tile_n
        )

    @cuda.jit(device=True, forceinline=True)
    def locate(sources, m, n, x_columns, slice_id, m_tiles):
        """Return where this thread copies a slice from, at K = 0, and how many rows are left."""
        x, packed, scales, zero_points = sources
        tid = uint32(cuda.threadIdx.x)
        row, column = corner(slice_id, m_tiles)
        r = uint32(tid // uint32(a_row_pieces))
        c = uint32(tid % uint32(a_row_pieces))
        a_gmem = x + ((uint64(uint32(row + r)) * x_columns + uint32(c * 8)) << 1)
        rows_left = uint32(m - uint32(row + r)) if uint32(row + r) < m else uint32(0)
        r = uint32(tid // uint32(b_row_pieces))
        c = uint32(tid % uint32(b_row_pieces))
        b_gmem = packed + ((uint64(r) * n + uint32(column + c * 2)) << 3)
        s_gmem, z_gmem = scales + (uint64(column) << 1), zero_points + (uint64(column) >> 1)
        return a_gmem, b_gmem, s_gmem, z_gmem, rows_left

    @cuda.jit(device=True, forceinline=True)
    def fetch_next(fetch, place, end, smem, sources, m, n, k, x_columns, m_tiles):
        """Begin the copies of one step, if there is one left, and return what comes next."""
        slice_id, k_step, step, stage = fetch
        if step < end:
            fetch_to_shared(stage, place, n, x_columns, k_step)
        cp_async_commit()
        k_step = uint32(k_step + 1)
        if k_step == uint32(k // uint32(tile_k)):
            k_step = uint32(0)
            slice_id = uint32(slice_id + 1)
            place = locate(sources, m, n, x_columns, slice_id, m_tiles)
        stage = uint32(stage + stage_bytes)
        if stage == uint32(smem + ring_bytes):
            stage = smem
        return (slice_id, k_step, uint32(step + 1), stage), place

    @cuda.jit(device=True, forceinline=True)
    def fetch_groups(stage, s_lane, z_lane, k_block):
        """Return the scales of a lane's eight columns, and their zero points in one word."""
        group = uint32(0)
        if groups_in_stage:
            group = uint32(uint32(k_block * 16) // uint32(group_size))
        zero = uint32(0)
        if has_zero_points:
            zero = ld_shared_u32(stage + z_lane + group * (tile_n // 2))
        return ld_shared_v4(stage + s_lane + group * (tile_n * 2)), zero

    @cuda.jit(device=True, forceinline=True)
    def fetch_to_registers(stage, a_lane, a_swizzle, b_lane, k_block):
        word = ld_shared_v4(stage + b_lane + k_block * (b_row_pieces * 16))
        return word, load_a(stage + a_lane + ((k_block * 32) ^ a_swizzle))

    @cuda.jit(device=True, forceinline=True)
    def dequantize(word, scale, zero):
        """Return the B operands of a strip of 16 columns, whose zero points are the lowest."""
        # of columns 0..7 in the lower half, of 8..15 in the upper
        pair = uint32(zero & 0x000F000F)
        if has_zero_points and per_channel:
            return convert(word, pair)
        if has_zero_points:
            return convert(word, pair, scale)
        return convert(word) if per_channel else convert(word, scale)

    @cuda.jit(device=True, forceinline=True)
    def multiply(a, word, scale, zero, acc):
        acc0, acc1, acc2, acc3 = acc
        acc0 = mma(a, dequantize(word[0], scale[0], zero), acc0)
        acc1 = mma(a, dequantize(word[1], scale[1], uint32(zero >> 4)), acc1)
        acc2 = mma(a, dequantize(word[2], scale[2], uint32(zero >> 8)), acc2)
        acc3 = mma(a, dequantize(word[3], scale[3], uint32(zero >> 12)), acc3)
        return acc0, acc1, acc2, acc3

    def marlin(
        x, packed, scales, zero_points, bias, out, partials, counters,
        m, n, k, x_columns, out_columns, stripe_steps, has_bias,
    ):  # fmt: skip
        # index: which stripe, which slice, which fragment
        smem = smem_base()
        ring_end = uint32(smem + ring_bytes)
        tile_out = uint32(ring_end + sums_bytes)
        tid = uint32(cuda.threadIdx.x)
        bid = uint32(cuda.blockIdx.x)
        lane_id = uint32(tid & 31)
        warp_id = uint32(tid >> 5)
        warp_n = uint32(warp_id % uint32(warps_n))
        warp_k = uint32(warp_id // uint32(warps_n))
        warps = (lane_id, warp_n, warp_k)
        k_steps = uint32(k // uint32(tile_k))
        m_tiles = uint32(uint32(m + (tile_m - 1)) // uint32(tile_m))
        num_steps = uint32(uint32(uint32(n // uint32(tile_n)) * m_tiles) * k_steps)
        step, end = stripe_bounds(bid, stripe_steps, num_steps)
        slice_id, k_step, _ = first_segment(step, end, k_steps)
        a_lane = uint32((lane_id & 15) * (tile_k * 2))
        # the 16-byte piece of the lane in its row: lane / 16, swizzled by the row
        a_swizzle = uint32(((lane_id >> 4) ^ (lane_id & 7)) * 16)
        b_lane = uint32(warp_n * 512 + lane_id * 16 + b_offset)
        s_lane = uint32(warp_n * 128 + (lane_id >> 2) * 16 + s_offset)
        z_lane = uint32(warp_n * 32 + (lane_id >> 2) * 4 + z_offset)
        nothing = float32(0)

        stage = smem
        sources = (x, packed, scales, zero_points)
        fetch = (slice_id, k_step, step, smem)
        place = locate(sources, m, n, x_columns, slice_id, m_tiles)
        # prologue: the copies run num_stages - 1 steps ahead of the mma, across slices
        for _ in range(num_stages - 1):
            fetch, place = fetch_next(fetch, place, end, smem, sources, m, n, k, x_columns, m_tiles)
        while step < end:
            acc = (zeros(nothing), zeros(nothing), zeros(nothing), zeros(nothing))
            row, column = corner(slice_id, m_tiles)
            zero = uint32(0)
            if has_zero_points and per_channel:
                word = uint32((column >> 1) + warp_n * 32 + (lane_id >> 2) * 4)
                zero = ld_global_nc_u32(zero_points + uint64(word))
            k_first = k_step
            k_stop = uint32(k_step + uint32(end - step))
            if k_stop > k_steps:
                k_stop = k_steps

            # main loop: one stage a turn
            while k_step < k_stop:
                # this stage has arrived, and every warp has left the one to overwrite next
                cp_async_wait(in_flight)
                cuda.syncthreads()
                k_block = uint32(warp_k * k_blocks)
                word, a = fetch_to_registers(stage, a_lane, a_swizzle, b_lane, k_block)
                scale = word
                if not per_channel:
                    scale, zero = fetch_groups(stage, s_lane, z_lane, k_block)
                fetch, place = fetch_next(
                    fetch, place, end, smem, sources, m, n, k, x_columns, m_tiles
                )
                for _ in range(k_blocks - 1):
                    k_block = uint32(k_block + 1)
                    next_word, next_a = fetch_to_registers(
                        stage, a_lane, a_swizzle, b_lane, k_block
                    )
                    next_scale, next_zero = scale, zero
                    if groups_in_stage:
                        next_scale, next_zero = fetch_groups(stage, s_lane, z_lane, k_block)
                    acc = multiply(a, word, scale, zero, acc)
                    word, a, scale, zero = next_word, next_a, next_scale, next_zero
                acc = multiply(a, word, scale, zero, acc)

                stage = uint32(stage + stage_bytes)
                if stage == ring_end:
                    stage = smem
                k_step = uint32(k_step + 1)
                step = uint32(step + 1)

            own = sum_of_warps(ring_end, warps, acc)
            complete = True
            if k_first > 0 or k_stop < k_steps:
                begin = uint32(slice_id * k_steps)
                complete, own = sum_of_blocks(
                    smem, partials, counters + (uint64(slice_id) << 2), warps, own,
                    begin, k_steps, k_first, stripe_steps,
                )  # fmt: skip
            if complete:
                scale, shift = scale_and_bias(scales, bias, column, warps, has_bias)
                store_result(tile_out, out, warps, own, scale, shift, row, column, m, out_columns)
            slice_id = uint32(slice_id + 1)
            k_step = uint32(0)

    return marlin
