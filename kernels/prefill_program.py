"""The device code of kernels/prefill.py, which says what is computed and how it is tiled."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.prefill_copies import make_produce
from ferrum_numba.kernels.prefill_products import (
    make_accumulators,
    make_multiply_stage,
    make_turns,
    release,
)
from ferrum_numba.kernels.prefill_result import make_store_result, make_sum_of_blocks
from ferrum_numba.kernels.prefill_schedule import CONSUMER_WARPS, PRODUCER_WARPS, make_schedule
from ferrum_numba.ptx.asynchronous import fence_mbarrier_init, mbarrier_init, mbarrier_wait
from ferrum_numba.ptx.memory import ld_global_nc_u32
from ferrum_numba.ptx.special import opaque_u32, smem_base
from ferrum_numba.ptx.sync import fence_proxy_async_shared, setmaxnreg_dec, setmaxnreg_inc

# a warp's registers a thread: as many for the accumulators as the producers leave
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 232, 40


def build(config):
    """Return the kernel of a config: a function of the parameters of `Prefill`, in their order."""
    tile_k, strips, num_stages = config.tile_k, config.strips, config.num_stages
    per_channel, has_zeros = config.group_size < 0, config.has_zeros
    w_offset, s_offset, z_offset = config.w_offset, config.s_offset, config.z_offset
    stage_bytes, bars_offset = config.stage_bytes, config.bars_offset
    num_tiles, corner, clamp, first_segment, next_segment, advance = make_schedule(config)
    produce, multiply_stage = make_produce(config), make_multiply_stage(config)
    start, finish = make_accumulators(config)
    take_turn, pass_turn = make_turns(config)
    sum_of_blocks, store_result = make_sum_of_blocks(config), make_store_result(config)

    def prefill(
        x, packed, scales, zero_points, bias, out, partials, counters,
        m, n, k, x_columns, out_columns, stripe, striped, has_bias,
    ):  # fmt: skip
        # index: which role, which strip of columns, which segment
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        tid = uint32(cuda.threadIdx.x)
        lane_id, warp_id = uint32(tid & 31), uint32(tid >> 5)
        block = uint32(uint32(cuda.gridDim.x) - uint32(cuda.blockIdx.x) - 1)
        if tid == uint32(0):
            for i in range(num_stages):
                mbarrier_init(bars + i * 16, uint32(32 * PRODUCER_WARPS))
                mbarrier_init(bars + (i * 16 + 8), uint32(CONSUMER_WARPS))
            fence_mbarrier_init()
        cuda.syncthreads()
        if warp_id >= uint32(CONSUMER_WARPS):
            setmaxnreg_dec(PRODUCER_REGISTERS)
            produce((x, packed, scales, zero_points), m, n, k, x_columns, stripe, striped)
        else:
            setmaxnreg_inc(CONSUMER_REGISTERS)
            k_tiles, tiles = uint32(k // uint32(tile_k)), num_tiles(m, n)
            # a warp's strips lie side by side in one Marlin tile of 64 columns
            tile64 = uint32(uint32(warp_id * strips) >> 2)
            strip = uint32(uint32(warp_id * strips) & 3)
            w_place = uint32(w_offset + tile64 * 512 + lane_id * 16 + strip * 4)
            s_place = uint32(s_offset + tile64 * 128 + (lane_id >> 2) * 16 + strip * 4)
            z_place = uint32(tile64 * 32 + (lane_id >> 2) * 4)
            places = (w_place, s_place, uint32(z_place + z_offset), strip)
            stage, phase, before = uint32(0), uint32(0), bars
            if warp_id >= uint32(4):
                pass_turn()
            tile, k_first, k_last, left = first_segment(block, k_tiles, stripe, striped)
            while tile < tiles:
                zero = uint32(0)
                if has_zeros and per_channel:
                    _, column = corner(tile, m, n)
                    word = uint32((clamp(column, n) >> 1) + z_place)
                    zero = ld_global_nc_u32(zero_points + uint64(word))
                acc = start()
                k_tile = k_first

                # main loop: one stage a turn, the products of one step in flight
                while k_tile < k_last:
                    at = uint32(smem + stage * stage_bytes)
                    bar = uint32(bars + stage * 16)
                    mbarrier_wait(bar, phase)
                    # wgmma reads shared memory through another proxy than cp.async writes it
                    fence_proxy_async_shared()
                    acc, zero = multiply_stage(acc, at, places, zero, k_tile, k_first, before)
                    before = bar
                    stage, phase = advance(stage, phase)
                    k_tile = uint32(k_tile + 1)
                acc = finish(acc)
                release(before)

                if k_first > uint32(0) or k_last < k_tiles:
                    acc = sum_of_blocks(
                        acc, partials, counters, tile, k_tiles, opaque_u32(stripe), block, k_first
                    )
                # of what the compiler computed before the loop it would keep no accumulators
                if k_first == uint32(0):
                    sizes = (opaque_u32(m), opaque_u32(n), opaque_u32(out_columns))
                    store_result(acc, out, scales, bias, tile, sizes, has_bias)
                tile, k_first, k_last, left = next_segment(
                    tile, left, block, opaque_u32(k_tiles), opaque_u32(striped)
                )
            if warp_id < uint32(4):
                take_turn()

    return prefill
