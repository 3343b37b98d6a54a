"""The device programs of on_chip.py, which says what they measure."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.ceilings.on_chip import (
    ACCESSES,
    CHAINS,
    INCREMENT,
    LUT,
    PERIOD,
    TILE_BYTES,
    UNROLL,
)
from ferrum_numba.ptx.arithmetic import fma_f32, lop3
from ferrum_numba.ptx.memory import (
    ld_global_f32,
    ld_global_nc_u32,
    ld_global_nc_v4,
    ld_shared_v4,
    st_global_f32,
    st_global_u32,
    st_shared_v4,
)
from ferrum_numba.ptx.special import smem_base

# accesses that are under way at once
IN_FLIGHT = 8
# bytes that a warp reads at once, and before it comes back to where it was
STRIDE = 512
XOR3 = 0x96


def build_shared(config):
    num_threads = config.num_threads

    def shared_read(data, out, warps, passes):
        tid = uint32(cuda.threadIdx.x)
        lane_id = uint32(tid & 31)
        smem = smem_base()

        # prologue: data -> smem
        offset = uint32(tid * 16)
        while offset < TILE_BYTES:
            st_shared_v4(uint32(smem + offset), ld_global_nc_v4(data + uint64(offset)))
            offset = uint32(offset + uint32(num_threads * 16))
        cuda.syncthreads()

        # main loop: IN_FLIGHT accesses a round, then on to the next part of the tile
        lane_smem = uint32(smem + uint32(lane_id * 16))
        total = uint32(0)
        left = uint32(passes * uint32(ACCESSES // IN_FLIGHT))
        part = uint32(0)
        while left > 0:
            here = uint32(lane_smem + part)
            for i in range(IN_FLIGHT):
                word = ld_shared_v4(uint32(here + uint32(i * STRIDE)))
                total = uint32(uint32(total + word[0]) + word[1])
                total = uint32(uint32(total + word[2]) + word[3])
            part = uint32(uint32(part + uint32(IN_FLIGHT * STRIDE)) & (TILE_BYTES - 1))
            left = uint32(left - 1)

        warp = uint32(
            uint32(uint32(cuda.blockIdx.x) * uint32(num_threads // 32)) + uint32(tid >> 5)
        )
        if warp < warps:
            st_global_u32(out + uint64(warp) * uint64(128) + uint64(lane_id) * uint64(4), total)

    return shared_read


def build_fma(config):
    num_threads = config.num_threads

    def fp32_fma(x, y, out, threads, steps, factor):
        thread = uint32(uint32(cuda.blockIdx.x) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        at = uint64(thread & (PERIOD - 1)) * uint64(4)
        start, step = ld_global_f32(x + at), ld_global_f32(y + at)
        one = float32(factor)
        sums = cuda.local.array(CHAINS, float32)
        for j in range(CHAINS):
            sums[j] = start
        left = steps
        while left > 0:
            for _ in range(UNROLL):
                for j in range(CHAINS):
                    sums[j] = fma_f32(sums[j], one, step)
            left = uint32(left - UNROLL)
        if thread < threads:
            total = sums[0]
            for j in range(1, CHAINS):
                total = float32(total + sums[j])
            st_global_f32(out + uint64(thread) * uint64(4), total)

    return fp32_fma


def build_lop3(config):
    num_threads = config.num_threads

    def lop3_rounds(seed, out, threads, steps):
        thread = uint32(uint32(cuda.blockIdx.x) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        start = ld_global_nc_u32(seed + uint64(thread & (PERIOD - 1)) * uint64(4))
        words = cuda.local.array(CHAINS, uint32)
        for j in range(CHAINS):
            words[j] = uint32(start + uint32(INCREMENT * j & 0xFFFFFFFF))
        left = steps
        while left > 0:
            for _ in range(UNROLL):
                for j in range(CHAINS):
                    words[j] = lop3(words[j], words[(j + 1) % CHAINS], words[(j + 3) % CHAINS], LUT)
            left = uint32(left - UNROLL)
        if thread < threads:
            total = words[0]
            for j in range(1, CHAINS - 1, 2):
                total = lop3(total, words[j], words[j + 1], XOR3)
            st_global_u32(out + uint64(thread) * uint64(4), uint32(total ^ words[CHAINS - 1]))

    return lop3_rounds
