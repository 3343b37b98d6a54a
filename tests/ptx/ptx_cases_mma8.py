"""Cases of 8-bit products: mma of a warp, and wgmma of a warpgroup over two steps of 32 of k."""

import numpy as np
from numba import cuda
from numba.cuda.types import float32, int32, uint32, uint64
from ptx_cases import Case
from ptx_cases_wgmma import fetch_to_shared, layout
from ptx_fragments import (
    fragment_a,
    fragment_b,
    fragment_c,
    loop_product,
    per_warp,
    smem_image,
    unfragment,
    unimage,
)

from ferrum_numba import ptx

NUM_BLOCKS = 3
# Hopper has no mma of fp8, but makes one of fp16 of it, whose order of summation is its own
FP8_SUM_ERROR = 2.0**-12
# of the smallest subnormal's square, what every product of fp8 is a multiple of
SMALLEST = -18


def values8(codes, dtype):
    """Return float64 of the bytes of int8 or of e4m3: sign, 4 bits of exponent, 3 of mantissa."""
    codes = codes.astype(np.int64)
    if dtype == "s8":
        return np.where(codes < 128, codes, codes - 256).astype(np.float64)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    size = np.where(exponent, np.ldexp(8.0 + mantissa, exponent - 10), mantissa / 512.0)
    return np.where(codes >> 7, -size, size)


def random8(rng, shape, dtype):
    """Return random bytes; of e4m3, no NaN."""
    codes = rng.integers(0, 256, shape).astype(np.uint8)
    if dtype == "e4m3":
        codes[codes & 0x7F == 0x7F] = 0x7E
    return codes


def in_pairs(matrix):
    """Return a K-major [rows, k] matrix of bytes as the 16-bit elements that it is laid out as."""
    return np.ascontiguousarray(matrix).view(np.uint16)


def mma8_case(mma, dtype):
    load_c = ptx.ld_global_v4_f32 if dtype == "e4m3" else ptx.ld_global_v4
    integers = dtype == "s8"

    def mma8_kernel(a, b, c, out):
        i = uint32(cuda.blockIdx.x * 32 + cuda.threadIdx.x)
        frag_a = ptx.ld_global_v4(a + uint64(i * 16))
        frag_b = ptx.ld_global_v2(b + uint64(i * 8))
        acc = load_c(c + uint64(i * 16))
        if integers:
            held = (int32(acc[0]), int32(acc[1]), int32(acc[2]), int32(acc[3]))
            d = mma(frag_a, frag_b, held)
            word = (uint32(d[0]), uint32(d[1]), uint32(d[2]), uint32(d[3]))
            ptx.st_global_v4(out + uint64(i * 16), word)
        else:
            ptx.st_global_v4_f32(out + uint64(i * 16), mma(frag_a, frag_b, acc))

    return mma8_kernel


def sums(rng, shape, dtype):
    if dtype == "s8":
        # near the ends, so that some wrap around
        return rng.integers(-(2**31), 2**31, shape).astype(np.int32)
    return rng.standard_normal(shape).astype(np.float32)


def mma8_inputs(dtype):
    def inputs(rng):
        tiles = [
            (random8(rng, (16, 32), dtype), random8(rng, (8, 32), dtype), sums(rng, (16, 8), dtype))
            for _ in range(NUM_BLOCKS)
        ]
        return {
            "a": np.concatenate([fragment_a(in_pairs(a)) for a, _, _ in tiles]),
            "b": np.concatenate([fragment_b(in_pairs(b).T) for _, b, _ in tiles]),
            "c": np.concatenate([fragment_c(c) for _, _, c in tiles]),
        }

    return inputs


def mma8_blocks(inputs, dtype):
    for block in range(NUM_BLOCKS):
        lanes = slice(32 * block, 32 * block + 32)
        a = unfragment(inputs["a"][lanes], (16, 16), fragment_a).view(np.uint8)
        b = unfragment(inputs["b"][lanes], (16, 8), fragment_b).T.copy().view(np.uint8)
        yield values8(a, dtype), values8(b, dtype).T, inputs["c"][lanes]


