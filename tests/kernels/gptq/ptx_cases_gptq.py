"""Cases of a warp on GPTQ words, and of a wgmma accumulator on its way out."""

import ml_dtypes
import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64
from ptx_cases import Case
from ptx_fragments import SUM_ERROR, fragment_a, fragment_c, loop_product, values16

from ferrum_numba import ptx
from ferrum_numba.kernels.ceilings import steps as ceilings_steps
from ferrum_numba.kernels.gptq import steps as gptq_steps
from ferrum_numba.kernels.shared import tile as tile_steps
from ferrum_numba.reference.gptq import (
    WORD_OFFSET,
    pack_codes,
    pack_zero_points,
    unpack_codes,
    unpack_zero_points,
)

HALVES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
COLUMNS = 32
SCALE_BYTES, ZERO_BYTES = 2 * COLUMNS, COLUMNS // 2
GROUP_BYTES = SCALE_BYTES + ZERO_BYTES
# blocks of the grid that it takes to bring every code to every nibble, column and zero point
DEQUANTIZE_BLOCKS = 8
WARP_PIECES = 512  # bytes a warp moves in one 16-byte access of all lanes


def group_loader(rows, dtype):
    """Return `load_groups` and a device function that stages a block's groups and calls it.

    A row of the groups is 32 scales, then four words of zero points.
    """
    load = gptq_steps.load_groups(rows, GROUP_BYTES, GROUP_BYTES, dtype)
    words = rows * GROUP_BYTES // 4
    rounds = (words + 31) // 32

    @cuda.jit(device=True, forceinline=True)
    def groups_of_lane(groups, offset):
        t = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        for i in range(rounds):
            word = uint32(t + i * 32)
            if word < words:
                source = uint64((cuda.blockIdx.x * words + word) * 4)
                ptx.st_shared_u32(base + word * 4, ptx.ld_global_u32(groups + source))
        cuda.syncthreads()
        g = uint32(t >> 2)
        zero = uint32(base + SCALE_BYTES + (g >> 1) * 4)
        return load(base + g * 8, zero, (g & 1) * 16, ptx.ld_global_u32(offset))

    return load, groups_of_lane


def group_inputs(rng, dtype, checkpoint_format, zeros):
    """Return the groups of every block as bytes, and what their zero points lack."""
    num_blocks, rows, _ = zeros.shape
    scales = (rng.standard_normal(zeros.shape) * 0.01).astype(HALVES[dtype])
    # subnormal, normal by the product only, the largest that 15 steps keep finite, overflow, zero
    scales[0, 0, :5] = [2.0**-24, 2.0**-16, 4364.0, 65504.0, 0.0]
    packed = pack_zero_points(zeros.reshape(-1, COLUMNS), checkpoint_format)
    packed = packed.reshape(num_blocks, rows, -1)
    image = np.concatenate([scales.view(np.uint8), packed.view(np.uint8)], axis=2)
    return {"groups": image, "offset": np.array([WORD_OFFSET[checkpoint_format]], np.uint32)}


