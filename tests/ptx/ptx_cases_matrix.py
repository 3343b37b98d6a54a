"""Cases of mma, ldmatrix and stmatrix."""

import numpy as np
from numba import cuda
from numba.cuda.types import uint32, uint64
from ptx_cases import Case
from ptx_fragments import (
    SUM_ERROR,
    bits16,
    fragment_a,
    fragment_b,
    fragment_c,
    loop_product,
    matrix_registers,
    unfragment,
    values16,
)

from ferrum_numba import ptx


def mma_case(mma):
    def mma_kernel(a, b, c, out):
        i = uint32(cuda.blockIdx.x * 32 + cuda.threadIdx.x)
        frag_a = ptx.ld_global_v4(a + uint64(i * 16))
        frag_b = ptx.ld_global_v2(b + uint64(i * 8))
        acc = ptx.ld_global_v4_f32(c + uint64(i * 16))
        ptx.st_global_v4_f32(out + uint64(i * 16), mma(frag_a, frag_b, acc))

    return mma_kernel


def tiles(rng, dtype):
    """Return families of (a [16, 16], b [16, 8], c [16, 8]): bits, bits, float32."""
    # subnormal codes, whose products are normal in fp32
    tiny, restored = {"f16": (2.0**-24, 1.0), "bf16": (2.0**-133, 2.0**20)}[dtype]
    huge = {"f16": 6e4, "bf16": 1e18}[dtype]
    normal = [rng.standard_normal(shape) for shape in ((16, 16), (16, 8), (16, 8))]
    codes = rng.integers(0, 16, (16, 16)) * tiny
    one_hot = np.zeros((16, 16))
    one_hot[3, 14] = 1.0
    strange = normal[0].copy()
    strange[0, 0], strange[1, 1], strange[2, 2] = np.inf, -np.inf, np.nan
    cancel = np.concatenate([normal[0][:, :8], -normal[0][:, :8]], axis=1)
    doubled = np.concatenate([normal[1][:8], normal[1][:8]])
    zero = np.zeros((16, 8))
    families = [
        normal,
        (codes, restored * normal[1], zero),
        (one_hot, normal[1], normal[2]),
        (huge * normal[0] / 6, huge * np.sign(normal[1]), zero),
        (strange, normal[1], normal[2]),
        (cancel, doubled, normal[2]),
        (np.zeros((16, 16)), normal[1], -zero),
    ]
    return [(bits16(a, dtype), bits16(b, dtype), np.float32(c)) for a, b, c in families]


NUM_FAMILIES = 7


def mma_inputs(dtype):
    def inputs(rng):
        families = tiles(rng, dtype)
        return {
            "a": np.concatenate([fragment_a(a) for a, _, _ in families]),
            "b": np.concatenate([fragment_b(b) for _, b, _ in families]),
            "c": np.concatenate([fragment_c(c) for _, _, c in families]),
        }

    return inputs


def mma_blocks(inputs, dtype):
    for block in range(NUM_FAMILIES):
        lanes = slice(32 * block, 32 * block + 32)
        a = values16(unfragment(inputs["a"][lanes], (16, 16), fragment_a), dtype)
        b = values16(unfragment(inputs["b"][lanes], (16, 8), fragment_b), dtype)
        yield a, b, inputs["c"][lanes]


def mma_want(dtype):
    def want(inputs):
        with np.errstate(invalid="ignore", over="ignore"):
            return np.concatenate(
                [
                    np.float32(fragment_c(loop_product(a, b)) + c)
                    for a, b, c in mma_blocks(inputs, dtype)
                ]
            )

    return want


def mma_bound(dtype):
    def bound(inputs):
        with np.errstate(invalid="ignore"):
            sizes = [
                fragment_c(np.abs(a) @ np.abs(b)) + np.abs(c)
                for a, b, c in mma_blocks(inputs, dtype)
            ]
        return SUM_ERROR * np.nan_to_num(np.concatenate(sizes), nan=0.0, posinf=0.0)

    return bound


