"""The device programs of tensor.py, which says what they measure."""

from numba import cuda
from numba.cuda.types import float32, int32, uint32, uint64

from ferrum_numba.kernels.ceilings.elements import STEP_BYTES
from ferrum_numba.kernels.ceilings.steps import store_accumulator
from ferrum_numba.kernels.ceilings.tensor import A_TILE_BYTES, GROUP, OUT_TILE_BYTES, TILE_N
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.memory import ld_global_nc_u32, st_global_f32, st_global_u32, st_shared_u32
from ferrum_numba.ptx.mma import MMA
from ferrum_numba.ptx.mma8 import MMA8, splat_s32, wgmma8_rs, wgmma_wait_s32
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import fence_proxy_async
from ferrum_numba.ptx.wgmma import (
    smem_descriptor,
    wgmma_commit,
    wgmma_fence,
    wgmma_rs,
    wgmma_wait_acc,
)

# of four 8-bit floats in a register
SIGNS = 0x80808080


@cuda.jit(device=True, forceinline=True)
def _fragment_a(a, tile, lane_id, warp_row):
    """Return the A fragment of a warp's 16 rows of a tile."""
    row = uint32(warp_row + uint32(lane_id >> 2))
    at = a + uint64(tile) * uint64(A_TILE_BYTES) + uint64(row) * uint64(STEP_BYTES)
    at = at + uint64(lane_id & uint32(3)) * uint64(4)
    below = uint64(8 * STEP_BYTES)
    return (
        ld_global_nc_u32(at),
        ld_global_nc_u32(at + below),
        ld_global_nc_u32(at + uint64(16)),
        ld_global_nc_u32(at + below + uint64(16)),
    )


@cuda.jit(device=True, forceinline=True)
def _negated(fragment):
    """Return a fragment of 8-bit floats with the other signs."""
    return (
        uint32(fragment[0] ^ SIGNS),
        uint32(fragment[1] ^ SIGNS),
        uint32(fragment[2] ^ SIGNS),
        uint32(fragment[3] ^ SIGNS),
    )


@cuda.jit(device=True, forceinline=True)
def _store_f32(at, value):
    st_global_f32(at, value)


@cuda.jit(device=True, forceinline=True)
def _store_s32(at, value):
    st_global_u32(at, uint32(value))


def store_pair(element):
    """Make what stores two neighbours of a tile of the output."""
    store = _store_s32 if element.is_integer else _store_f32

    @cuda.jit(device=True, forceinline=True)
    def store_two(out, tile, row, column, first, second):
        at = out + uint64(tile) * uint64(OUT_TILE_BYTES)
        at = at + uint64(row) * uint64(TILE_N * 4) + uint64(column) * uint64(4)
        store(at, first)
        store(at + uint64(4), second)

    return store_two


def build_mma(chains, element):
    acc_shape, b_shape = (chains, 4), (chains, 2)
    mma = (MMA8 if element.size_bytes == 1 else MMA)[element.ptx]
    number = int32 if element.is_integer else float32
    alternate, store = element.alternate, store_pair(element)

    def mma_sync(a, b, out, k_steps):
        tile = uint32(cuda.blockIdx.x)
        tid = uint32(cuda.threadIdx.x)
        lane_id = uint32(tid & 31)
        warp_id = uint32(tid >> 5)
        warp_row = uint32(uint32(warp_id & 3) * 16)
        warp_column = uint32(uint32(warp_id >> 2) * uint32(8 * chains))
        g = uint32(lane_id >> 2)
        q = uint32(lane_id & 3)

        # prologue: every operand into registers
        frag_a = _fragment_a(a, tile, lane_id, warp_row)
        frag_b = cuda.local.array(b_shape, uint32)
        acc = cuda.local.array(acc_shape, number)
        for j in range(chains):
            n = uint32(uint32(warp_column + g) + uint32(8 * j))
            at = b + uint64(n) * uint64(STEP_BYTES) + uint64(q) * uint64(4)
            frag_b[j, 0] = ld_global_nc_u32(at)
            frag_b[j, 1] = ld_global_nc_u32(at + uint64(16))
            for i in range(4):
                acc[j, i] = number(0)

        # main loop: GROUP mma a chain
        k = uint32(0)
        while k < k_steps:
            for _ in range(GROUP):
                for j in range(chains):
                    c = (acc[j, 0], acc[j, 1], acc[j, 2], acc[j, 3])
                    d = mma(frag_a, (frag_b[j, 0], frag_b[j, 1]), c)
                    acc[j, 0] = d[0]
                    acc[j, 1] = d[1]
                    acc[j, 2] = d[2]
                    acc[j, 3] = d[3]
            if alternate:
                frag_a = _negated(frag_a)
            k = uint32(k + GROUP)

        # epilogue: registers -> gmem
        row = uint32(warp_row + g)
        for j in range(chains):
            column = uint32(uint32(warp_column + uint32(8 * j)) + uint32(q * 2))
            store(out, tile, row, column, acc[j, 0], acc[j, 1])
            store(out, tile, uint32(row + 8), column, acc[j, 2], acc[j, 3])

    return mma_sync