def scales_and_zeros(inputs, dtype):
    """Return [blocks, rows, 32] scales and zero points of the staged groups."""
    image = inputs["groups"]
    scales = np.ascontiguousarray(image[..., :SCALE_BYTES]).view(HALVES[dtype])
    packed = np.ascontiguousarray(image[..., SCALE_BYTES:]).view(np.int32)
    checkpoint_format = "gptq" if inputs["offset"][0] else "gptq_v2"
    zeros = unpack_zero_points(packed.reshape(-1, COLUMNS // 8), checkpoint_format)
    return scales, zeros.reshape(scales.shape).astype(int)


def load_groups_case(rows, checkpoint_format, dtype="f16"):
    load, groups_of_lane = group_loader(rows, dtype)
    pairs = max(1, rows // 2)
    pieces = 2 * pairs

    def load_groups_kernel(groups, offset, out):
        t = uint32(cuda.threadIdx.x)
        got = groups_of_lane(groups, offset)
        for i in range(pieces):
            piece = (got[4 * i], got[4 * i + 1], got[4 * i + 2], got[4 * i + 3])
            ptx.st_global_v4(out + uint64((t * pieces + i) * 16), piece)

    def inputs(rng):
        zeros = rng.integers(0, 16, (1, rows, COLUMNS), np.uint8)
        # the words that borrow furthest when 0x11111111 is taken from them
        zeros[0, 0, :16] = [0] * 8 + [0, 15] * 4
        return group_inputs(rng, dtype, checkpoint_format, zeros)

    def want(inputs):
        scales, zeros = scales_and_zeros(inputs, dtype)
        out = np.zeros((32, pairs, 8, 2), HALVES[dtype])
        bases = (1024, 64) if dtype == "f16" else (128, 128)
        for lane, pair, j, half in np.ndindex(32, pairs, 4, 2):
            row, column = (2 * pair + half) % rows, 4 * (lane // 4) + j
            out[lane, pair, j, half] = scales[0, row, column]
            out[lane, pair, 4 + j, half] = -bases[half] - zeros[0, row, column]
        return out.view(np.uint16)

    return Case(
        f"load_groups_{rows}_{checkpoint_format}_{dtype}",
        (load,),
        load_groups_kernel,
        inputs,
        want,
        smem_bytes=rows * GROUP_BYTES,
    )


def every_code_and_zero_point(rows):
    """Return codes [blocks, 32, 32] and zero points [blocks, rows, 32], in all combinations.

    A block holds every even or every odd distance of zero points for a column of a lane; four
    pairs of blocks and the four words of a quad bring 16 codes to each nibble.
    """
    block, k, column = np.ogrid[:DEQUANTIZE_BLOCKS, :32, :COLUMNS]
    codes = (4 * (block // 2) + k // 8 + k % 8 + column) % 16
    row = np.arange(rows)[None, :, None]
    zeros = (2 * (column // 4) + block % 2 + 5 * (column % 4) + 3 * row) % 16
    return codes.astype(np.uint8), zeros.astype(np.uint8)


def dequantize_case(rows, checkpoint_format, dtype="f16"):
    load, groups_of_lane = group_loader(rows, dtype)
    columns = tuple(gptq_steps.dequantize_column(column, rows, dtype) for column in range(4))
    column_0, column_1, column_2, column_3 = columns

    def dequantize_column_kernel(groups, offset, words, out):
        lane = uint32(cuda.blockIdx.x * 32 + cuda.threadIdx.x)
        got = groups_of_lane(groups, offset)
        g, t = uint32(cuda.threadIdx.x >> 2), uint32(cuda.threadIdx.x & 3)
        piece = uint32((cuda.blockIdx.x * 4 + t) * 8 + g)
        word = ptx.ld_global_v4(words + uint64(piece * 16))
        place = uint64(out + uint64(lane * 64))
        ptx.st_global_v4(place, column_0(word[0], got))
        ptx.st_global_v4(place + uint64(16), column_1(word[1], got))
        ptx.st_global_v4(place + uint64(32), column_2(word[2], got))
        ptx.st_global_v4(place + uint64(48), column_3(word[3], got))

    def inputs(rng):
        codes, zeros = every_code_and_zero_point(rows)
        words = pack_codes(codes.reshape(-1, COLUMNS))
        staged = group_inputs(rng, dtype, checkpoint_format, zeros)
        return {**staged, "words": words.view(np.uint32)}

    def want(inputs):
        scales, zeros = scales_and_zeros(inputs, dtype)
        codes = unpack_codes(inputs["words"].view(np.int32)).reshape(-1, 4, 8, COLUMNS).astype(int)
        out = np.zeros((DEQUANTIZE_BLOCKS, 32, 4, 8), HALVES[dtype])
        for block, lane, j, i in np.ndindex(out.shape):
            row, column = i % rows, 4 * (lane // 4) + j
            steps = codes[block, lane % 4, i, column] - zeros[block, row, column]
            with np.errstate(over="ignore"):
                exact = np.float32(steps) * np.float32(scales[block, row, column])
                out[block, lane, j, i] = exact.astype(HALVES[dtype])
        return out.view(np.uint16)

    return Case(
        f"dequantize_column_{rows}_{checkpoint_format}_{dtype}",
        (load, *columns),
        dequantize_column_kernel,
        inputs,
        want,
        num_blocks=DEQUANTIZE_BLOCKS,
        smem_bytes=rows * GROUP_BYTES,
    )


K = 32
X_ROW_BYTES = 2 * K
ROW_BYTES = X_ROW_BYTES + 16  # padded, so that a step along k or along m cannot stand for the other


def row_loader(blocks):
    """Return `load_rows` and a device function that stages x and calls it."""
    load = gptq_steps.load_rows(blocks, ROW_BYTES)
    rounds = 2 * blocks

    @cuda.jit(device=True, forceinline=True)
    def rows_of_lane(x):
        t = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        for i in range(rounds):
            piece = uint32(t + i * 32)
            place = uint32(base + (piece >> 2) * ROW_BYTES + (piece & 3) * 16)
            ptx.st_shared_v4(place, ptx.ld_global_v4(x + uint64(piece * 16)))
        cuda.syncthreads()
        return load(base + (t >> 2) * ROW_BYTES + (t & 3) * 16)

    return load, rows_of_lane


def rows_of_x(rng, blocks, dtype="f16"):
    return rng.standard_normal((16 * blocks, K)).astype(HALVES[dtype])


# k of the columns 0..15 of the A fragment of step 0; step 1 takes those four further
STEP_K = [8 * (c % 8 // 2) + 2 * (c // 8) + c % 2 for c in range(16)]


def load_rows_case(blocks):
    load, rows_of_lane = row_loader(blocks)
    pieces = 2 * blocks

    def load_rows_kernel(x, out):
        t = uint32(cuda.threadIdx.x)
        a = rows_of_lane(x)
        for i in range(pieces):
            piece = (a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3])
            ptx.st_global_v4(out + uint64((i * 32 + t) * 16), piece)

    def want(inputs):
        bits = inputs["x"].view(np.uint16).reshape(blocks, 16, K)
        steps = [np.array(STEP_K) + 4 * step for step in range(2)]
        return np.stack([fragment_a(block[:, k]) for k in steps for block in bits])

    return Case(
        f"load_rows_{blocks}",
        (load,),
        load_rows_kernel,
        lambda rng: {"x": rows_of_x(rng, blocks)},
        want,
        smem_bytes=16 * blocks * ROW_BYTES,
    )


def product_parts(inputs, dtype, of):
    """Return [pieces, 32, 4]: `of` the factors of each 16x8 part, block by block."""
    x, b = (values16(inputs[name].view(np.uint16), dtype) for name in ("x", "b"))
    return np.stack(
        [
            fragment_c(of(x[m : m + 16], b[n : n + 8].T))
            for m in range(0, len(x), 16)
            for n in range(0, len(b), 8)
        ]
    )


def mma_rows_case(blocks, dtype="f16"):
    load, rows_of_lane = row_loader(blocks)
    multiply = gptq_steps.mma_rows(blocks, dtype)
    add = tile_steps.add_tile("global", 8 * blocks, WARP_PIECES)
    store = tile_steps.store_tile("global", 8 * blocks, WARP_PIECES)
    splat = ptx.splat_f32(8 * blocks)

    def mma_rows_kernel(x, b, c, out):
        t = uint32(cuda.threadIdx.x)
        a = rows_of_lane(x)
        # a lane's eight k of column g are 16 consecutive bytes of b [16, 32], a column a row
        left = ptx.ld_global_v4(b + uint64(t * 16))
        right = ptx.ld_global_v4(b + uint64(t * 16 + 8 * X_ROW_BYTES))
        acc = add(c + uint64(t * 16), splat(float32(0)))
        store(out + uint64(t * 16), multiply(a, left, right, acc))

    def inputs(rng):
        return {
            "x": rows_of_x(rng, blocks, dtype),
            "b": rng.standard_normal((16, K)).astype(HALVES[dtype]),
            "c": rng.standard_normal((2 * blocks, 32, 4)).astype(np.float32),
        }

    def bound(inputs):
        magnitudes = product_parts(inputs, dtype, lambda a, b: np.abs(a) @ np.abs(b))
        return 2 * SUM_ERROR * (magnitudes + np.abs(inputs["c"]))

    return Case(
        f"mma_rows_{blocks}_{dtype}",
        (load, multiply),
        mma_rows_kernel,
        inputs,
        lambda inputs: np.float32(product_parts(inputs, dtype, loop_product) + inputs["c"]),
        bound,
        smem_bytes=16 * blocks * ROW_BYTES,
    )


def untouched(shape, dtype):
    """Return an array that holds what `out` held before the kernel ran."""
    out = np.empty(shape, dtype)
    out.view(np.uint8)[...] = 0xA5
    return out


def store_rows_case(blocks, dtype="f16"):
    store = gptq_steps.store_rows(blocks, dtype)
    add = tile_steps.add_tile("global", 8 * blocks, WARP_PIECES)
    splat = ptx.splat_f32(8 * blocks)
    side_bytes = 2 * blocks * WARP_PIECES
    # none, within either half of a block, at its ends, and all
    heights = sorted({0, 1, 7, 8, 9, 16 * blocks - 3, 16 * blocks - 1, 16 * blocks})

    def store_rows_kernel(sums, bias, rows, out):
        g, t = uint32(cuda.threadIdx.x >> 2), uint32(cuda.threadIdx.x & 3)
        place = uint64(sums + uint64(cuda.threadIdx.x * 16))
        left = add(place, splat(float32(0)))
        right = add(place + uint64(side_bytes), splat(float32(0)))
        shifts = ptx.ld_global_v4_f32(bias + uint64(t * 32)) + ptx.ld_global_v4_f32(
            bias + uint64(t * 32 + 16)
        )
        height = ptx.ld_global_u32(rows + uint64(cuda.blockIdx.x * 4))
        below = uint32(height - g) if height > g else uint32(0)
        row = uint32(cuda.blockIdx.x * 16 * blocks + g)
        address = uint64(out + uint64(row * ROW_BYTES + t * 16))
        store(address, uint64(ROW_BYTES), below, left, right, shifts)

    def inputs(rng):
        sums = rng.standard_normal((2, blocks, 2, 32, 4)).astype(np.float32)
        # overflow, underflow, the largest that rounds down; lane 0's columns have no bias
        sums[0, 0, 0, 0] = [1e5, -1e5, 2.0**-25, 65519.0]
        bias = rng.standard_normal(COLUMNS).astype(np.float32)
        bias[:8] = 0
        return {"sums": sums, "bias": bias, "rows": np.array(heights, np.uint32)}

    def want(inputs):
        out = untouched((len(heights), 16 * blocks, ROW_BYTES // 2), HALVES[dtype])
        for *place, lane, c in np.ndindex(inputs["sums"].shape):
            side, block, n = place
            row = 16 * block + lane // 4 + 8 * (c // 2)
            column = 4 * (2 * (lane % 4) + c % 2) + 2 * side + n
            value = inputs["sums"][side, block, n, lane, c] + inputs["bias"][column]
            with np.errstate(over="ignore"):
                out[inputs["rows"] > row, row, column] = value.astype(HALVES[dtype])
        return out.view(np.uint16)

    return Case(
        f"store_rows_{blocks}_{dtype}",
        (store,),
        store_rows_kernel,
        inputs,
        want,
        num_blocks=len(heights),
    )


def store_accumulator_case(n):
    row_bytes = 4 * n + 16
    store = ceilings_steps.store_accumulator(n, row_bytes)
    add = tile_steps.add_tile("global", n // 2, 4 * WARP_PIECES)
    splat = ptx.splat_f32(n // 2)

    def store_accumulator_kernel(values, out):
        t = uint32(cuda.threadIdx.x)
        acc = add(values + uint64(t * 16), splat(float32(0)))
        row = uint32((t >> 5) * 16 + ((t & 31) >> 2))
        store(out + uint64(row * row_bytes + (t & 3) * 8), acc)

    def want(inputs):
        out = untouched((64, n + 4), np.float32)
        for j, thread, c in np.ndindex(inputs["values"].shape):
            warp, lane = divmod(thread, 32)
            row = 16 * warp + lane // 4 + 8 * (c // 2)
            out[row, 8 * j + 2 * (lane % 4) + c % 2] = inputs["values"][j, thread, c]
        return out

    return Case(
        f"store_accumulator_n{n}",
        (store,),
        store_accumulator_kernel,
        lambda rng: {"values": rng.standard_normal((n // 8, 128, 4)).astype(np.float32)},
        want,
        num_threads=128,
    )


CASES = (
    load_groups_case(1, "gptq"),
    load_groups_case(8, "gptq"),
    load_groups_case(8, "gptq_v2"),
    dequantize_case(1, "gptq_v2"),
    dequantize_case(1, "gptq"),
    dequantize_case(8, "gptq"),
    load_groups_case(1, "gptq", "bf16"),
    load_groups_case(8, "gptq", "bf16"),
    dequantize_case(1, "gptq", "bf16"),
    dequantize_case(8, "gptq_v2", "bf16"),
    load_rows_case(1),
    load_rows_case(4),
    mma_rows_case(1),
    mma_rows_case(4),
    mma_rows_case(2, "bf16"),
    store_rows_case(1),
    store_rows_case(2),
    store_rows_case(2, "bf16"),
    store_accumulator_case(8),
    store_accumulator_case(128),
)