def rounded(total, dtype):
    if dtype == "s8":
        return total.astype(np.int64).astype(np.int32)
    return np.float32(total)


def mma8_want(dtype):
    def want(inputs):
        return np.concatenate([
            rounded(fragment_c(loop_product(a, b)) + c, dtype)
            for a, b, c in mma8_blocks(inputs, dtype)
        ])  # fmt: skip

    return want


def mma8_bound(inputs):
    sizes = [
        fragment_c(np.abs(a) @ np.abs(b)) + np.abs(c) for a, b, c in mma8_blocks(inputs, "e4m3")
    ]
    return FP8_SUM_ERROR * np.concatenate(sizes)


def wgmma8_case(ops, n, form, dtype, sizes):
    """Return a kernel over two steps of k; where A is negated, the second is subtracted."""
    first_op, second_op, splat, wait, describe_a, describe_b = ops
    a_bytes, b_bytes, a_step, b_step = sizes
    num_groups, integers, in_registers = n // 8, dtype == "s8", form == "rs"
    start = int32(7) if integers else float32(7.0)

    def wgmma8_kernel(a, b, out):
        t = uint32(cuda.threadIdx.x)
        smem_b = ptx.smem_base()
        smem_a = uint32(smem_b + uint32(b_bytes))
        fetch_to_shared(smem_b, b, uint32(b_bytes))
        if not in_registers:
            fetch_to_shared(smem_a, a, uint32(a_bytes))
        ptx.fence_proxy_async()
        cuda.syncthreads()
        acc = splat(start)
        desc_b = describe_b(smem_b)
        next_b = uint64(desc_b + uint64(b_step))
        if in_registers:
            first = ptx.ld_global_v4(a + uint64(t * 16))
            later = ptx.ld_global_v4(a + uint64(2048 + t * 16))
        ptx.wgmma_fence()
        if in_registers:
            acc = first_op(acc, first, desc_b, uint32(0))
            acc = second_op(acc, later, next_b, uint32(1))
        else:
            desc_a = describe_a(smem_a)
            acc = first_op(acc, desc_a, desc_b, uint32(1))
            acc = second_op(acc, uint64(desc_a + uint64(a_step)), next_b, uint32(1))
        ptx.wgmma_commit()
        acc = wait(acc, 0)
        for j in range(num_groups):
            at = out + uint64((t * num_groups + j) * 16)
            if integers:
                word = (
                    uint32(acc[4 * j]), uint32(acc[4 * j + 1]), uint32(acc[4 * j + 2]),
                    uint32(acc[4 * j + 3]),
                )  # fmt: skip
                ptx.st_global_v4(at, word)
            else:
                group = (acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3])
                ptx.st_global_v4_f32(at, group)

    return wgmma8_kernel


def fragments(a):
    """Return the registers of a [64, 64] bytes in its two steps: [2 * 128, 4]."""
    pairs = in_pairs(a)
    return np.concatenate([per_warp(fragment_a, pairs[:, k : k + 16]) for k in (0, 16)])


def wgmma8_inputs(form, n, dtype, swizzle_bytes):
    def inputs(rng):
        a, b = random8(rng, (64, 64), dtype), random8(rng, (n, 64), dtype)
        held = fragments(a) if form == "rs" else smem_image(in_pairs(a), swizzle_bytes)[0]
        return {"a": held, "b": smem_image(in_pairs(b), swizzle_bytes)[0]}

    return inputs


def matrices(inputs, form, n, dtype, swizzle_bytes):
    if form == "rs":
        number = np.arange(64 * 32, dtype=np.uint16).reshape(64, 32)
        order = fragments(number.view(np.uint8)).view(np.uint16).ravel()
        a = np.empty(64 * 32, np.uint16)
        a[order] = inputs["a"].view(np.uint16).ravel()
        a = a.reshape(64, 32)
    else:
        a = unimage(inputs["a"], 64, swizzle_bytes)
    b = unimage(inputs["b"], n, swizzle_bytes)
    return [values8(x.copy().view(np.uint8), dtype) for x in (a, b)]


