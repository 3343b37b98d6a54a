"""Cases of the steps of a GEMM for few tokens: loads, products, scales and sums of a warp."""

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64
from ptx_cases import Case
from ptx_fragments import SUM_ERROR, bits16, loop_product, values16

from ferrum_numba import ptx
from ferrum_numba.kernels.decode import steps as decode_steps
from ferrum_numba.kernels.shared import columns as shared_columns
from ferrum_numba.kernels.shared import handoff
from ferrum_numba.kernels.shared import tile as tile_steps
from ferrum_numba.reference.marlin_layout import pack_weight, pack_zero_points

K_TILES, N_TILES = 2, 2
ROWS, TOKENS = 16 * K_TILES, 8 * N_TILES
ROW_BYTES = ROWS * 2 + 16
TILE_BYTES = 512
SUMS = 16 * N_TILES


def indices_kernel(out):
    t = ptx.thread_id()
    # there is one row of blocks
    value = t + ptx.block_id() * 100 + ptx.block_id_y() * 1000
    ptx.st_global_u32(out + uint64(uint32(ptx.block_id() * 32 + t) * 4), value)


def prefetch_kernel(a, out):
    t = uint32(cuda.threadIdx.x)
    ptx.prefetch_l2(a + uint64(t * 4))
    ptx.st_global_u32(out + uint64(t * 4), ptx.ld_global_u32(a + uint64(t * 4)))


def copy_through_l1_kernel(a, out):
    t = uint32(cuda.threadIdx.x)
    place = uint32(ptx.smem_base() + t * 16)
    ptx.cp_async_16_ca(place, a + uint64(t * 16))
    ptx.cp_async_commit()
    ptx.cp_async_wait(0)
    ptx.st_global_v4(out + uint64(t * 16), ptx.ld_shared_v4(place))


def copy_some_through_l1_kernel(a, out):
    t = uint32(cuda.threadIdx.x)
    place = uint32(ptx.smem_base() + t * 16)
    ptx.cp_async_16_ca_zfill(place, a + uint64(t * 16), uint32(t % uint32(17)))
    ptx.cp_async_commit()
    ptx.cp_async_wait(0)
    ptx.st_global_v4(out + uint64(t * 16), ptx.ld_shared_v4(place))


def first_bytes(inputs):
    """Return the first (lane % 17) bytes of each lane's 16, zeros after them."""
    pieces = inputs["a"].view(np.uint8)
    kept = np.arange(16) < np.arange(32)[:, None] % 17
    return np.where(kept, pieces, np.uint8(0)).view(np.uint32)


def send_kernel(values, out):
    """The second block of a cluster sends its values to the first, which writes them."""
    t = uint32(cuda.threadIdx.x)
    place = uint32(ptx.smem_base() + 16 + t * 16)
    rank = ptx.cluster_ctarank()
    if t == uint32(0) and rank == uint32(0):
        ptx.mbarrier_init(ptx.smem_base(), uint32(1))
        ptx.fence_mbarrier_init()
        ptx.mbarrier_arrive_expect_tx(ptx.smem_base(), uint32(512))
    ptx.cluster_arrive_relaxed()
    ptx.cluster_wait()
    if rank > uint32(0):
        four = ptx.ld_global_v4_f32(values + uint64(t * 16))
        zero = uint32(0)
        ptx.st_async_v4(ptx.mapa(place, zero), four, ptx.mapa(ptx.smem_base(), zero))
    else:
        ptx.mbarrier_wait(ptx.smem_base(), uint32(0))
        ptx.st_global_v4(out + uint64(t * 16), ptx.ld_shared_v4(place))


def words_of(shape):
    return lambda rng: {"a": rng.integers(0, 2**32, shape, np.uint32)}


