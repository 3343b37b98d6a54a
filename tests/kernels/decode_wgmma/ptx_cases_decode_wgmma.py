"""Cases of a stage of a GEMM for few tokens by wgmma, and of sums handed from block to block."""

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64
from ptx_cases import Case
from ptx_fragments import SUM_ERROR, bits16, loop_product, values16

from ferrum_numba import ptx
from ferrum_numba.kernels.decode_wgmma import steps as decode_wgmma_steps
from ferrum_numba.kernels.shared import handoff
from ferrum_numba.kernels.shared import tile as tile_steps
from ferrum_numba.reference.marlin_layout import pack_weight, pack_zero_points

TOKENS, ROWS, COLUMNS = 16, 64, 256
# where the parts of a stage lie: tokens, words, scales, zero points
WORDS, SCALES, ZEROS, STAGE_BYTES = 2048, 10240, 11264, 11520


def stage(half, groups, zero_points, in_flight):
    """Return a kernel of one warpgroup that multiplies a stage of weights with tokens."""
    multiply = decode_wgmma_steps.multiply_stage(
        TOKENS, half, groups, zero_points, in_flight=in_flight
    )
    describe = ptx.smem_descriptor(128, 1024)
    store, ones = tile_steps.store_tile("global", 2 * TOKENS, 2048), ptx.splat_f32(2 * TOKENS)

    def kernel(x, packed, scales, zero_points, out):
        t = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        row, piece = uint32(t >> 3), uint32(t & 7)
        place = uint32(base + row * 128 + (piece ^ (row & 7)) * 16)
        ptx.st_shared_v4(place, ptx.ld_global_v4(x + uint64(t * 16)))
        for i in range(4):
            words = ptx.ld_global_v4(packed + uint64(i * 2048 + t * 16))
            ptx.st_shared_v4(uint32(base + WORDS + i * 2048 + t * 16), words)
        if t < uint32(64):
            ptx.st_shared_v4(
                uint32(base + SCALES + t * 16), ptx.ld_global_v4(scales + uint64(t * 16))
            )
        if t < uint32(16):
            words = ptx.ld_global_v4(zero_points + uint64(t * 16))
            ptx.st_shared_v4(uint32(base + ZEROS + t * 16), words)
        ptx.fence_proxy_async_shared()
        cuda.syncthreads()
        column = uint32(t >> 2)
        acc = multiply(
            uint32(base + WORDS + t * 16),
            uint32(base + SCALES + column * 16),
            uint32(base + ZEROS + column * 4),
            describe(base),
            ones(float32(1)),
        )
        store(out + uint64(t * 16), acc)

    return kernel, (multiply, describe, store, ptx.fence_proxy_async_shared)


def stage_inputs(half, rows=ROWS, columns=COLUMNS):
    """Return tokens, packed codes, scales as the lanes read them, and packed zero points."""

    def make(rng):
        x = rng.standard_normal((TOKENS, rows)).astype(np.float32)
        scales = rng.uniform(0.5, 2.0, (2, columns)).astype(np.float32)
        lanes = scales.reshape(-1, 8, 8).swapaxes(1, 2).reshape(scales.shape)
        return {
            "x": bits16(x, half),
            "packed": pack_weight(rng.integers(0, 16, (rows, columns), np.uint8)),
            "scales": bits16(lanes, half),
            "zero_points": pack_zero_points(rng.integers(0, 16, (2, columns), np.uint8)),
        }

    return make


def unpack_codes(packed):
    """Return [rows, columns] codes of Marlin's tiles, word by word."""
    words = packed.view(np.uint32).reshape(len(packed), -1, 32, 4)
    codes = np.zeros((16 * words.shape[0], 64 * words.shape[1]))
    for tile, strip, lane, j, nibble in np.ndindex(*words.shape, 8):
        half_index, selector = nibble >> 2, nibble & 3
        k = 16 * tile + 2 * (lane % 4) + half_index + 8 * (selector & 1)
        n = 64 * strip + 16 * j + 8 * (selector >> 1) + lane // 4
        codes[k, n] = int(words[tile, strip, lane, j]) >> (4 * nibble) & 15
    return codes