def warpgroup_of(element, make, make8):
    """Return what adds a product, what subtracts one, what waits, zeros, and what stores."""
    n, row_bytes = TILE_N, TILE_N * 4
    if element.size_bytes == 2:
        product = make(n, element.ptx)
        negated = product
    else:
        product = make8(n, element.ptx)
        negated = make8(n, element.ptx, negate=True) if element.alternate else product
    if element.is_integer:
        return (
            product,
            negated,
            wgmma_wait_s32(n),
            splat_s32(n // 2),
            store_accumulator(n, row_bytes, True),
        )
    return product, negated, wgmma_wait_acc(n), splat_f32(n // 2), store_accumulator(n, row_bytes)


def build_wgmma(element):
    # core matrices of 8 rows x 16 bytes, the two of a row one after the other
    core_bytes = 128
    describe_b = smem_descriptor(0, 2 * core_bytes, core_bytes)
    product, negated, wait, zeros, store = warpgroup_of(element, wgmma_rs, wgmma8_rs)
    number = int32 if element.is_integer else float32
    b_words = TILE_N * STEP_BYTES // 4
    alternate = element.alternate

    def wgmma(a, b, out, k_steps):
        tile = uint32(cuda.blockIdx.x)
        tid = uint32(cuda.threadIdx.x)
        lane_id = uint32(tid & 31)
        warp_row = uint32(uint32(tid >> 5) * 16)
        smem = smem_base()

        # prologue: a -> registers, b -> smem
        frag_a = _fragment_a(a, tile, lane_id, warp_row)
        word = tid
        while word < b_words:
            n = uint32(word >> 3)
            byte = uint32(uint32(word & 7) * 4)
            at = uint32(smem + uint32(uint32(n >> 3) * uint32(2 * core_bytes)))
            at = uint32(at + uint32(uint32(byte >> 4) * uint32(core_bytes)))
            at = uint32(at + uint32(uint32(n & 7) * 16))
            at = uint32(at + uint32(byte & 15))
            st_shared_u32(at, ld_global_nc_u32(b + uint64(word) * uint64(4)))
            word = uint32(word + 128)
        # wgmma reads shared memory through another proxy than stores write it
        fence_proxy_async()
        cuda.syncthreads()

        # main loop: a group of products a wait
        desc_b = describe_b(smem)
        one = uint32(1)
        acc = zeros(number(0))
        k = uint32(0)
        while k < k_steps:
            wgmma_fence()
            acc = product(acc, frag_a, desc_b, one)
            acc = product(acc, frag_a, desc_b, one)
            acc = product(acc, frag_a, desc_b, one)
            acc = product(acc, frag_a, desc_b, one)
            wgmma_commit()
            acc = wait(acc, 0)
            k = uint32(k + GROUP)
            if alternate and k < k_steps:
                wgmma_fence()
                acc = negated(acc, frag_a, desc_b, one)
                acc = negated(acc, frag_a, desc_b, one)
                acc = negated(acc, frag_a, desc_b, one)
                acc = negated(acc, frag_a, desc_b, one)
                wgmma_commit()
                acc = wait(acc, 0)
                k = uint32(k + GROUP)

        # epilogue: registers -> gmem
        row = uint32(warp_row + uint32(lane_id >> 2))
        at = out + uint64(tile) * uint64(OUT_TILE_BYTES) + uint64(row) * uint64(TILE_N * 4)
        store(at + uint64(lane_id & uint32(3)) * uint64(8), acc)

    return wgmma
