"""Cases of what a GEMM tile is made of: dequantisation and the instructions of many blocks."""

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64
from ptx_cases import Case
from ptx_fragments import SUM_ERROR, fragment_b, fragment_c, loop_product, values16

from ferrum_numba import ptx

BLOCKS = 2
WARP_PIECES = 512  # bytes a warp moves in one 16-byte access of all lanes


def dequantize_kernel(word, out):
    t = uint32(cuda.threadIdx.x)
    value = ptx.ld_global_u32(word + uint64(t * 4))
    ptx.st_global_v4(out + uint64(t * 16), ptx.dequantize_f16(value))


def dequantize_scaled_kernel(word, scales, out):
    t = uint32(cuda.threadIdx.x)
    value = ptx.ld_global_u32(word + uint64(t * 4))
    scale = ptx.ld_global_u32(scales + uint64(t * 4))
    ptx.st_global_v4(out + uint64(t * 16), ptx.dequantize_scaled_f16(value, scale))


def words(rng):
    """Return 32 words in which every nibble takes every code."""
    codes = (np.arange(32)[:, None] + 3 * np.arange(8)) % 16
    return (codes.astype(np.uint32) << (4 * np.arange(8, dtype=np.uint32))).sum(1, dtype=np.uint32)


def scaled_words(rng):
    scales = (rng.standard_normal((32, 2)) * 0.01).astype(np.float16)
    # a subnormal, the largest that does not overflow, zero
    scales[0], scales[1], scales[2] = 2.0**-24, 8000.0, 0.0
    return {"word": words(rng), "scales": scales}


def dequantized(inputs):
    """Return [32, 4] words, nibble by nibble, as the layout of Marlin's word has them."""
    out = np.zeros((32, 4, 2), np.float16)
    scales = inputs.get("scales", np.ones((32, 2), np.float16))
    for lane in range(32):
        for nibble in range(8):
            code = int(inputs["word"][lane]) >> (4 * nibble) & 15
            half, selector = nibble >> 2, nibble & 3
            scale = scales[lane, selector >> 1]
            out[lane, selector, half] = np.float16(np.float64(code - 8) * np.float64(scale))
    return out.view(np.uint32)[..., 0]


load_tile = ptx.ldmatrix_tile(BLOCKS, 16 * 32)
multiply_tile = ptx.mma_tile(BLOCKS)
store_product = ptx.store_tile("global", 8 * BLOCKS, WARP_PIECES)
zeros = ptx.splat_f32(8 * BLOCKS)


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


def product_inputs(rng):
    b = rng.standard_normal((2, 16, 8)).astype(np.float16).view(np.uint16)
    x = rng.standard_normal((16 * BLOCKS, 16)).astype(np.float16)
    return {"x": x, "b": np.concatenate([fragment_b(b[0]), fragment_b(b[1])], axis=1)}


def product_parts(inputs, of):
    """Return [pieces, 32, 4]: `of` the factors of each 16x8 part, in the order of the pieces."""
    x = inputs["x"].view(np.uint16)
    parts = []
    for block in range(BLOCKS):
        a = values16(x[16 * block : 16 * block + 16], "f16")
        for n in range(2):
            b = np.zeros((16, 8))
            for lane in range(32):
                for half in range(4):
                    bits = int(inputs["b"][lane, 2 * n + half // 2]) >> (16 * (half % 2)) & 0xFFFF
                    k = 2 * (lane % 4) + half % 2 + 8 * (half // 2)
                    b[k, lane // 4] = values16(np.array([bits], np.uint16), "f16")[0]
            parts.append(fragment_c(of(a, b)))
    return np.stack(parts)


def product(inputs):
    return np.float32(product_parts(inputs, loop_product) + 1)


def product_bound(inputs):
    return SUM_ERROR * (product_parts(inputs, lambda a, b: np.abs(a) @ np.abs(b)) + 1)


add_from_global = ptx.add_tile("global", 8, WARP_PIECES)
add_from_shared = ptx.add_tile("shared", 8, WARP_PIECES)
store_to_shared = ptx.store_tile("shared", 8, WARP_PIECES)
store_to_global = ptx.store_tile("global", 8, WARP_PIECES)
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
add_strips = ptx.add_tile("global", 16, WARP_PIECES)
store_halves = ptx.store_tile_f16(1, 2, ROW_BYTES)
sixteen = ptx.splat_f32(16)


def store_tile_f16_kernel(values, scale, bias, out):
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


def strip_inputs(rng):
    values = rng.standard_normal((4, 32, 4)).astype(np.float32)
    values[0, 0] = [1e5, -1e5, 2.0**-25, 65519.0]  # overflow, underflow, the largest that rounds
    return {
        "values": values,
        "scale": np.float32(rng.choice([0.5, 1.0, 3.0], (32, 8))),
        "bias": np.float32(rng.choice([0.0, 0.25, -1.0], (32, 8))),
    }


def strip_rows(inputs):
    """Return [16, 32] fp16, element by element."""
    out = np.zeros((16, 32), np.float16)
    for lane in range(32):
        for strip in range(2):
            for n in range(2):
                for c in range(4):
                    column = 4 * strip + 2 * n + c % 2
                    value = np.float64(inputs["values"][2 * strip + n, lane, c])
                    exact = value * inputs["scale"][lane, column] + inputs["bias"][lane, column]
                    with np.errstate(over="ignore"):
                        rounded = np.float32(exact).astype(np.float16)
                    place = (lane // 4 + 8 * (c // 2), 16 * strip + 8 * n + 2 * (lane % 4) + c % 2)
                    out[place] = rounded
    return out


CASES = (
    Case(
        "dequantize_f16",
        (ptx.dequantize_f16,),
        dequantize_kernel,
        lambda rng: {"word": words(rng)},
        dequantized,
    ),
    Case(
        "dequantize_scaled_f16",
        (ptx.dequantize_scaled_f16,),
        dequantize_scaled_kernel,
        scaled_words,
        dequantized,
    ),
    Case(
        "mma_tile",
        (load_tile, multiply_tile, store_product),
        mma_tile_kernel,
        product_inputs,
        product,
        product_bound,
        smem_bytes=512 * BLOCKS,
    ),
    Case(
        "add_tile",
        (add_from_global, add_from_shared, store_to_shared, store_to_global),
        add_tile_kernel,
        tile_values,
        lambda inputs: np.float32(2) * (inputs["values"] + np.float32(1)),
        smem_bytes=2 * WARP_PIECES,
    ),
    Case(
        "store_tile_f16",
        (store_halves,),
        store_tile_f16_kernel,
        strip_inputs,
        strip_rows,
        smem_bytes=16 * ROW_BYTES,
    ),
)