def leading(number):
    """Return the place of the leading bit of a Python integer; None of zero."""
    return abs(number).bit_length() - 1 if number else None


def cut(number, lead, places=13):
    """Return an integer, toward zero, to so many places after a leading one."""
    low = max(0, lead - places)
    return (abs(number) >> low << low) * (1 if number >= 0 else -1)


def hopper_sum(row, column, before):
    """Return one wgmma's sum of products of fp8, in integers: multiples of 2^SMALLEST.

    row, column: integers, multiples of 2^-9
    """
    pairs = [(x * y, leading(x) + leading(y)) for x, y in zip(row, column, strict=True) if x and y]
    leads = [lead for _, lead in pairs] + ([leading(before)] if before else [])
    if not leads:
        return 0
    total = sum(cut(product, max(leads)) for product, _ in pairs) + cut(before, max(leads))
    return cut(total, leading(total)) if total else 0


def hopper_product(a, b, before):
    """Return [m, n] sums of one wgmma of a [m, 32] and b [n, 32], float64 values of fp8."""
    rows, columns = ([[int(v * 512) for v in row] for row in x] for x in (a, b))
    unit = 2.0**SMALLEST
    return np.array([
        [hopper_sum(row, column, int(before[i, j] / unit)) * unit
         for j, column in enumerate(columns)]
        for i, row in enumerate(rows)
    ])  # fmt: skip


def wgmma8_want(start, negate, *shape):
    def want(inputs):
        a, b = matrices(inputs, *shape)
        if shape[2] == "e4m3":
            total = hopper_product(a[:, :32], b[:, :32], np.full((64, len(b)), start))
            total = hopper_product(-a[:, 32:] if negate else a[:, 32:], b[:, 32:], total)
            return per_warp(fragment_c, np.float32(total))
        second = loop_product(a[:, 32:], b[:, 32:].T)
        total = loop_product(a[:, :32], b[:, :32].T) + (-second if negate else second) + start
        return per_warp(fragment_c, rounded(total, shape[2]))

    return want


def wgmma8(form, n, dtype, swizzle_bytes, negate=False):
    shape = (form, n, dtype, swizzle_bytes)
    describe_b, b_bytes, b_step = layout(n, swizzle_bytes)
    describe_a, a_bytes, a_step = layout(64, swizzle_bytes)
    make = ptx.wgmma8_rs if form == "rs" else ptx.wgmma8_ss
    first, second = make(n, dtype), make(n, dtype, negate=negate)
    integers = dtype == "s8"
    splat = (ptx.splat_s32 if integers else ptx.splat_f32)(n // 2)
    wait = ptx.wgmma_wait_s32(n) if integers else ptx.wgmma_wait_acc(n)
    start = 0.0 if form == "rs" else 7.0
    ops = (first, second, splat, wait, describe_a, describe_b)
    return Case(
        f"wgmma8_{form}_n{n}_{dtype}_{swizzle_bytes}b{'_negated' if negate else ''}",
        ops if form == "ss" else (*ops[:4], describe_b),
        wgmma8_case(ops, n, form, dtype, (a_bytes, b_bytes, a_step, b_step)),
        wgmma8_inputs(*shape),
        wgmma8_want(start, negate, *shape),
        None,
        num_threads=128,
        smem_bytes=b_bytes + (a_bytes if form == "ss" else 0),
    )


def mma8_cases():
    for dtype in ("e4m3", "s8"):
        op = getattr(ptx, f"mma_m16n8k32_{dtype}")
        yield Case(
            op.name, (op,), mma8_case(op, dtype), mma8_inputs(dtype), mma8_want(dtype),
            mma8_bound if dtype == "e4m3" else None, num_blocks=NUM_BLOCKS,
        )  # fmt: skip


WGMMA = (
    ("rs", 8, "e4m3", 128),
    ("rs", 16, "s8", 32),
    ("rs", 64, "e4m3", 0, True),
    ("ss", 16, "s8", 64),
    ("ss", 64, "e4m3", 128),
    ("ss", 24, "e4m3", 32, True),
)
CASES = (*mma8_cases(), *(wgmma8(*shape) for shape in WGMMA))
