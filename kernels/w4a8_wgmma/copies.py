"""The warp of w4a8_wgmma that copies scales: those of the weight, and those of x8."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.prefill.copies import make_copy_scale_rows
from ferrum_numba.kernels.shared.packed_x8 import M_MULTIPLE
from ferrum_numba.ptx.asynchronous import cp_async_bulk, mbarrier_arrive_expect_tx, mbarrier_wait
from ferrum_numba.ptx.memory import st_shared_u32
from ferrum_numba.ptx.special import smem_base, thread_id
from ferrum_numba.ptx.sync import fence_proxy_async_shared, griddepcontrol_wait


def make_clear_tokens(config):
    """Return what writes zeros for the scales of rows that are not there, before any copy."""
    tile_m, num_stages, num_threads = config.tile_m, config.num_stages, config.num_threads
    stage_bytes, tokens_offset = config.stage_bytes, config.tokens_offset

    @cuda.jit(device=True, forceinline=True)
    def clear_tokens():
        for stage in range(num_stages):
            token = thread_id()
            while token < tile_m:
                at = uint32(smem_base() + (stage * stage_bytes + tokens_offset) + token * 4)
                st_shared_u32(at, uint32(0))
                token = uint32(token + num_threads)
        # bulk copies write there through another proxy
        fence_proxy_async_shared()

    return clear_tokens


def make_copy_scales(config, schedule):
    """Return what fills the ring's stages with scales and zero points, segment after segment."""
    tile_m, tile_k, group_size = config.tile_m, config.tile_k, config.group_size
    stage_bytes, bars_offset = config.stage_bytes, config.bars_offset
    of_groups, of_tokens, tokens_offset = group_size > 0, config.x_group > 0, config.tokens_offset
    num_tiles, corner = schedule.num_tiles, schedule.corner
    own_column, first_segment = schedule.own_column, schedule.first_segment
    next_segment, advance = schedule.next_segment, schedule.advance
    copy_scale_rows, copied_bytes = make_copy_scale_rows(config)
    copied_bytes, group_k = copied_bytes if of_groups else 0, max(group_size, 1)

    @cuda.jit(device=True, forceinline=True)
    def copy_scales(sx, scales, zero_points, m, n, k, stripe_steps, striped_tiles):
        """Copy the scales of every stage of this block, by one lane."""
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        k_steps, tiles = uint32(k // uint32(tile_k)), num_tiles(m, n)
        padded_m = uint32(uint32(m + (M_MULTIPLE - 1)) & uint32(0xFFFFFFFF - (M_MULTIPLE - 1)))
        tile, k_step, k_stop, left = first_segment(k_steps, stripe_steps, striped_tiles)
        stage, phase = uint32(0), uint32(1)
        if of_tokens:
            # the launch before may have written them
            griddepcontrol_wait()
        while tile < tiles:
            row, column = corner(tile, m, n)
            column = own_column(column, n)
            rows = uint32(padded_m - row)
            if rows > tile_m:
                rows = uint32(tile_m)
            size_bytes = uint32(copied_bytes)
            if of_tokens:
                size_bytes = uint32(size_bytes + rows * 4)
            while k_step < k_stop:
                bar = uint32(bars + stage * 16)
                mbarrier_wait(bar + 8, phase)
                mbarrier_arrive_expect_tx(bar, size_bytes)
                to = uint32(smem + stage * stage_bytes)
                if of_groups:
                    group = uint32(uint32(k_step * tile_k) // uint32(group_k))
                    copy_scale_rows(to, scales, zero_points, group, n, column, bar)
                if of_tokens:
                    place = sx + ((uint64(k_step) * padded_m + uint64(row)) << 2)
                    cp_async_bulk(uint32(to + tokens_offset), place, uint32(rows * 4), bar)
                stage, phase = advance(stage, phase)
                k_step = uint32(k_step + 1)
            tile, k_step, k_stop, left = next_segment(tile, left, k_steps, striped_tiles)

    return copy_scales
