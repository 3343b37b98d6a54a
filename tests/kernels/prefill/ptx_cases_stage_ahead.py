"""Cases of stages whose last products run on while the next stage is begun."""

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64
from ptx_cases import Case
from ptx_cases_decode_wgmma import TOKENS, stage_inputs, stage_parts
from ptx_fragments import SUM_ERROR, loop_product

from ferrum_numba import ptx
from ferrum_numba.kernels.prefill import steps as prefill_steps
from ferrum_numba.kernels.shared import tile as tile_steps

# columns of a warpgroup with two sub-tiles a warp, and sums of a lane: two sub-tiles and a last one
COLUMNS, SUMS = 128, 3 * TOKENS // 2
WORDS = 2 * TOKENS * 128
STAGES = 2


def two_stages(half, rows, groups, zero_points):
    """Return a kernel of one warpgroup that multiplies a stage twice, and ends it."""
    k_tiles, pieces = rows // 16, rows // 8
    stages = prefill_steps.StageAhead(TOKENS, half, groups, zero_points, k_tiles, COLUMNS, 2)
    first, multiply, last = stages.first, stages.multiply, stages.last
    describe = ptx.smem_descriptor(128, 1024)
    store, zeros = tile_steps.store_tile("global", SUMS, 2048), ptx.splat_f32(SUMS)
    scales_at = WORDS + k_tiles * COLUMNS * 8
    zeros_at = scales_at + 2 * COLUMNS * 2
    bar_at = zeros_at + COLUMNS

    def kernel(x, packed, scales, zero_points, out):
        t = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        for i in range(TOKENS * pieces // 128):
            item = uint32(t + i * 128)
            row, piece = uint32(item // uint32(pieces)), uint32(item % uint32(pieces))
            place = uint32(base + (piece >> 3) * (TOKENS * 128) + row * 128)
            place = uint32(place + uint32(uint32(piece & 7) ^ (row & 7)) * 16)
            ptx.st_shared_v4(place, ptx.ld_global_v4(x + uint64(item * 16)))
        for i in range(k_tiles * COLUMNS * 8 // 2048):
            at = uint32(i * 2048 + t * 16)
            ptx.st_shared_v4(uint32(base + WORDS + at), ptx.ld_global_v4(packed + uint64(at)))
        if t < uint32(32):
            words = ptx.ld_global_v4(scales + uint64(t * 16))
            ptx.st_shared_v4(uint32(base + scales_at + t * 16), words)
        if t < uint32(8):
            words = ptx.ld_global_v4(zero_points + uint64(t * 16))
            ptx.st_shared_v4(uint32(base + zeros_at + t * 16), words)
        if t == uint32(0):
            ptx.mbarrier_init(uint32(base + bar_at), uint32(1))
            ptx.fence_mbarrier_init()
        ptx.fence_proxy_async_shared()
        cuda.syncthreads()
        # two warps have a tile of 64 columns
        lane_id, warp_id = uint32(t & 31), uint32(t >> 5)
        tile, subtile = uint32(warp_id >> 1), uint32(uint32(warp_id & 1) * 2)
        words = uint32(base + WORDS + tile * 512 + lane_id * 16 + subtile * 4)
        factors = uint32(base + scales_at + tile * 128 + (lane_id >> 2) * 16 + subtile * 4)
        zero = uint32(base + zeros_at + tile * 32 + (lane_id >> 2) * 4)
        acc = zeros(float32(0))
        for _ in range(STAGES):
            a = first(words, zero, subtile)
            acc = multiply(
                words, factors, zero, subtile, factors, describe(base),
                uint32(base + bar_at), uint32(1), a, acc,
            )  # fmt: skip
        store(out + uint64(t * 16), last(factors, acc))

    covered = (first, multiply, last, describe, store)
    return kernel, covered, bar_at + 16


def as_accumulator(sums):
    """Return [pieces, 128, 4] of [TOKENS, COLUMNS]: what the lanes hold, and then zeros."""
    out = np.zeros((SUMS // 4, 128, 4))
    for j, block, thread, c in np.ndindex(2, TOKENS // 8, 128, 4):
        warp, lane = divmod(thread, 32)
        column = 64 * (warp // 2) + 16 * (warp % 2 * 2 + j) + lane // 4 + 8 * (c // 2)
        token = 8 * block + 2 * (lane % 4) + c % 2
        out[j * (TOKENS // 8) + block, thread, c] = sums[token, column]
    return out


def stage_ahead_case(half, rows, groups, zero_points):
    function, covered, smem_bytes = two_stages(half, rows, groups, zero_points)

    def want(inputs):
        parts = stage_parts(inputs, half, groups, zero_points)
        total = STAGES * sum(loop_product(x, weights) * scale for x, weights, scale in parts)
        return as_accumulator(total).astype(np.float32)

    def bound(inputs):
        parts = stage_parts(inputs, half, groups, zero_points)
        total = sum(np.abs(x) @ np.abs(w) * np.maximum(s, 1) for x, w, s in parts)
        return STAGES * SUM_ERROR * (as_accumulator(total) + 4)

    return Case(
        f"stage_ahead_{half}_{rows}_{groups}_{zero_points}",
        covered,
        function,
        stage_inputs(half, rows, COLUMNS),
        want,
        bound,
        num_threads=128,
        smem_bytes=smem_bytes,
    )


CASES = (
    stage_ahead_case("f16", 64, 1, 0),
    stage_ahead_case("bf16", 64, 2, 2),
    stage_ahead_case("f16", 128, 1, 1),
    stage_ahead_case("bf16", 128, 1, 0),
    stage_ahead_case("f16", 128, 2, 2),
)
