"""The device program of bulk.py, which says what it measures."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.ceilings.memory import LANE_ACCESSES, ROW_BYTES, WARP_BYTES
from ferrum_numba.ptx.asynchronous import (
    cp_async_bulk,
    fence_mbarrier_init,
    mbarrier_arrive_expect_tx,
    mbarrier_init,
    mbarrier_wait,
)
from ferrum_numba.ptx.memory import ld_shared_v4, st_global_u32
from ferrum_numba.ptx.shuffle import shfl_xor
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import bar_warp_sync


def build(config):
    num_warps, num_stages = config.num_warps, config.num_stages
    # a power of two, so that a stage's turns are counted by a shift
    shift = num_stages.bit_length() - 1
    bars_offset = num_warps * num_stages * ROW_BYTES

    def read_bulk(data, out, num_rows):
        tid = uint32(cuda.threadIdx.x)
        lane_id, warp_id = uint32(tid & 31), uint32(tid >> 5)
        num_tasks = uint32(uint32(cuda.gridDim.x) * uint32(num_warps))
        first = uint32(uint32(cuda.blockIdx.x) * uint32(num_warps) + warp_id)
        smem = smem_base()
        ring = uint32(smem + uint32(warp_id * uint32(num_stages * ROW_BYTES)))
        bars = uint32(uint32(smem + bars_offset) + uint32(warp_id * uint32(num_stages * 8)))

        # prologue: fill the ring
        if lane_id == 0:
            for i in range(num_stages):
                mbarrier_init(uint32(bars + uint32(8 * i)), uint32(1))
            fence_mbarrier_init()
            for i in range(num_stages):
                row = uint32(first + uint32(num_tasks * i))
                if row < num_rows:
                    bar = uint32(bars + uint32(8 * i))
                    mbarrier_arrive_expect_tx(bar, uint32(ROW_BYTES))
                    at = data + uint64(row) * uint64(ROW_BYTES)
                    place = uint32(ring + uint32(i * ROW_BYTES))
                    cp_async_bulk(place, at, uint32(ROW_BYTES), bar)
        bar_warp_sync()

        # main loop: sum a row, then let the next one take its place
        turn = uint32(0)
        task = first
        while task < num_rows:
            i = uint32(turn & (num_stages - 1))
            bar = uint32(bars + uint32(i * 8))
            place = uint32(ring + uint32(i * ROW_BYTES))
            mbarrier_wait(bar, uint32(uint32(turn >> shift) & 1))
            total = uint32(0)
            lane_place = uint32(place + uint32(lane_id * 16))
            for j in range(LANE_ACCESSES):
                word = ld_shared_v4(uint32(lane_place + uint32(j * WARP_BYTES)))
                total = uint32(total + uint32(word[0] + word[1]))
                total = uint32(total + uint32(word[2] + word[3]))
            # all lanes have read it
            bar_warp_sync()
            row = uint32(task + uint32(num_tasks * num_stages))
            if lane_id == 0 and row < num_rows:
                mbarrier_arrive_expect_tx(bar, uint32(ROW_BYTES))
                at = data + uint64(row) * uint64(ROW_BYTES)
                cp_async_bulk(place, at, uint32(ROW_BYTES), bar)
            for j in range(5):
                total = uint32(total + shfl_xor(total, uint32(16 >> j)))
            if lane_id == 0:
                st_global_u32(out + uint64(task) * uint64(4), total)
            turn = uint32(turn + 1)
            task = uint32(task + num_tasks)

    return read_bulk
