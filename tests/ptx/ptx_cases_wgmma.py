"""Cases of wgmma and its descriptors: two products, 32 of k, of one warpgroup."""

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64
from ptx_cases import Case
from ptx_fragments import (
    SUM_ERROR,
    bits16,
    descriptor_bytes,
    fragment_a,
    fragment_c,
    loop_product,
    per_warp,
    smem_image,
    unfragment,
    unimage,
    values16,
)

from ferrum_numba import ptx


@cuda.jit(device=True, forceinline=True)
def fetch_to_shared(target, source, num_bytes):
    offset = uint32(cuda.threadIdx.x * 16)
    while offset < num_bytes:
        ptx.st_shared_v4(uint32(target + offset), ptx.ld_global_v4(source + uint64(offset)))
        offset = uint32(offset + 128 * 16)


def wgmma_rs_case(wgmma, splat, wait, describe, n, image_bytes, step):
    """Return a kernel over two steps of k; the first drops the accumulators it is given."""
    num_groups = n // 8

    def wgmma_rs_kernel(a, b, out):
        t = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        fetch_to_shared(base, b, uint32(image_bytes))
        ptx.fence_proxy_async()
        cuda.syncthreads()
        first = ptx.ld_global_v4(a + uint64(t * 16))
        second = ptx.ld_global_v4(a + uint64(2048 + t * 16))
        acc = splat(float32(77.0))
        desc = describe(base)
        ptx.wgmma_fence()
        acc = wgmma(acc, first, desc, uint32(0))
        acc = wgmma(acc, second, uint64(desc + uint64(step)), uint32(1))
        ptx.wgmma_commit()
        acc = wait(acc, 0)
        for j in range(num_groups):
            group = (acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3])
            ptx.st_global_v4_f32(out + uint64((t * num_groups + j) * 16), group)

    return wgmma_rs_kernel


def wgmma_ss_case(wgmma, splat, describe_a, describe_b, n, sizes):
    """Return a kernel over two steps of k that adds to accumulators of 1."""
    num_groups = n // 8
    a_bytes, b_bytes, a_step, b_step = sizes

    def wgmma_ss_kernel(a, b, out):
        t = uint32(cuda.threadIdx.x)
        smem_a = ptx.smem_base()
        smem_b = uint32(smem_a + uint32(a_bytes))
        fetch_to_shared(smem_a, a, uint32(a_bytes))
        fetch_to_shared(smem_b, b, uint32(b_bytes))
        ptx.fence_proxy_async()
        cuda.syncthreads()
        acc = splat(float32(1.0))
        desc_a, desc_b = describe_a(smem_a), describe_b(smem_b)
        ptx.wgmma_fence()
        acc = wgmma(acc, desc_a, desc_b, uint32(1))
        next_a, next_b = uint64(desc_a + uint64(a_step)), uint64(desc_b + uint64(b_step))
        acc = wgmma(acc, next_a, next_b, uint32(1))
        ptx.wgmma_commit()
        ptx.wgmma_wait(0)
        for j in range(num_groups):
            group = (acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3])
            ptx.st_global_v4_f32(out + uint64((t * num_groups + j) * 16), group)

    return wgmma_ss_kernel


def wgmma_matrices(rng, n, dtype):
    """Return a [64, 32] and b [n, 32] as bits: normal, with int4 codes as subnormals in fp16."""
    a, b = rng.standard_normal((64, 32)), rng.standard_normal((n, 32))
    if dtype == "f16":
        a[:, 16:] = rng.integers(0, 16, (64, 16)) * 2.0**-24
    return bits16(a, dtype), bits16(b, dtype)


def fragments(a):
    """Return the registers of a [64, 32] in its two steps: [2 * 128, 4]."""
    return np.concatenate([per_warp(fragment_a, a[:, k : k + 16]) for k in (0, 16)])


def matrices(inputs, form, n, dtype, swizzle_bytes):
    """Return a [64, 32] and b [n, 32] as float64."""
    if form == "rs":
        a = unfragment(inputs["a"], (64, 32), fragments)
    else:
        a = unimage(inputs["a"], 64, swizzle_bytes)
    return values16(a, dtype), values16(unimage(inputs["b"], n, swizzle_bytes), dtype)


def wgmma_inputs(form, n, dtype, swizzle_bytes):
    def inputs(rng):
        a, b = wgmma_matrices(rng, n, dtype)
        held = fragments(a) if form == "rs" else smem_image(a, swizzle_bytes)[0]
        return {"a": held, "b": smem_image(b, swizzle_bytes)[0]}

    return inputs


def wgmma_want(start, *shape):
    def want(inputs):
        a, b = matrices(inputs, *shape)
        return per_warp(fragment_c, np.float32(loop_product(a, b.T) + start))

    return want


def wgmma_bound(start, *shape):
    def bound(inputs):
        a, b = matrices(inputs, *shape)
        return 2 * SUM_ERROR * per_warp(fragment_c, np.abs(a) @ np.abs(b.T) + start)

    return bound


def layout(rows, swizzle_bytes):
    """Return (descriptor instruction, bytes of the image, descriptor units a step of k)."""
    image, step_bytes = smem_image(np.zeros((rows, 32), np.uint16), swizzle_bytes)
    describe = ptx.smem_descriptor(swizzle_bytes, *descriptor_bytes(rows, swizzle_bytes))
    return describe, image.nbytes, step_bytes // 16


def wgmma_case(form, n, dtype, swizzle_bytes):
    shape = (form, n, dtype, swizzle_bytes)
    describe, b_bytes, b_step = layout(n, swizzle_bytes)
    splat = ptx.splat_f32(n // 2)
    common = (splat, describe, ptx.wgmma_fence, ptx.wgmma_commit)
    if form == "rs":
        op, wait = ptx.wgmma_rs(n, dtype), ptx.wgmma_wait_acc(n)
        function = wgmma_rs_case(op, splat, wait, describe, n, b_bytes, b_step)
        covered, smem_bytes, start = (op, wait, *common), b_bytes, 0.0
    else:
        op = ptx.wgmma_ss(n, dtype)
        describe_a, a_bytes, a_step = layout(64, swizzle_bytes)
        sizes = (a_bytes, b_bytes, a_step, b_step)
        function = wgmma_ss_case(op, splat, describe_a, describe, n, sizes)
        covered = (op, ptx.wgmma_wait, describe_a, *common)
        smem_bytes, start = a_bytes + b_bytes, 1.0
    return Case(
        f"wgmma_{form}_n{n}_{dtype}_{swizzle_bytes}b",
        covered,
        function,
        wgmma_inputs(*shape),
        wgmma_want(start, *shape),
        wgmma_bound(start, *shape),
        num_threads=128,
        smem_bytes=smem_bytes,
    )


WGMMA = (
    ("rs", 8, "f16", 128),
    ("rs", 16, "f16", 32),
    ("rs", 24, "f16", 0),
    ("rs", 64, "bf16", 64),
    ("rs", 256, "f16", 128),
    ("ss", 8, "bf16", 32),
    ("ss", 64, "f16", 0),
    ("ss", 128, "f16", 128),
    ("ss", 40, "f16", 64),
)
CASES = tuple(wgmma_case(*shape) for shape in WGMMA)
