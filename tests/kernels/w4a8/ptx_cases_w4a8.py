"""Cases of a stage of 8-bit products, of the scales of tokens, and of rounding to 8 bits."""

import ml_dtypes
import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64
from ptx_cases import Case
from ptx_cases_decode_wgmma import unpack_codes, unpack_zeros
from ptx_fragments import SUM_ERROR, bits16, loop_product, values16

from ferrum_numba import ptx
from ferrum_numba.kernels.decode import steps as decode_steps
from ferrum_numba.kernels.shared import tile as tile_steps
from ferrum_numba.kernels.shared.int4_bytes import sixteen
from ferrum_numba.kernels.shared.packed_x8 import interleave
from ferrum_numba.kernels.w4a8_decode.steps import load_bytes, multiply_bytes, widen_tokens
from ferrum_numba.kernels.w4a8_wgmma.steps import Stage8, scale_tokens
from ferrum_numba.reference.marlin_layout import pack_weight, pack_zero_points

# of a warpgroup whose warps have two strips each
TOKENS, ROWS, COLUMNS, STRIPS = 16, 128, 128, 2
SUMS = STRIPS * TOKENS // 2
WORDS = TOKENS * ROWS
SCALES = WORDS + ROWS * COLUMNS // 2
ZEROS = SCALES + 4 * COLUMNS * 2
TABLES = ZEROS + 4 * COLUMNS // 2
FACTORS = TABLES + 256
BAR = FACTORS + 4 * TOKENS
TYPES = {"fp8": ml_dtypes.float8_e4m3fn, "int8": np.int8}
# Hopper keeps 13 places of a sum of fp8, and cuts
FP8_ERROR = 2.0**-12


