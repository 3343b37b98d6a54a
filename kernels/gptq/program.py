"""The device program of gptq: kernel.py says what is computed and how it is tiled."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.division import ceil_div
from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.gptq.kernel import STEP_K, WARP_N, WORD_ROWS
from ferrum_numba.kernels.gptq.result import make_sum_of_shares
from ferrum_numba.kernels.gptq.steps import (
    dequantize_column,
    load_groups,
    load_rows,
    mma_rows,
    store_rows,
)
from ferrum_numba.ptx.asynchronous import (
    cp_async_4,
    cp_async_16_zfill,
    cp_async_commit,
    cp_async_wait,
)
from ferrum_numba.ptx.convert import UNPACK, splat_f32
from ferrum_numba.ptx.memory import (
    ld_global_nc_u32,
    ld_global_nc_v4,
    ld_shared_v4,
)
from ferrum_numba.ptx.special import smem_base


def build(config):
    """Return the kernel of a config: a function of the parameters of `W4A16Gptq`, in order."""
    tile_m, tile_n, tile_k = config.tile_m, config.tile_n, config.tile_k
    num_stages, num_threads = config.num_stages, config.num_threads
    half = HALVES[config.dtype]
    unpack = UNPACK[half]
    by_row = config.group_rows == 1
    k_blocks, in_flight = tile_k // STEP_K, num_stages - 2
    blocks_per_group = max(1, config.group_rows // STEP_K)

    # pieces of 16 bytes a stage, with 4 bytes of zero points to 16 of scales
    x_row, w_row, s_row = tile_k // 8, tile_n // 4, tile_n // 8
    pieces = (tile_m * x_row, tile_k // 8 * w_row, config.scale_rows * s_row)
    # a thread's share of them
    x_rounds, w_rounds, s_rounds = (ceil_div(count, num_threads) for count in pieces)

    x_bytes, w_bytes, s_bytes, _ = config.stage_parts
    blocks = tile_m // 16
    acc_floats = 8 * blocks

    x_pieces, w_pieces, s_pieces = (uint32(count) for count in pieces)
    x_row_pieces, w_row_pieces, s_row_pieces = uint32(x_row), uint32(w_row), uint32(s_row)
    w_offset, s_offset = uint32(x_bytes), uint32(x_bytes + w_bytes)
    z_offset = uint32(x_bytes + w_bytes + s_bytes)
    stage_bytes = uint32(sum(config.stage_parts))
    ring_bytes = uint32(num_stages * sum(config.stage_parts))
    w_step_bytes = uint32(STEP_K * tile_n // 2)
    scale_row_bytes, zero_row_bytes = uint32(config.scale_row_bytes), uint32(tile_n // 2)
    rows_per_scale = uint32(config.group_rows)
    # staged rows of scales from one lane of a quad to the next
    quad_rows = uint32(WORD_ROWS // config.group_rows)
    # two neighbouring rows of x are read together: the odd one changes sides, unless they lie in
    # different banks anyway
    x_swizzle = uint32(4 if tile_k >= 64 else 0)

    zeros = splat_f32(acc_floats)
    load_a = load_rows(blocks, 2 * tile_k)
    groups_of_word = WORD_ROWS if by_row else 1
    load_group = load_groups(groups_of_word, config.scale_row_bytes, tile_n // 2, half)
    dequantize_0, dequantize_1, dequantize_2, dequantize_3 = (
        dequantize_column(column, groups_of_word, half) for column in range(4)
    )
    mma = mma_rows(blocks, half)
    store_out = store_rows(blocks, half)
    sum_of_shares = make_sum_of_shares(config)

    @cuda.jit(device=True, forceinline=True)
    def copy_16(smem, gmem, inside):
        cp_async_16_zfill(uint32(smem), gmem, uint32(16) if inside else uint32(0))

    @cuda.jit(device=True, forceinline=True)
    def fetch_x(stage, x, row, k_first, m, k):
        for i in range(x_rounds):
            piece = uint32(cuda.threadIdx.x + i * num_threads)
            if piece < x_pieces:
                r, c = uint32(piece // x_row_pieces), uint32(piece % x_row_pieces)
                m_row, k_row = uint32(row + r), uint32(k_first + c * 8)
                # beyond M and K: zeros, from an address that exists
                inside = m_row < m and k_row < k
                source = uint64(m_row) * uint64(k) + uint64(k_row) if inside else uint64(0)
                swizzled = r * x_row_pieces + (c ^ ((r & uint32(1)) * x_swizzle))
                copy_16(stage + swizzled * uint32(16), x + source * uint64(2), inside)

    @cuda.jit(device=True, forceinline=True)
    def fetch_weight(stage, qweight, column, k_first, n, k):
        for i in range(w_rounds):
            piece = uint32(cuda.threadIdx.x + i * num_threads)
            if piece < w_pieces:
                r, c = uint32(piece // w_row_pieces), uint32(piece % w_row_pieces)
                word_row = uint32(k_first // uint32(8) + r)
                n_column = uint32(column + c * 4)
                inside = n_column < n and word_row < uint32(k // uint32(8))
                source = uint64(word_row) * uint64(n) + uint64(n_column) if inside else uint64(0)
                # a quad reads four rows at once, two neighbouring pieces of each
                swizzled = r * w_row_pieces + (c ^ ((r & uint32(3)) * uint32(2)))
                smem = stage + w_offset + swizzled * uint32(16)
                copy_16(smem, qweight + source * uint64(4), inside)

    @cuda.jit(device=True, forceinline=True)
    def fetch_groups(stage, scales, qzeros, g_idx, column, k_first, n, k, group_size):
        for i in range(s_rounds):
            piece = uint32(cuda.threadIdx.x + i * num_threads)
            if piece < s_pieces:
                r, c = uint32(piece // s_row_pieces), uint32(piece % s_row_pieces)
                k_row = uint32(k_first + r * rows_per_scale)
                n_column = uint32(column + c * 8)
                # a scale of zero beyond K and N: the zero point there may be anything
                inside = n_column < n and k_row < k
                k_row = k_row if inside else uint32(0)
                n_column = n_column if inside else uint32(0)
                if by_row:
                    group = ld_global_nc_u32(g_idx + uint64(k_row) * uint64(4))
                else:
                    group = uint32(k_row // group_size)
                source = uint64(group) * uint64(n) + uint64(n_column)
                smem = stage + s_offset + r * scale_row_bytes + c * uint32(16)
                copy_16(smem, scales + source * uint64(2), inside)
                smem = stage + z_offset + piece * uint32(4)
                cp_async_4(uint32(smem), qzeros + source // uint64(2))

    @cuda.jit(device=True, forceinline=True)
    def fetch_to_shared(
        stage, k_step, x, qweight, scales, qzeros, g_idx, row, column, m, n, k, group_size
    ):
        k_first = uint32(k_step * uint32(tile_k))
        fetch_x(stage, x, row, k_first, m, k)
        fetch_weight(stage, qweight, column, k_first, n, k)
        fetch_groups(stage, scales, qzeros, g_idx, column, k_first, n, k, group_size)

    @cuda.jit(device=True, forceinline=True)
    def next_stage(stage, smem):
        stage = uint32(stage + stage_bytes)
        return smem if stage == uint32(smem + ring_bytes) else stage

    def w4a16_gptq(
        x, qweight, scales, qzeros, g_idx, bias, out, partials, counters,
        m, n, k, group_size, zero_offset, has_bias,
    ):  # fmt: skip
        # index: which tile, which share of K, which columns of the tile
        smem = smem_base()
        tid = uint32(cuda.threadIdx.x)
        lane_id, warp_id = uint32(tid & 31), uint32(tid >> 5)
        g, t = uint32(lane_id >> 2), uint32(lane_id & 3)
        row = uint32(cuda.blockIdx.x * tile_m)
        column = uint32(cuda.blockIdx.y * tile_n)
        split, shares = uint32(cuda.blockIdx.z), uint32(cuda.gridDim.z)
        k_steps = uint32((k + uint32(tile_k - 1)) // uint32(tile_k))
        k_step = uint32(k_steps * split // shares)
        k_stop = uint32(k_steps * (split + uint32(1)) // shares)

        # where in a stage a lane reads
        x_lane = uint32(g * uint32(2 * tile_k))
        x_side = uint32((g & 1) * x_swizzle)
        w_piece = uint32((warp_id * 8 + g) ^ (t * 2))
        w_lane = uint32(w_offset + (t * w_row_pieces + w_piece) * 16)
        lane_column = uint32(warp_id * WARP_N + g * 4)
        lane_scale = uint32(s_offset + lane_column * 2)
        lane_zero = uint32(z_offset + lane_column // uint32(8) * 4)
        zero_shift = uint32((g & 1) * 16)

        # prologue: the copies run num_stages - 1 tiles ahead of the mma
        fetch_tile, fetch_stage = k_step, smem
        for _ in range(num_stages - 1):
            if fetch_tile < k_stop:
                fetch_to_shared(
                    fetch_stage, fetch_tile, x, qweight, scales, qzeros, g_idx, row, column,
                    m, n, k, group_size,
                )  # fmt: skip
            cp_async_commit()
            fetch_tile = uint32(fetch_tile + 1)
            fetch_stage = next_stage(fetch_stage, smem)

        acc01 = zeros(float32(0))
        acc23 = zeros(float32(0))
        stage = smem

        # main loop: one stage a turn
        while k_step < k_stop:
            cp_async_wait(in_flight)
            # also: every warp has left the stage that the next copies overwrite
            cuda.syncthreads()
            if fetch_tile < k_stop:
                fetch_to_shared(
                    fetch_stage, fetch_tile, x, qweight, scales, qzeros, g_idx, row, column,
                    m, n, k, group_size,
                )  # fmt: skip
            cp_async_commit()
            fetch_tile = uint32(fetch_tile + 1)
            fetch_stage = next_stage(fetch_stage, smem)

            for k_block in range(k_blocks):
                x_piece = uint32((uint32(4 * k_block) + t) ^ x_side)
                a = load_a(uint32(stage + x_lane + x_piece * 16))
                word = ld_shared_v4(uint32(stage + w_lane + uint32(k_block) * w_step_bytes))
                if k_block % blocks_per_group == 0:
                    scale_row = uint32(uint32(k_block * STEP_K) // rows_per_scale + t * quad_rows)
                    groups = load_group(
                        uint32(stage + lane_scale + scale_row * scale_row_bytes),
                        uint32(stage + lane_zero + scale_row * zero_row_bytes),
                        zero_shift,
                        zero_offset,
                    )
                acc01 = mma(a, dequantize_0(word[0], groups), dequantize_1(word[1], groups), acc01)
                acc23 = mma(a, dequantize_2(word[2], groups), dequantize_3(word[3], groups), acc23)

            stage = next_stage(stage, smem)
            k_step = uint32(k_step + 1)

        complete = True
        if shares > 1:
            warps = (tid, lane_id, warp_id)
            complete, acc01, acc23 = sum_of_shares(
                acc01, acc23, partials, counters, uint32(smem + ring_bytes), warps, split, shares
            )

        # epilogue: bias, one rounding, registers -> gmem
        n_column = uint32(column + warp_id * WARP_N + t * 8)
        m_row = uint32(row + g)
        if complete and n_column < n and m_row < m:
            b = (uint32(0), uint32(0), uint32(0), uint32(0))
            if has_bias > 0:
                b = ld_global_nc_v4(bias + uint64(n_column) * uint64(2))
            b01, b23, b45, b67 = unpack(b[0]), unpack(b[1]), unpack(b[2]), unpack(b[3])
            place = out + (uint64(m_row) * uint64(n) + uint64(n_column)) * uint64(2)
            eight = (b01[0], b01[1], b23[0], b23[1], b45[0], b45[1], b67[0], b67[1])
            store_out(place, uint64(n) * uint64(2), uint32(m - m_row), acc01, acc23, eight)

    return w4a16_gptq