def step(half, groups, zero_points, scaled):
    """Return a kernel that multiplies a step of weights with tokens.

    scaled: the sums of all groups are scaled at once, by `scale_sums`
    """
    load = decode_steps.load_tiles(K_TILES)
    load_x = decode_steps.load_tokens(K_TILES, N_TILES, ROW_BYTES)
    load_scales = decode_steps.load_words(max(groups, 1), 4)
    load_zeros = decode_steps.load_words(2, 1)
    multiply = decode_steps.multiply_step(K_TILES, N_TILES, half, groups, zero_points)
    scale = decode_steps.scale_sums(N_TILES, half)
    store = tile_steps.store_tile("global", SUMS, TILE_BYTES)
    zeros = ptx.splat_f32(SUMS)
    two_zeros = zero_points == 2

    def kernel(x, packed, scales, zero_points, out):
        t = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        piece = t
        while piece < uint32(TOKENS * ROWS // 8):
            row = uint32(piece // uint32(ROWS // 8))
            column = uint32(piece - uint32(row * (ROWS // 8)))
            place = uint32(base + row * ROW_BYTES + column * 16)
            ptx.st_shared_v4(place, ptx.ld_global_v4(x + uint64(piece * 16)))
            piece = uint32(piece + 32)
        cuda.syncthreads()
        words = load(packed + uint64(t * 16), uint64(TILE_BYTES))
        token = load_x(base + (t & 7) * ROW_BYTES + (t >> 3) * 16)
        lane_scales = load_scales(scales + uint64((t >> 2) * 16), uint64(128))
        lane_zeros = load_zeros(zero_points + uint64((t >> 2) * 4), uint64(32))
        if two_zeros:
            acc = multiply(words, token, lane_scales, lane_zeros, zeros(float32(1)))
        else:
            acc = multiply(words, token, lane_scales, (lane_zeros[0],), zeros(float32(1)))
        if scaled:
            acc = scale(acc, lane_scales, zeros(float32(2)))
        store(out + uint64(t * 16), acc)

    covered = (load, load_x, multiply, store, *((scale,) if scaled else ()))
    return kernel, covered


def step_inputs(half, groups):
    """Return tokens, packed codes, scales as the lanes read them, and packed zero points."""

    def make(rng):
        x = rng.standard_normal((TOKENS, ROWS)).astype(np.float32)
        scales = rng.uniform(0.5, 2.0, (max(groups, 1), 64)).astype(np.float32)
        zero_points = rng.integers(0, 16, (2, 64), np.uint8)
        lanes = scales.reshape(-1, 8, 8).swapaxes(1, 2).reshape(scales.shape)
        return {
            "x": bits16(x, half),
            "packed": pack_weight(rng.integers(0, 16, (ROWS, 64), np.uint8)),
            "scales": bits16(lanes, half),
            "zero_points": pack_zero_points(zero_points),
        }

    return make


def step_parts(inputs, half, groups, zero_points):
    """Return per group x [TOKENS, rows], weights [rows, 64] and scales [64], unpacked by hand."""
    x = values16(inputs["x"].ravel(), half).reshape(TOKENS, ROWS)
    words = inputs["packed"].view(np.uint32).reshape(K_TILES, 32, 4)
    codes = np.zeros((ROWS, 64))
    for tile, lane, j, nibble in np.ndindex(K_TILES, 32, 4, 8):
        half_index, selector = nibble >> 2, nibble & 3
        k = 16 * tile + 2 * (lane % 4) + half_index + 8 * (selector & 1)
        n = 16 * j + 8 * (selector >> 1) + lane // 4
        codes[k, n] = int(words[tile, lane, j]) >> (4 * nibble) & 15
    scales = values16(inputs["scales"].ravel(), half).reshape(-1, 8, 8).swapaxes(1, 2)
    zeros = np.full((2, 64), 8.0)
    if zero_points:
        packed = inputs["zero_points"].view(np.uint32)
        for group, word, nibble in np.ndindex(2, 8, 8):
            column = word + 8 * (2 * (nibble % 4) + nibble // 4)
            zeros[group, column] = int(packed[group, word]) >> (4 * nibble) & 15
    rows = ROWS // max(groups, 1)
    for group in range(max(groups, 1)):
        part = slice(group * rows, (group + 1) * rows)
        zero = zeros[group % max(zero_points, 1)]
        yield x[:, part], codes[part] - zero, scales.reshape(-1, 64)[group]


def as_accumulator(sums):
    """Return [pieces, 32, 4] of [TOKENS, 64]: what the lanes hold, in the order of the store."""
    out = np.zeros((SUMS // 4, 32, 4))
    for j, block, lane, c in np.ndindex(4, N_TILES, 32, 4):
        column = 16 * j + lane // 4 + 8 * (c // 2)
        out[j * N_TILES + block, lane, c] = sums[8 * block + 2 * (lane % 4) + c % 2, column]
    return out


def step_want(half, groups, zero_points, scaled):
    def want(inputs):
        total = np.ones((TOKENS, 64))
        for x, weights, scale in step_parts(inputs, half, groups, zero_points):
            part = loop_product(x, weights)
            total = 2 + (1 + part) * scale if scaled else total + part * (scale if groups else 1)
        return as_accumulator(total).astype(np.float32)

    return want


def step_bound(half, groups, zero_points):
    def bound(inputs):
        parts = step_parts(inputs, half, groups, zero_points)
        total = sum(np.abs(x) @ np.abs(w) * np.maximum(s, 1) for x, w, s in parts)
        return SUM_ERROR * (as_accumulator(total) + 4)

    return bound


def step_case(half, groups, zero_points, scaled=False):
    kernel, covered = step(half, groups, zero_points, scaled)
    return Case(
        f"multiply_step_{half}_{groups}_{zero_points}{'_scaled' if scaled else ''}",
        covered,
        kernel,
        step_inputs(half, groups),
        step_want(half, groups, zero_points, scaled),
        step_bound(half, groups, zero_points),
        smem_bytes=TOKENS * ROW_BYTES,
    )


load_four = decode_steps.load_words(2, 4)
store_result = tile_steps.store_tile("global", 4, TILE_BYTES)
put_one = handoff.put_slot(1, 16)
take_two = handoff.take_slots(1, 16, 2, TILE_BYTES, 0)
four = ptx.splat_f32(4)


def load_words_kernel(a, out):
    t = uint32(cuda.threadIdx.x)
    words = load_four(a + uint64(t * 16), uint64(TILE_BYTES))
    ptx.st_global_v4(out + uint64(t * 16), (words[0], words[1], words[2], words[3]))
    ptx.st_global_v4(out + uint64(TILE_BYTES + t * 16), (words[4], words[5], words[6], words[7]))


def slots_kernel(values, slots, out):
    t = uint32(cuda.threadIdx.x)
    # of no slot, of the first, of both, of both because there are only two
    count = uint32(t % uint32(4))
    slot = slots + uint64(t * 16)
    if ptx.block_id() == uint32(0):
        for i in range(2):
            if count > uint32(i):
                at = uint64(uint32(t * 16 + i * TILE_BYTES))
                sums = ptx.ld_global_v4_f32(values + at)
                put_one(slot + uint64(i * TILE_BYTES), uint32(1), sums)
    else:
        # what the block before puts there, and what is left of it
        total = take_two(slot, uint32(1), count, four(float32(1)))
        store_result(out + uint64(t * 16), total)
        for i in range(2):
            left = ptx.ld_global_v4(slot + uint64(i * TILE_BYTES))
            ptx.st_global_v4(out + uint64(uint32(t * 16 + (i + 1) * TILE_BYTES)), left)


def slots_inputs(rng):
    values = rng.standard_normal((2, 32, 4)).astype(np.float32)
    values[:, 4:12, 0] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.0]
    return {"values": values, "slots": np.zeros((2, 32, 4), np.uint32)}


def slots_wanted(inputs):
    values, count = inputs["values"], np.arange(32) % 4
    total = np.ones((32, 4), np.float32)
    for i in range(2):
        total[count > i] += values[i][count > i]
    return np.stack([total, *np.zeros_like(values)])


columns = shared_columns.store_columns(1, 272)
load_sixteen = tile_steps.add_tile("global", 16, TILE_BYTES)
sixteen = ptx.splat_f32(16)


def store_columns_kernel(values, out):
    t = uint32(cuda.threadIdx.x)
    base = ptx.smem_base()
    acc = load_sixteen(values + uint64(t * 16), sixteen(float32(0)))
    columns(base + (t & 3) * (2 * 272) + (t >> 2) * 4, acc)
    cuda.syncthreads()
    for i in range(4):
        piece = uint32(t + i * 32)
        value = ptx.ld_shared_v4(base + uint32(piece >> 4) * 272 + (piece & 15) * 16)
        ptx.st_global_v4(out + uint64(piece * 16), value)


def columns_wanted(inputs):
    """Return [8 tokens, 64 columns], element by element."""
    out = np.zeros((8, 64), np.float32)
    for j, lane, c in np.ndindex(4, 32, 4):
        out[2 * (lane % 4) + c % 2, 16 * j + lane // 4 + 8 * (c // 2)] = inputs["values"][
            j, lane, c
        ]
    return out.view(np.uint32)


CASES = (
    Case(
        "thread_id",
        (ptx.thread_id, ptx.block_id, ptx.block_id_y),
        indices_kernel,
        lambda rng: {},
        lambda inputs: (np.arange(32) + 100 * np.arange(3)[:, None]).astype(np.uint32),
        num_blocks=3,
    ),
    Case(
        "prefetch_l2",
        (ptx.prefetch_l2,),
        prefetch_kernel,
        words_of(32),
        lambda inputs: inputs["a"],
    ),
    Case(
        "cp_async_16_ca",
        (ptx.cp_async_16_ca,),
        copy_through_l1_kernel,
        words_of((32, 4)),
        lambda inputs: inputs["a"],
        smem_bytes=512,
    ),
    Case(
        "cp_async_16_ca_zfill",
        (ptx.cp_async_16_ca_zfill,),
        copy_some_through_l1_kernel,
        words_of((32, 4)),
        first_bytes,
        smem_bytes=512,
    ),
    Case(
        "st_async_v4",
        (ptx.cluster_arrive_relaxed, ptx.st_async_v4),
        send_kernel,
        lambda rng: {"values": rng.standard_normal((32, 4)).astype(np.float32)},
        lambda inputs: inputs["values"],
        num_blocks=2,
        smem_bytes=528,
        cluster=(2, 1, 1),
    ),
    Case(
        "load_words",
        (load_four,),
        load_words_kernel,
        words_of((2, 32, 4)),
        lambda inputs: inputs["a"],
    ),
    Case(
        "slots",
        (put_one, take_two),
        slots_kernel,
        slots_inputs,
        slots_wanted,
        num_blocks=2,
    ),
    Case(
        "store_columns",
        (columns,),
        store_columns_kernel,
        lambda rng: {"values": rng.standard_normal((4, 32, 4)).astype(np.float32)},
        columns_wanted,
        smem_bytes=8 * 272,
    ),
    step_case("f16", 0, 0),
    step_case("f16", 1, 0),
    step_case("f16", 2, 2),
    step_case("f16", 0, 1, scaled=True),
    step_case("bf16", 1, 0),
    step_case("bf16", 2, 2),
    step_case("bf16", 0, 1, scaled=True),
)