def ldmatrix_case(ldmatrix, count):
    """Return a kernel: image of 32 rows and each lane's row number in, registers out."""
    store = {1: ptx.st_global_u32, 2: ptx.st_global_v2, 4: ptx.st_global_v4}[count]
    lane_bytes = 4 * count

    def ldmatrix_kernel(image, row, out):
        t = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        ptx.st_shared_v4(uint32(base + t * 16), ptx.ld_global_v4(image + uint64(t * 16)))
        cuda.syncthreads()
        address = uint32(base + ptx.ld_global_u32(row + uint64(t * 4)) * 16)
        store(out + uint64(t * lane_bytes), ldmatrix(address))

    return ldmatrix_kernel


def stmatrix_case(stmatrix, count):
    """Return a kernel: registers and each lane's row number in, the 32 rows of memory out."""
    load = {1: ptx.ld_global_u32, 2: ptx.ld_global_v2, 4: ptx.ld_global_v4}[count]
    lane_bytes = 4 * count

    def stmatrix_kernel(value, row, out):
        t = uint32(cuda.threadIdx.x)
        base = ptx.smem_base()
        zero = uint32(0)
        ptx.st_shared_v4(uint32(base + t * 16), (zero, zero, zero, zero))
        cuda.syncthreads()
        address = uint32(base + ptx.ld_global_u32(row + uint64(t * 4)) * 16)
        stmatrix(address, load(value + uint64(t * lane_bytes)))
        cuda.syncthreads()
        ptx.st_global_v4(out + uint64(t * 16), ptx.ld_shared_v4(uint32(base + t * 16)))

    return stmatrix_kernel


def matrix_cases():
    for count in (1, 2, 4):
        for transposed in (False, True):
            suffix = f"x{count}_trans" if transposed else f"x{count}"
            load, store = getattr(ptx, f"ldmatrix_{suffix}"), getattr(ptx, f"stmatrix_{suffix}")
            yield Case(
                load.name,
                (load,),
                ldmatrix_case(load, count),
                load_inputs,
                loaded(count, transposed),
                smem_bytes=512,
            )
            yield Case(
                store.name,
                (store,),
                stmatrix_case(store, count),
                store_inputs(count),
                stored(count, transposed),
                smem_bytes=512,
            )


def load_inputs(rng):
    return {
        "image": rng.integers(0, 2**16, (32, 8), dtype=np.uint16),
        "row": rng.permutation(32).astype(np.uint32),
    }


def store_inputs(count):
    return lambda rng: {
        "value": rng.integers(0, 2**32, (32, count), dtype=np.uint32),
        "row": rng.permutation(32).astype(np.uint32),
    }


def loaded(count, transposed):
    def want(inputs):
        rows = inputs["image"][inputs["row"][: 8 * count]]
        registers = matrix_registers(rows.reshape(count, 8, 8), transposed=transposed)
        return registers[:, 0] if count == 1 else registers

    return want


def stored(count, transposed):
    def want(inputs):
        image = np.zeros((32, 8), np.uint16)
        for i in range(count):
            for lane in range(32):
                for half in range(2):
                    place = (lane // 4, lane % 4 * 2 + half)
                    row, column = place[::-1] if transposed else place
                    bits = inputs["value"][lane, i] >> np.uint32(16 * half) & np.uint32(0xFFFF)
                    image[inputs["row"][8 * i + row], column] = bits
        return image.view(np.uint32)

    return want


def mma_cases():
    for dtype in ("f16", "bf16"):
        op = getattr(ptx, f"mma_m16n8k16_{dtype}")
        yield Case(
            op.name,
            (op,),
            mma_case(op),
            mma_inputs(dtype),
            mma_want(dtype),
            mma_bound(dtype),
            num_blocks=NUM_FAMILIES,
        )


CASES = (*mma_cases(), *matrix_cases())
