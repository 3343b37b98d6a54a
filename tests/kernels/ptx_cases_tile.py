"""Cases of what a GEMM tile is made of: dequantisation and the instructions of many blocks."""

import ml_dtypes
import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64
from ptx_cases import Case
from ptx_fragments import SUM_ERROR, fragment_b, fragment_c, loop_product, values16

from ferrum_numba import ptx
from ferrum_numba.kernels.shared import int4
from ferrum_numba.kernels.shared import tile as tile_steps

BLOCKS = 2
WARP_PIECES = 512  # bytes a warp moves in one 16-byte access of all lanes


HALVES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def words(rng):
    """Return 32 words in which every nibble takes every code."""
    codes = (np.arange(32)[:, None] + 3 * np.arange(8)) % 16
    return (codes.astype(np.uint32) << (4 * np.arange(8, dtype=np.uint32))).sum(1, dtype=np.uint32)


def dequantize_case(dtype, zeros, scaled):
    """Return the case of one of the eight; the kernel has as many inputs as it has operands."""
    convert = int4.dequantize(dtype, zeros=zeros, scaled=scaled)
    others = [name for name, given in (("zeros", zeros), ("scales", scaled)) if given]
    half = HALVES[dtype]

    def inputs(rng):
        scales = (rng.standard_normal((32, 2)) * 0.01).astype(half)
        # a subnormal, the largest that does not overflow, zero
        scales[0], scales[1], scales[2] = 2.0**-24, 4000.0, 0.0
        lane = np.arange(32)[:, None]
        # no two of a lane alike, and all of them over the lanes
        points = ((5 * lane + 7 * np.arange(2)) % 16).astype(np.uint16)
        given = {"zeros": points, "scales": scales}
        return {"word": words(rng), **{name: given[name].view(np.uint32)[:, 0] for name in others}}

    def want(inputs):
        """Return [32, 4] words, nibble by nibble, as the layout of Marlin's word has them."""
        out = np.zeros((32, 4, 2), half)
        points = inputs["zeros"].view(np.uint16) if zeros else np.full(64, 8)
        factors = inputs["scales"].view(half) if scaled else np.ones(64)
        for lane, nibble in np.ndindex(32, 8):
            code = int(inputs["word"][lane]) >> (4 * nibble) & 15
            place, selector = nibble >> 2, nibble & 3
            column = 2 * lane + (selector >> 1)
            out[lane, selector, place] = (code - int(points[column])) * np.float32(factors[column])
        return out.view(np.uint32)[..., 0]

    def one(word, out):
        t = uint32(cuda.threadIdx.x)
        value = ptx.ld_global_u32(word + uint64(t * 4))
        ptx.st_global_v4(out + uint64(t * 16), convert(value))

    def two(word, second, out):
        t = uint32(cuda.threadIdx.x)
        value = ptx.ld_global_u32(word + uint64(t * 4))
        ptx.st_global_v4(
            out + uint64(t * 16), convert(value, ptx.ld_global_u32(second + uint64(t * 4)))
        )

    def three(word, second, third, out):
        t = uint32(cuda.threadIdx.x)
        value = ptx.ld_global_u32(word + uint64(t * 4))
        zero = ptx.ld_global_u32(second + uint64(t * 4))
        scale = ptx.ld_global_u32(third + uint64(t * 4))
        ptx.st_global_v4(out + uint64(t * 16), convert(value, zero, scale))

    return Case(convert.name, (convert,), (one, two, three)[len(others)], inputs, want)


load_tile = tile_steps.ldmatrix_tile(BLOCKS, 16 * 32)
store_product = tile_steps.store_tile("global", 8 * BLOCKS, WARP_PIECES)
zeros = ptx.splat_f32(8 * BLOCKS)