def unpack_zeros(packed):
    """Return [rows, columns] zero points, word by word."""
    words = packed.view(np.uint32)
    zeros = np.zeros((len(words), 8 * words.shape[1]))
    for row, word, nibble in np.ndindex(*words.shape, 8):
        column = 64 * (word // 8) + word % 8 + 8 * (2 * (nibble % 4) + nibble // 4)
        zeros[row, column] = int(words[row, word]) >> (4 * nibble) & 15
    return zeros


def stage_parts(inputs, half, groups, zero_points):
    """Return per group x [TOKENS, rows], weights [rows, columns] and scales [columns]."""
    x = values16(inputs["x"].ravel(), half).reshape(TOKENS, -1)
    codes, zeros = unpack_codes(inputs["packed"]), unpack_zeros(inputs["zero_points"])
    scales = values16(inputs["scales"].ravel(), half).reshape(-1, 8, 8).swapaxes(1, 2)
    rows = x.shape[1] // max(groups, 1)
    for group in range(max(groups, 1)):
        part = slice(group * rows, (group + 1) * rows)
        zero = zeros[group % zero_points] if zero_points else 8.0
        scale = scales.reshape(2, -1)[group] if groups else np.ones(codes.shape[1])
        yield x[:, part], codes[part] - zero, scale


def as_accumulator(sums):
    """Return [pieces, 128, 4] of [TOKENS, COLUMNS]: what the lanes hold, in the store's order."""
    out = np.zeros((TOKENS // 2, 128, 4))
    for j, block, thread, c in np.ndindex(4, TOKENS // 8, 128, 4):
        warp, lane = divmod(thread, 32)
        column = 64 * warp + 16 * j + lane // 4 + 8 * (c // 2)
        token = 8 * block + 2 * (lane % 4) + c % 2
        out[j * (TOKENS // 8) + block, thread, c] = sums[token, column]
    return out


def stage_case(half, groups, zero_points, in_flight=1):
    function, covered = stage(half, groups, zero_points, in_flight)

    def want(inputs):
        parts = stage_parts(inputs, half, groups, zero_points)
        total = 1 + sum(loop_product(x, weights) * scale for x, weights, scale in parts)
        return as_accumulator(total).astype(np.float32)

    def bound(inputs):
        parts = stage_parts(inputs, half, groups, zero_points)
        total = sum(np.abs(x) @ np.abs(w) * np.maximum(s, 1) for x, w, s in parts)
        return SUM_ERROR * (as_accumulator(total) + 4)

    return Case(
        f"multiply_stage_{half}_{groups}_{zero_points}_{in_flight}",
        covered,
        function,
        stage_inputs(half),
        want,
        bound,
        num_threads=128,
        smem_bytes=STAGE_BYTES,
    )


PIECES, DEPTH, PIECE_BYTES = 2, 3, 512
SLOT_BYTES = PIECES * PIECE_BYTES
put_two, take_three = (
    handoff.put_slot(PIECES, PIECE_BYTES),
    handoff.take_slots(PIECES, PIECE_BYTES, DEPTH, SLOT_BYTES, 64),
)
load_two, store_two = tile_steps.add_tile("global", 8, 512), tile_steps.store_tile("global", 8, 512)
no_sums = ptx.splat_f32(8)


def hand_over_kernel(values, out):
    """Put two slots of sums, one or two pieces a lane, and take them again."""
    t = uint32(cuda.threadIdx.x)
    count = uint32(1 + (t & 1))
    at = out + uint64(t * 16)
    first = load_two(values + uint64(t * 16), no_sums(float32(0)))
    put_two(at, count, first)
    second = load_two(values + uint64(SLOT_BYTES + t * 16), no_sums(float32(0)))
    put_two(at + uint64(SLOT_BYTES), count, second)
    total = take_three(at, count, uint32(2), no_sums(float32(1)))
    store_two(at + uint64(2 * SLOT_BYTES), total)


def hand_over_inputs(rng):
    values = rng.standard_normal((2, PIECES, 32, 4)).astype(np.float32)
    # a sum of zero must arrive too
    values[:, :, ::5, ::2] = 0
    values[0, :, 1::5] = -0.0
    return {"values": values}


def handed_over(inputs):
    """Return slots of zeros where sums were taken, as they were elsewhere, and the sums."""
    values = inputs["values"]
    slots = np.full((2, PIECES, 32, 4), 0xA5A5A5A5, np.uint32)
    slots[:, 0] = 0
    slots[:, 1, 1::2] = 0
    total = np.ones((PIECES, 32, 4), np.float32)
    on = np.zeros((PIECES, 32, 1), bool)
    on[0], on[1, 1::2] = True, True
    total = np.where(on, (total + values[0]) + values[1], total)
    return np.concatenate([slots, total.view(np.uint32)[None]])


CASES = (
    *(
        stage_case(half, groups, zero_points)
        for half in ("f16", "bf16")
        for groups, zero_points in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2))
    ),
    *(stage_case("f16", 1, 0, in_flight) for in_flight in (2, 3)),
    stage_case("bf16", 2, 2, 2),
    Case(
        "put_and_take_slots", (put_two, take_three), hand_over_kernel, hand_over_inputs, handed_over
    ),
)
