"""The device programs of fed.py, which says what they measure."""

from numba import cuda
from numba.cuda.types import float32, int32, uint32, uint64

from ferrum_numba.kernels.ceilings.fed import A_BYTES, B_BYTES, PANEL_BYTES
from ferrum_numba.kernels.ceilings.tensor import GROUP, OUT_TILE_BYTES, TILE_N
from ferrum_numba.kernels.ceilings.tensor_program import SIGNS, store_pair, warpgroup_of
from ferrum_numba.ptx.memory import ld_global_nc_v4, st_shared_v4
from ferrum_numba.ptx.mma import MMA, ldmatrix_x4
from ferrum_numba.ptx.mma8 import MMA8, wgmma8_ss
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import fence_proxy_async
from ferrum_numba.ptx.wgmma import smem_descriptor, wgmma_commit, wgmma_fence, wgmma_ss

NUM_THREADS = 128
# rows of a group that the swizzle goes through
GROUP_BYTES = 8 * PANEL_BYTES
# a warp of mma.sync has 64 x 64: so many fragments of A, and pairs of fragments of B
BLOCKS_M, PAIRS_N = 4, 4


@cuda.jit(device=True, forceinline=True)
def _fetch(smem, gmem, size_bytes):
    """Copy a panel to shared memory, each chunk of 16 bytes where the swizzle has it."""
    chunk = uint32(cuda.threadIdx.x)
    while uint32(chunk * 16) < size_bytes:
        row = uint32(chunk >> 3)
        place = uint32(uint32(chunk & 7) ^ uint32(row & 7))
        at = uint32(smem + uint32(uint32(row * PANEL_BYTES) + uint32(place * 16)))
        st_shared_v4(at, ld_global_nc_v4(gmem + uint64(chunk) * uint64(16)))
        chunk = uint32(chunk + NUM_THREADS)


def build_wgmma_fed(element):
    describe = smem_descriptor(PANEL_BYTES, GROUP_BYTES)
    product, negated, wait, zeros, store = warpgroup_of(element, wgmma_ss, wgmma8_ss)
    number = int32 if element.is_integer else float32
    alternate = element.alternate

    def wgmma_fed(a, b, out, k_steps):
        tile = uint32(cuda.blockIdx.x)
        tid = uint32(cuda.threadIdx.x)
        lane_id = uint32(tid & 31)
        smem = smem_base()

        # prologue: a, b -> smem
        smem_b = uint32(smem + A_BYTES)
        _fetch(smem, a + uint64(tile) * uint64(A_BYTES), uint32(A_BYTES))
        _fetch(smem_b, b, uint32(B_BYTES))
        fence_proxy_async()
        cuda.syncthreads()

        # main loop: the steps of a panel a wait; 32 bytes are 2 in a descriptor
        desc_a, desc_b = describe(smem), describe(smem_b)
        one = uint32(1)
        acc = zeros(number(0))
        k = uint32(0)
        while k < k_steps:
            wgmma_fence()
            acc = product(acc, desc_a, desc_b, one)
            acc = product(acc, desc_a + uint64(2), desc_b + uint64(2), one)
            acc = product(acc, desc_a + uint64(4), desc_b + uint64(4), one)
            acc = product(acc, desc_a + uint64(6), desc_b + uint64(6), one)
            wgmma_commit()
            acc = wait(acc, 0)
            k = uint32(k + GROUP)
            if alternate and k < k_steps:
                wgmma_fence()
                acc = negated(acc, desc_a, desc_b, one)
                acc = negated(acc, desc_a + uint64(2), desc_b + uint64(2), one)
                acc = negated(acc, desc_a + uint64(4), desc_b + uint64(4), one)
                acc = negated(acc, desc_a + uint64(6), desc_b + uint64(6), one)
                wgmma_commit()
                acc = wait(acc, 0)
                k = uint32(k + GROUP)

        # epilogue: registers -> gmem
        row = uint32(uint32(uint32(tid >> 5) * 16) + uint32(lane_id >> 2))
        at = out + uint64(tile) * uint64(OUT_TILE_BYTES) + uint64(row) * uint64(TILE_N * 4)
        store(at + uint64(lane_id & uint32(3)) * uint64(8), acc)

    return wgmma_fed