def product_parts(inputs, dtype, of):
    """Return [pieces, 32, 4]: `of` the factors of each 16x8 part, in the order of the pieces."""
    x = inputs["x"].view(np.uint16)
    parts = []
    for block in range(BLOCKS):
        a = values16(x[16 * block : 16 * block + 16], dtype)
        for n in range(2):
            b = np.zeros((16, 8))
            for lane in range(32):
                for half in range(4):
                    bits = int(inputs["b"][lane, 2 * n + half // 2]) >> (16 * (half % 2)) & 0xFFFF
                    k = 2 * (lane % 4) + half % 2 + 8 * (half // 2)
                    b[k, lane // 4] = values16(np.array([bits], np.uint16), dtype)[0]
            parts.append(fragment_c(of(a, b)))
    return np.stack(parts)


def mma_tile_case(dtype):
    multiply_tile = tile_steps.mma_tile(BLOCKS, dtype)

    def mma_tile_kernel(x, b, out):
        t = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        for i in range(BLOCKS):
            piece = uint32(t + i * 32)
            ptx.st_shared_v4(base + piece * 16, ptx.ld_global_v4(x + uint64(piece * 16)))
        cuda.syncthreads()
        a = load_tile(base + (t & 15) * 32 + (t >> 4) * 16)
        acc = multiply_tile(a, ptx.ld_global_v4(b + uint64(t * 16)), zeros(float32(1)))
        store_product(out + uint64(t * 16), acc)

    def inputs(rng):
        b = rng.standard_normal((2, 16, 8)).astype(HALVES[dtype]).view(np.uint16)
        x = rng.standard_normal((16 * BLOCKS, 16)).astype(HALVES[dtype])
        return {"x": x, "b": np.concatenate([fragment_b(b[0]), fragment_b(b[1])], axis=1)}

    def bound(inputs):
        parts = product_parts(inputs, dtype, lambda a, b: np.abs(a) @ np.abs(b))
        return SUM_ERROR * (parts + 1)

    return Case(
        f"mma_tile_{dtype}",
        (load_tile, multiply_tile, store_product),
        mma_tile_kernel,
        inputs,
        lambda inputs: np.float32(product_parts(inputs, dtype, loop_product) + 1),
        bound,
        smem_bytes=512 * BLOCKS,
    )


add_from_global = tile_steps.add_tile("global", 8, WARP_PIECES)
add_from_shared = tile_steps.add_tile("shared", 8, WARP_PIECES)
store_to_shared = tile_steps.store_tile("shared", 8, WARP_PIECES)
store_to_global = tile_steps.store_tile("global", 8, WARP_PIECES)
eight = ptx.splat_f32(8)


def add_tile_kernel(values, out):
    t = uint32(cuda.threadIdx.x)
    place = uint32(ptx.smem_base() + t * 16)
    got = add_from_global(values + uint64(t * 16), eight(float32(1)))
    store_to_shared(place, got)
    store_to_global(out + uint64(t * 16), add_from_shared(place, got))


def tile_values(rng):
    return {"values": rng.standard_normal((2, 32, 4)).astype(np.float32)}


ROW_BYTES = 80
add_strips = tile_steps.add_tile("global", 16, WARP_PIECES)
sixteen = ptx.splat_f32(16)


def strip_inputs(rng):
    values = rng.standard_normal((4, 32, 4)).astype(np.float32)
    # overflow of fp16, underflow, the largest that rounds
    values[0, 0] = [1e5, -1e5, 2.0**-25, 65519.0]
    return {
        "values": values,
        "scale": np.float32(rng.choice([0.5, 1.0, 3.0], (32, 8))),
        "bias": np.float32(rng.choice([0.0, 0.25, -1.0], (32, 8))),
    }


def strip_rows(inputs, half):
    """Return [16, 32] halves, element by element."""
    out = np.zeros((16, 32), half)
    for lane, strip, n, c in np.ndindex(32, 2, 2, 4):
        column = 4 * strip + 2 * n + c % 2
        value = np.float64(inputs["values"][2 * strip + n, lane, c])
        exact = value * inputs["scale"][lane, column] + inputs["bias"][lane, column]
        place = (lane // 4 + 8 * (c // 2), 16 * strip + 8 * n + 2 * (lane % 4) + c % 2)
        with np.errstate(over="ignore"):
            out[place] = np.float32(exact).astype(half)
    return out


def store_rounded_case(dtype):
    store_halves = tile_steps.store_tile_rounded(1, 2, ROW_BYTES, dtype)

    def store_rounded_kernel(values, scale, bias, out):
        t = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        got = add_strips(values + uint64(t * 16), sixteen(float32(0)))
        factors = ptx.ld_global_v4_f32(scale + uint64(t * 32)) + ptx.ld_global_v4_f32(
            scale + uint64(t * 32 + 16)
        )
        shifts = ptx.ld_global_v4_f32(bias + uint64(t * 32)) + ptx.ld_global_v4_f32(
            bias + uint64(t * 32 + 16)
        )
        store_halves(base + (t >> 2) * ROW_BYTES + (t & 3) * 4, got, factors, shifts)
        cuda.syncthreads()
        for i in range(2):
            row = uint32((t >> 2) + i * 8)
            value = ptx.ld_shared_v4(base + row * ROW_BYTES + (t & 3) * 16)
            ptx.st_global_v4(out + uint64((row * 4 + (t & 3)) * 16), value)

    return Case(
        f"store_tile_rounded_{dtype}",
        (store_halves,),
        store_rounded_kernel,
        strip_inputs,
        lambda inputs: strip_rows(inputs, HALVES[dtype]).view(np.uint16),
        smem_bytes=16 * ROW_BYTES,
    )


CASES = (
    *(
        dequantize_case(dtype, zeros, scaled)
        for dtype in HALVES
        for zeros in (False, True)
        for scaled in (False, True)
    ),
    *(mma_tile_case(dtype) for dtype in HALVES),
    Case(
        "add_tile",
        (add_from_global, add_from_shared, store_to_shared, store_to_global),
        add_tile_kernel,
        tile_values,
        lambda inputs: np.float32(2) * (inputs["values"] + np.float32(1)),
        smem_bytes=2 * WARP_PIECES,
    ),
    *(store_rounded_case(dtype) for dtype in HALVES),
)