def stage(x_dtype, half, groups, zero_points, sets, tokens, ahead):
    """Return a kernel of one warpgroup that multiplies a stage, then once more by the tokens."""
    multiply = Stage8(
        TOKENS, x_dtype, half, groups, zero_points, COLUMNS, STRIPS, sets, tokens, ahead
    ).multiply
    by_token, describe = scale_tokens(TOKENS, STRIPS), ptx.smem_descriptor(128, 1024)
    store, ones = tile_steps.store_tile("global", SUMS, 2048), ptx.splat_f32(SUMS)

    def kernel(x8, packed, scales, zero_points, tables, factors, out):
        t = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        row, piece = uint32(t >> 3), uint32(t & 7)
        place = uint32(base + row * 128 + (piece ^ (row & 7)) * 16)
        ptx.st_shared_v4(place, ptx.ld_global_v4(x8 + uint64(t * 16)))
        for i in range(ROWS * COLUMNS // 2 // 2048):
            at = uint32(i * 2048 + t * 16)
            ptx.st_shared_v4(uint32(base + WORDS + at), ptx.ld_global_v4(packed + uint64(at)))
        if t < uint32(64):
            words = ptx.ld_global_v4(scales + uint64(t * 16))
            ptx.st_shared_v4(uint32(base + SCALES + t * 16), words)
        if t < uint32(16):
            words = ptx.ld_global_v4(zero_points + uint64(t * 16))
            ptx.st_shared_v4(uint32(base + ZEROS + t * 16), words)
            words = ptx.ld_global_v4(tables + uint64(t * 16))
            ptx.st_shared_v4(uint32(base + TABLES + t * 16), words)
        if t < uint32(4):
            words = ptx.ld_global_v4(factors + uint64(t * 16))
            ptx.st_shared_v4(uint32(base + FACTORS + t * 16), words)
        if t == uint32(0):
            ptx.mbarrier_init(uint32(base + BAR), uint32(1))
            ptx.fence_mbarrier_init()
        ptx.fence_proxy_async_shared()
        cuda.syncthreads()
        # two warps have a tile of 64 columns
        lane_id, warp_id = uint32(t & 31), uint32(t >> 5)
        tile, strip = uint32(warp_id >> 1), uint32(uint32(warp_id & 1) * 2)
        zeros = uint32(base + ZEROS + tile * 32 + (lane_id >> 2) * 4)
        if groups == 0:
            zeros = ptx.ld_shared_u32(zeros)
        token = uint32(base + FACTORS + uint32(lane_id & 3) * 8)
        acc = multiply(
            uint32(base + WORDS + tile * 512 + lane_id * 16 + strip * 4),
            uint32(base + SCALES + tile * 128 + (lane_id >> 2) * 16 + strip * 4),
            zeros, uint32(base + TABLES), strip, token, describe(base),
            uint32(base + BAR), uint32(1), ones(float32(1)),
        )  # fmt: skip
        store(out + uint64(t * 16), by_token(token, acc))

    return kernel, (multiply, by_token, describe, store)


def stage_inputs(x_dtype, half):
    def make(rng):
        x = rng.standard_normal((TOKENS, ROWS)).astype(np.float32) * 30
        x8 = np.ascontiguousarray(x.astype(TYPES[x_dtype])).view(np.uint8)
        scales = rng.uniform(0.5, 2.0, (4, COLUMNS)).astype(np.float32)
        lanes = scales.reshape(-1, 8, 8).swapaxes(1, 2).reshape(scales.shape)
        return {
            "x8": interleave(x8),
            "packed": pack_weight(rng.integers(0, 16, (ROWS, COLUMNS), np.uint8)),
            "scales": bits16(lanes, half),
            "zero_points": pack_zero_points(rng.integers(0, 16, (4, COLUMNS), np.uint8)),
            "tables": sixteen(np.arange(16)),
            "factors": rng.uniform(0.5, 2.0, TOKENS).astype(np.float32),
        }

    return make


def parts(inputs, x_dtype, half, groups, zero_points):
    """Return per group x [TOKENS, rows], weights [rows, COLUMNS] and scales [COLUMNS]."""
    slots = interleave(np.arange(ROWS, dtype=np.uint8)[None])[0]
    x = np.empty((TOKENS, ROWS))
    x[:, slots] = inputs["x8"].view(TYPES[x_dtype]).astype(np.float64).reshape(TOKENS, ROWS)
    codes, zeros = unpack_codes(inputs["packed"]), unpack_zeros(inputs["zero_points"])
    scales = values16(inputs["scales"].ravel(), half).reshape(-1, 8, 8).swapaxes(1, 2)
    rows = ROWS // max(groups, 1)
    for group in range(max(groups, 1)):
        part = slice(group * rows, (group + 1) * rows)
        zero = zeros[group] if zero_points else 8.0
        scale = scales.reshape(4, -1)[group] if groups else np.ones(COLUMNS)
        yield x[:, part], codes[part] - zero, scale


def as_accumulator(sums):
    """Return [pieces, 128, 4] of [TOKENS, COLUMNS]: what the lanes hold, in the store's order."""
    out = np.zeros((SUMS // 4, 128, 4))
    for j, block, thread, c in np.ndindex(STRIPS, TOKENS // 8, 128, 4):
        warp, lane = divmod(thread, 32)
        column = 64 * (warp // 2) + 16 * (warp % 2 * 2 + j) + lane // 4 + 8 * (c // 2)
        out[j * (TOKENS // 8) + block, thread, c] = sums[8 * block + 2 * (lane % 4) + c % 2, column]
    return out


def stage_case(x_dtype, half, groups, zero_points, sets=2, tokens=False, ahead=4):
    function, covered = stage(x_dtype, half, groups, zero_points, sets, tokens, ahead)
    kind = (x_dtype, half, groups, zero_points)

    def want(inputs):
        factors = inputs["factors"].astype(np.float64)[:, None]
        total = sum(loop_product(x, w) * scale for x, w, scale in parts(inputs, *kind))
        total = 1 + total * (factors if tokens else 1)
        return as_accumulator(total * factors).astype(np.float32)

    def bound(inputs):
        error = SUM_ERROR + (FP8_ERROR if x_dtype == "fp8" else 0)
        total = sum(np.abs(x) @ np.abs(w) * np.maximum(s, 1) for x, w, s in parts(inputs, *kind))
        return error * 4 * (as_accumulator(total) + 4)

    return Case(
        f"stage8_{x_dtype}_{half}_{groups}_{int(zero_points)}_{sets}_{int(tokens)}_{ahead}",
        covered,
        function,
        stage_inputs(x_dtype, half),
        want,
        bound,
        num_threads=128,
        smem_bytes=BAR + 16,
    )


def rounding(pack):
    def rounding_case(a, b, out):
        at = uint64(uint32(cuda.threadIdx.x) * uint32(4))
        ptx.st_global_u32(out + at, pack(ptx.ld_global_f32(a + at), ptx.ld_global_f32(b + at)))

    return rounding_case


def rounded_inputs(rng):
    # ties, what saturates, infinities and NaN among them
    edges = np.array([0, -0.0, 17, 19, 0.5, 1.5, 2.5, 448, 464, 1e9, -1e9, np.inf, -np.inf, np.nan])
    values = np.concatenate([edges, rng.standard_normal(50) * 50, rng.standard_normal(64)])
    a, b = rng.permutation(values)[:128].reshape(2, 64).astype(np.float32)
    return {"a": a, "b": b}


def nearest(value, candidates):
    """Return the place of the candidate that is nearest, of two the one whose place is even."""
    value = min(max(value, candidates[0][0]), candidates[-1][0])
    best = min(abs(value - known) for known, _ in candidates)
    places = [code for known, code in candidates if abs(value - known) == best]
    return next((code for code in places if code % 2 == 0), places[0])


def rounded(kind):
    if kind == "e4m3":
        codes = [code for code in range(256) if code & 0x7F != 0x7F and code != 0x80]
        values = np.array(codes, np.uint8).view(ml_dtypes.float8_e4m3fn).astype(float)
        nothing = 0x7F
    else:
        codes, values, nothing = [n & 0xFF for n in range(-128, 128)], np.arange(-128.0, 128), 0
    candidates = sorted(zip(values.tolist(), codes, strict=True))

    def one(value):
        if np.isnan(value):
            return nothing
        code = nearest(float(value), candidates)
        # fp8 keeps the sign of what becomes zero
        return 0x80 if kind == "e4m3" and code == 0 and np.signbit(value) else code

    def want(inputs):
        pairs = [one(a) | one(b) << 8 for a, b in zip(inputs["a"], inputs["b"], strict=True)]
        return np.array([pair | pair << 16 for pair in pairs], np.uint32)

    return want


def divided(a, b, out):
    at = uint64(uint32(cuda.threadIdx.x) * uint32(4))
    quotient = ptx.div_f32(ptx.ld_global_f32(a + at), ptx.ld_global_f32(b + at))
    ptx.st_global_f32(out + at, quotient)


K_TILES, N_TILES = 4, 2
STEP_ROWS, STEP_ROW_BYTES = 16 * K_TILES, 16 * K_TILES + 16
STEP_SUMS = 16 * N_TILES


def step(x_dtype, half, groups, zero_points):
    """Return a kernel of one warp that multiplies half a step with 16 tokens."""
    load = decode_steps.load_tiles(K_TILES)
    load_x = load_bytes(K_TILES, N_TILES, STEP_ROW_BYTES)
    widen = widen_tokens(K_TILES, N_TILES)
    load_scales = decode_steps.load_words(max(groups, 1), 4)
    load_zeros = decode_steps.load_words(2, 1)
    is_int8, two_zeros = x_dtype == "int8", zero_points == 2
    if is_int8:
        multiply = multiply_bytes(K_TILES, N_TILES, half, groups, zero_points)
    else:
        multiply = decode_steps.multiply_step(K_TILES, N_TILES, "f16", groups, zero_points, half)
    store = tile_steps.store_tile("global", STEP_SUMS, 512)
    ones = ptx.splat_f32(STEP_SUMS)

    @cuda.jit(device=True, forceinline=True)
    def operands(address):
        if is_int8:
            return load_x(address)
        return widen(load_x(address))

    def kernel(x8, packed, scales, zero_points, out):
        t = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        for i in range(TOKENS * STEP_ROWS // 512):
            piece = uint32(t + i * 32)
            row = uint32(piece // uint32(STEP_ROWS // 16))
            column = uint32(piece % uint32(STEP_ROWS // 16))
            place = uint32(base + row * STEP_ROW_BYTES + column * 16)
            ptx.st_shared_v4(place, ptx.ld_global_v4(x8 + uint64(piece * 16)))
        cuda.syncthreads()
        words = load(packed + uint64(t * 16), uint64(512))
        token = operands(uint32(base + (t >> 2) * STEP_ROW_BYTES + uint32(t & 3) * 4))
        lane_scales = load_scales(scales + uint64((t >> 2) * 16), uint64(128))
        lane_zeros = load_zeros(zero_points + uint64((t >> 2) * 4), uint64(32))
        if two_zeros:
            acc = multiply(words, token, lane_scales, lane_zeros, ones(float32(1)))
        else:
            acc = multiply(words, token, lane_scales, (lane_zeros[0],), ones(float32(1)))
        store(out + uint64(t * 16), acc)

    covered = (load, load_x, multiply, store, *(() if is_int8 else (widen,)))
    return kernel, covered


def step_inputs(x_dtype, half, groups):
    def make(rng):
        x = rng.standard_normal((TOKENS, STEP_ROWS)).astype(np.float32) * 30
        x8 = np.ascontiguousarray(x.astype(TYPES[x_dtype])).view(np.uint8)
        scales = rng.uniform(0.5, 2.0, (max(groups, 1), 64)).astype(np.float32)
        lanes = scales.reshape(-1, 8, 8).swapaxes(1, 2).reshape(scales.shape)
        return {
            "x8": interleave(x8),
            "packed": pack_weight(rng.integers(0, 16, (STEP_ROWS, 64), np.uint8)),
            "scales": bits16(lanes, half),
            "zero_points": pack_zero_points(rng.integers(0, 16, (2, 64), np.uint8)),
        }

    return make


def step_parts(inputs, x_dtype, half, groups, zero_points):
    """Return per group x [TOKENS, rows], weights [rows, 64] and scales [64]."""
    slots = interleave(np.arange(STEP_ROWS, dtype=np.uint8)[None])[0]
    x = np.empty((TOKENS, STEP_ROWS))
    held = inputs["x8"].view(TYPES[x_dtype]).astype(np.float64)
    x[:, slots] = held.reshape(TOKENS, STEP_ROWS)
    codes, zeros = unpack_codes(inputs["packed"]), unpack_zeros(inputs["zero_points"])
    scales = values16(inputs["scales"].ravel(), half).reshape(-1, 8, 8).swapaxes(1, 2)
    rows = STEP_ROWS // max(groups, 1)
    for group in range(max(groups, 1)):
        part = slice(group * rows, (group + 1) * rows)
        zero = zeros[group % zero_points] if zero_points else 8.0
        scale = scales.reshape(-1, 64)[group] if groups else np.ones(64)
        yield x[:, part], codes[part] - zero, scale


def as_step_sums(sums):
    """Return [pieces, 32, 4] of [TOKENS, 64]: what the lanes hold, in the store's order."""
    out = np.zeros((STEP_SUMS // 4, 32, 4))
    for j, block, lane, c in np.ndindex(4, N_TILES, 32, 4):
        token, column = 8 * block + 2 * (lane % 4) + c % 2, 16 * j + lane // 4 + 8 * (c // 2)
        out[j * N_TILES + block, lane, c] = sums[token, column]
    return out


def step_case(x_dtype, half, groups, zero_points):
    function, covered = step(x_dtype, half, groups, zero_points)
    kind = (x_dtype, half, groups, zero_points)

    def want(inputs):
        total = sum(loop_product(x, w) * scale for x, w, scale in step_parts(inputs, *kind))
        return as_step_sums(1 + total).astype(np.float32)

    def bound(inputs):
        parts_of = step_parts(inputs, *kind)
        total = sum(np.abs(x) @ np.abs(w) * np.maximum(s, 1) for x, w, s in parts_of)
        return SUM_ERROR * (as_step_sums(total) + 4)

    return Case(
        f"step8_{x_dtype}_{half}_{groups}_{zero_points}",
        covered,
        function,
        step_inputs(x_dtype, half, groups),
        want,
        bound,
        smem_bytes=TOKENS * STEP_ROW_BYTES,
    )


def every_e4m3(rng):
    return {"a": np.arange(256, dtype=np.uint8)}


def widened(a, out):
    t = uint64(uint32(cuda.threadIdx.x))
    pair = ptx.ld_global_u16(a + t * uint64(2))
    ptx.st_global_u32(out + t * uint64(4), ptx.e4m3x2_to_f16x2(pair))


def wide(inputs):
    """Return fp16 of e4m3 by its fields: a sign, four bits of exponent, three of mantissa."""
    halves = []
    for code in inputs["a"].tolist():
        sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
        value = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
        bits = int(np.float16(-value if sign else value).view(np.uint16))
        halves.append(0x7FFF if code & 0x7F == 0x7F else bits)
    return np.array(halves, np.uint16).view(np.uint32)


CASES = (
    step_case("fp8", "f16", 1, 0),
    step_case("fp8", "bf16", 2, 2),
    step_case("fp8", "f16", 0, 1),
    step_case("int8", "f16", 1, 0),
    step_case("int8", "bf16", 2, 2),
    step_case("int8", "f16", 0, 1),
    Case("e4m3x2_to_f16x2", (ptx.e4m3x2_to_f16x2,), widened, every_e4m3, wide, num_threads=128),
    stage_case("fp8", "f16", 1, False),
    stage_case("fp8", "bf16", 0, True, sets=1),
    stage_case("fp8", "f16", 2, True, tokens=True),
    stage_case("fp8", "f16", 4, False, sets=1, ahead=1),
    stage_case("fp8", "f16", 1, True, sets=1, ahead=3),
    stage_case("int8", "f16", 1, False, sets=1, ahead=1),
    stage_case("int8", "bf16", 4, True),
    stage_case("int8", "f16", 0, False, tokens=True),
    Case("pack_e4m3x2", (ptx.pack_e4m3x2,), rounding(ptx.pack_e4m3x2), rounded_inputs,
         rounded("e4m3"), num_threads=64),
    Case("pack_s8x2", (ptx.pack_s8x2,), rounding(ptx.pack_s8x2), rounded_inputs,
         rounded("s8"), num_threads=64),
    Case("div_f32", (ptx.div_f32,), divided, lambda rng: {
        "a": (rng.standard_normal(64) * 2.0 ** rng.integers(-140, 120, 64)).astype(np.float32),
        "b": rng.standard_normal(64).astype(np.float32),
    }, lambda inputs: (inputs["a"].astype(np.float64) / inputs["b"]).astype(np.float32),
         num_threads=64),
)  # fmt: skip