def build_mma_fed(element):
    mma = (MMA8 if element.size_bytes == 1 else MMA)[element.ptx]
    number = int32 if element.is_integer else float32
    alternate, store = element.alternate, store_pair(element)
    acc_shape, b_shape = (BLOCKS_M, 2 * PAIRS_N, 4), (2 * PAIRS_N, 2)

    def mma_fed(a, b, out, k_steps):
        tile = uint32(cuda.blockIdx.x)
        tid = uint32(cuda.threadIdx.x)
        lane_id = uint32(tid & 31)
        warp_column = uint32(uint32(tid >> 5) * 64)
        smem = smem_base()

        # prologue: a, b -> smem
        smem_b = uint32(smem + A_BYTES)
        _fetch(smem, a + uint64(tile) * uint64(A_BYTES), uint32(A_BYTES))
        _fetch(smem_b, b, uint32(B_BYTES))
        cuda.syncthreads()
        # the row of a fragment that this lane addresses, and which of a step's two chunks
        row_a, chunk_a = uint32(lane_id & 15), uint32(lane_id >> 4)
        row_b = uint32(uint32(lane_id & 7) + uint32(uint32(lane_id >> 4) * 8))
        chunk_b = uint32(uint32(lane_id >> 3) & 1)
        at_a = uint32(smem + uint32(row_a * PANEL_BYTES))
        at_b = uint32(smem_b + uint32(uint32(warp_column + row_b) * PANEL_BYTES))
        turn = uint32(lane_id & 7)

        frag_b = cuda.local.array(b_shape, uint32)
        acc = cuda.local.array(acc_shape, number)
        for i in range(BLOCKS_M):
            for j in range(2 * PAIRS_N):
                for e in range(4):
                    acc[i, j, e] = number(0)
        signs = uint32(0)

        # main loop: a step of the panel
        k = uint32(0)
        while k < k_steps:
            step = uint32(uint32(k & (GROUP - 1)) * 2)
            here_a = uint32(at_a + uint32(uint32(uint32(step + chunk_a) ^ turn) * 16))
            here_b = uint32(at_b + uint32(uint32(uint32(step + chunk_b) ^ turn) * 16))
            for j in range(PAIRS_N):
                word = ldmatrix_x4(uint32(here_b + uint32(16 * j * PANEL_BYTES)))
                frag_b[2 * j, 0] = word[0]
                frag_b[2 * j, 1] = word[1]
                frag_b[2 * j + 1, 0] = word[2]
                frag_b[2 * j + 1, 1] = word[3]
            for i in range(BLOCKS_M):
                frag = ldmatrix_x4(uint32(here_a + uint32(16 * i * PANEL_BYTES)))
                if alternate:
                    frag = (
                        uint32(frag[0] ^ signs),
                        uint32(frag[1] ^ signs),
                        uint32(frag[2] ^ signs),
                        uint32(frag[3] ^ signs),
                    )
                for j in range(2 * PAIRS_N):
                    c = (acc[i, j, 0], acc[i, j, 1], acc[i, j, 2], acc[i, j, 3])
                    d = mma(frag, (frag_b[j, 0], frag_b[j, 1]), c)
                    acc[i, j, 0] = d[0]
                    acc[i, j, 1] = d[1]
                    acc[i, j, 2] = d[2]
                    acc[i, j, 3] = d[3]
            k = uint32(k + 1)
            if alternate and uint32(k & (GROUP - 1)) == 0:
                signs = uint32(signs ^ SIGNS)

        # epilogue: registers -> gmem
        g, q = uint32(lane_id >> 2), uint32(lane_id & 3)
        for i in range(BLOCKS_M):
            row = uint32(g + uint32(16 * i))
            for j in range(2 * PAIRS_N):
                column = uint32(uint32(warp_column + uint32(8 * j)) + uint32(q * 2))
                store(out, tile, row, column, acc[i, j, 0], acc[i, j, 1])
                store(out, tile, uint32(row + 8), column, acc[i, j, 2], acc[i, j, 3])

    return mma_fed
