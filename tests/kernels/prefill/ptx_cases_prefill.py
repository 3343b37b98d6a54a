"""Cases of what only the prefill kernel uses: copies that arrive, sums that leave transposed."""

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64
from ptx_cases import Case
from ptx_fragments import (
    bits16,
    descriptor_bytes,
    fragment_a,
    fragment_c,
    per_warp,
    smem_image,
    unfragment,
    unimage,
    values16,
)

from ferrum_numba import ptx
from ferrum_numba.kernels.prefill import steps as prefill_steps
from ferrum_numba.kernels.shared import tile as tile_steps

OUT_PAD = 16


def opaque_kernel(a, out):
    t = uint32(cuda.threadIdx.x)
    value = ptx.opaque_u32(ptx.ld_global_u32(a + uint64(t * 4)))
    ptx.st_global_u32(out + uint64(t * 4), value)


def arrive_kernel(a, out):
    """Copy 32 x 16 bytes with lanes 0 to 31; a second warp, which waits, passes them on."""
    t = uint32(cuda.threadIdx.x)
    smem = ptx.smem_base()
    bar = uint32(smem + 512)
    if t == uint32(0):
        ptx.mbarrier_init(bar, uint32(32))
        ptx.fence_mbarrier_init()
    cuda.syncthreads()
    if t < uint32(32):
        ptx.cp_async_16(smem + t * 16, a + uint64(t * 16))
        ptx.cp_async_mbarrier_arrive(bar)
    else:
        ptx.mbarrier_wait(bar, uint32(0))
        # another lane's copy
        from_lane = uint32(63 - t)
        value = ptx.ld_shared_v4(smem + from_lane * 16)
        ptx.st_global_v4(out + uint64(from_lane * 16), value)


def fence_kernel_of(mma, splat, wait, describe, image_bytes, step):
    """Return a kernel of one product whose B is the second 16 of k of what cp.async brought."""

    def fence_kernel(a, b, out):
        t = uint32(cuda.threadIdx.x)
        smem = ptx.smem_base()
        bar = uint32(smem + image_bytes)
        if t == uint32(0):
            ptx.mbarrier_init(bar, uint32(128))
            ptx.fence_mbarrier_init()
        cuda.syncthreads()
        offset = uint32(t * 16)
        while offset < uint32(image_bytes):
            ptx.cp_async_16(uint32(smem + offset), b + uint64(offset))
            offset = uint32(offset + 128 * 16)
        ptx.cp_async_mbarrier_arrive(bar)
        ptx.mbarrier_wait(bar, uint32(0))
        ptx.fence_proxy_async_shared()
        acc = splat(float32(0))
        fragment = ptx.ld_global_v4(a + uint64(t * 16))
        ptx.wgmma_fence()
        acc = mma(acc, fragment, step(describe(smem)), uint32(1))
        ptx.wgmma_commit()
        acc = wait(acc, 0)
        ptx.st_global_v4_f32(out + uint64(t * 16), (acc[0], acc[1], acc[2], acc[3]))

    return fence_kernel


