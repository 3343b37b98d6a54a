"""Cases of a stage of 8-bit products, of the scales of tokens, and of rounding to 8 bits."""

import ml_dtypes
import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64
from ptx_cases import Case
from ptx_cases_decode_wgmma import unpack_codes, unpack_zeros
from ptx_fragments import SUM_ERROR, bits16, loop_product, values16

from ferrum_numba import ptx
from ferrum_numba.kernels.shared import tile as tile_steps
from ferrum_numba.kernels.shared.int4_bytes import sixteen
from ferrum_numba.kernels.shared.packed_x8 import interleave
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


CASES = (
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