def fence_case():
    n, size_bytes = 8, 128
    image, step_bytes = smem_image(np.zeros((n, 32), np.uint16), size_bytes)
    describe = ptx.smem_descriptor(size_bytes, *descriptor_bytes(n, size_bytes))
    step = ptx.descriptor_step(step_bytes)

    def fragments(a):
        return per_warp(fragment_a, a)

    def inputs(rng):
        # small integers: exact in fp32, whatever the order of the sum
        a = bits16(rng.integers(-8, 9, (64, 16)).astype(np.float32), "f16")
        b = bits16(rng.integers(-8, 9, (n, 32)).astype(np.float32), "f16")
        return {"a": fragments(a), "b": smem_image(b, size_bytes)[0]}

    def want(inputs):
        a = values16(unfragment(inputs["a"], (64, 16), fragments), "f16")
        b = values16(unimage(inputs["b"], n, size_bytes), "f16")
        return per_warp(fragment_c, (a @ b[:, 16:].T).astype(np.float32))

    return Case(
        "fence_proxy_async_shared",
        (ptx.fence_proxy_async_shared, step, ptx.cp_async_mbarrier_arrive, ptx.wgmma_fence),
        fence_kernel_of(
            ptx.wgmma_rs(n), ptx.splat_f32(n // 2), ptx.wgmma_wait_acc(n), describe,
            image.nbytes, step,
        ),
        inputs,
        want,
        num_threads=128,
        smem_bytes=image.nbytes + 8,
    )  # fmt: skip


def transposed_case(n, dtype, begin, end):
    """Return a case of columns begin to end: a warpgroup's D [64, n], transposed and rounded."""
    columns = end - begin
    row_bytes = 128 + OUT_PAD
    store = prefill_steps.store_accumulator_transposed(n, row_bytes, dtype, begin, end)
    add = tile_steps.add_tile("global", n // 2, 2048)
    splat = ptx.splat_f32(n // 2)
    pieces = columns * row_bytes // 16

    def transposed_kernel(values, factors, out):
        t = uint32(cuda.threadIdx.x)
        lane = uint32(t & 31)
        smem = ptx.smem_base()
        piece = t
        while piece < uint32(pieces):
            nothing = uint32(0)
            ptx.st_shared_v4(uint32(smem + piece * 16), (nothing, nothing, nothing, nothing))
            piece = uint32(piece + 128)
        cuda.syncthreads()
        acc = add(values + uint64(t * 16), splat(float32(0)))
        row = uint32((t >> 5) * 16 + (lane >> 2))
        low = ptx.ld_global_v2(factors + uint64(row * 8))
        high = ptx.ld_global_v2(factors + uint64(row * 8 + 64))
        scale = (ptx.bits_f32(low[0]), ptx.bits_f32(high[0]))
        bias = (ptx.bits_f32(low[1]), ptx.bits_f32(high[1]))
        to = uint32(((lane >> 4) * 8 + (lane & 7)) * row_bytes + (t >> 5) * 32)
        store(uint32(smem + to + ((lane >> 3) & 1) * 16), acc, scale, bias)
        cuda.syncthreads()
        piece = t
        while piece < uint32(pieces):
            value = ptx.ld_shared_v4(uint32(smem + piece * 16))
            ptx.st_global_v4(out + uint64(piece * 16), value)
            piece = uint32(piece + 128)

    def want(inputs):
        out = np.zeros((columns, row_bytes // 2), np.uint16)
        for j, thread, c in np.ndindex(inputs["values"].shape):
            warp, lane = divmod(thread, 32)
            row, column = 16 * warp + lane // 4 + 8 * (c // 2), 8 * j + 2 * (lane % 4) + c % 2
            if begin <= column < end:
                scale, bias = inputs["factors"][row].astype(np.float64)
                value = np.float32(inputs["values"][j, thread, c] * scale + bias)
                out[column - begin, row] = rounded16(value, dtype)
        return out

    return Case(
        f"store_accumulator_transposed_n{n}_{dtype}_{begin}_{end}",
        (store,),
        transposed_kernel,
        lambda rng: {
            "values": rng.standard_normal((n // 8, 128, 4)).astype(np.float32),
            "factors": rng.standard_normal((64, 2)).astype(np.float32),
        },
        want,
        num_threads=128,
        smem_bytes=columns * row_bytes,
    )


# a box of 16 rows that begins in the last columns and ends past the last row
BOX_ROWS, MATRIX_ROWS, MATRIX_COLUMNS, FIRST_ROW, FIRST_COLUMN = 16, 20, 120, 8, 64


def tensor_map_kernel(a, room, out):
    t = uint32(cuda.threadIdx.x)
    smem = ptx.smem_base()
    bar, here = uint32(smem + 2048 + 128), uint32(smem + 2048)
    if t == uint32(0):
        ptx.mbarrier_init(bar, uint32(1))
        ptx.fence_mbarrier_init()
    ptx.st_shared_u32(uint32(here + t * 4), uint32(0))
    cuda.syncthreads()
    if t == uint32(0):
        columns, rows = uint32(MATRIX_COLUMNS), uint32(MATRIX_ROWS)
        ptx.describe_matrix(here, a, columns, rows, uint64(2 * MATRIX_COLUMNS), uint32(BOX_ROWS))
    ptx.bar_warp_sync()
    ptx.publish_tensor_map(room, here)
    ptx.acquire_tensor_map(room)
    if t == uint32(0):
        ptx.mbarrier_arrive_expect_tx(bar, uint32(2048))
        ptx.cp_async_bulk_tensor_2d(smem, room, uint32(FIRST_COLUMN), uint32(FIRST_ROW), bar)
    ptx.mbarrier_wait(bar, uint32(0))
    for i in range(4):
        at = uint32(uint32(t + 32 * i) * 16)
        ptx.st_global_v4(out + uint64(at), ptx.ld_shared_v4(uint32(smem + at)))


def tensor_map_want(inputs):
    box = np.zeros((BOX_ROWS, 64), np.uint16)
    inside = inputs["a"][FIRST_ROW:, FIRST_COLUMN:]
    box[: len(inside), : inside.shape[1]] = inside
    # 16-byte chunk c of row r lies at c ^ r % 8
    swizzled = np.zeros_like(box).reshape(BOX_ROWS, 8, 8)
    for r in range(BOX_ROWS):
        for c in range(8):
            swizzled[r, c ^ r % 8] = box[r, 8 * c : 8 * c + 8]
    return swizzled.reshape(BOX_ROWS, 64)


def multicast_kernel(a, room, out):
    """Each block of a pair copies half of the box for both, and tells both that it has read it."""
    t = uint32(cuda.threadIdx.x)
    rank = ptx.cluster_ctarank()
    smem = ptx.smem_base()
    here, full = uint32(smem + 2048), uint32(smem + 2048 + 128)
    empty = uint32(full + 8)
    own = uint64(uint32(rank * 128))
    if t == uint32(0):
        ptx.mbarrier_init(full, uint32(1))
        ptx.mbarrier_init(empty, uint32(2))
        ptx.fence_mbarrier_init()
    ptx.st_shared_u32(uint32(here + t * 4), uint32(0))
    cuda.syncthreads()
    ptx.cluster_arrive()
    ptx.cluster_wait()
    if t == uint32(0):
        columns, rows = uint32(MATRIX_COLUMNS), uint32(MATRIX_ROWS)
        row_bytes, box_rows = uint64(2 * MATRIX_COLUMNS), uint32(BOX_ROWS // 2)
        ptx.describe_matrix(here, a, columns, rows, row_bytes, box_rows)
    ptx.bar_warp_sync()
    ptx.publish_tensor_map(room + own, here)
    ptx.acquire_tensor_map(room + own)
    if t == uint32(0):
        ptx.mbarrier_arrive_expect_tx(full, uint32(2048))
        row = uint32(rank * (BOX_ROWS // 2))
        to, row = uint32(smem + row * 128), uint32(row + FIRST_ROW)
        ptx.cp_async_bulk_tensor_2d_multicast(
            to, room + own, uint32(FIRST_COLUMN), row, full, uint32(3)
        )
    ptx.mbarrier_wait(full, uint32(0))
    for i in range(4):
        at = uint32(uint32(t + 32 * i) * 16)
        place = uint64(uint32(rank * 2048 + at))
        ptx.st_global_v4(out + place, ptx.ld_shared_v4(uint32(smem + at)))
    ptx.bar_warp_sync()
    told = uint32(0)
    if t < uint32(2):
        told = uint32(1)
    ptx.mbarrier_arrive_cluster_if(ptx.mapa(empty, uint32(t & 1)), told)
    ptx.mbarrier_wait(empty, uint32(0))


def rounded16(value, dtype):
    """Return the bits of an fp32 rounded to nearest even."""
    if dtype == "f16":
        return np.float16(value).view(np.uint16)
    bits = int(np.float32(value).view(np.uint32))
    return np.uint16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


CASES = (
    Case(
        "opaque_u32",
        (ptx.opaque_u32,),
        opaque_kernel,
        lambda rng: {"a": rng.integers(0, 2**32, 32, np.uint32)},
        lambda inputs: inputs["a"],
    ),
    Case(
        "cp_async_mbarrier_arrive",
        (ptx.cp_async_mbarrier_arrive, ptx.mbarrier_wait),
        arrive_kernel,
        lambda rng: {"a": rng.integers(0, 2**32, (32, 4), np.uint32)},
        lambda inputs: inputs["a"],
        num_threads=64,
        smem_bytes=520,
    ),
    Case(
        "tensor_map",
        (
            ptx.describe_matrix,
            ptx.publish_tensor_map,
            ptx.acquire_tensor_map,
            ptx.cp_async_bulk_tensor_2d,
        ),
        tensor_map_kernel,
        lambda rng: {
            "a": rng.integers(0, 2**16, (MATRIX_ROWS, MATRIX_COLUMNS), np.uint16),
            "room": np.zeros(32, np.uint32),
        },
        tensor_map_want,
        smem_bytes=2048 + 128 + 8,
    ),
    Case(
        "tensor_map_multicast",
        (
            ptx.cp_async_bulk_tensor_2d_multicast,
            ptx.mbarrier_arrive_cluster_if,
            ptx.describe_matrix,
            ptx.cluster_ctarank,
            ptx.mapa,
        ),
        multicast_kernel,
        lambda rng: {
            "a": rng.integers(0, 2**16, (MATRIX_ROWS, MATRIX_COLUMNS), np.uint16),
            "room": np.zeros(64, np.uint32),
        },
        lambda inputs: np.concatenate([tensor_map_want(inputs)] * 2),
        num_blocks=2,
        smem_bytes=2048 + 128 + 16,
        cluster=(2, 1, 1),
    ),
    fence_case(),
    transposed_case(16, "f16", 0, 16),
    transposed_case(64, "bf16", 16, 48),
    transposed_case(192, "f16", 128, 192),
)
