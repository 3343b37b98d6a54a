"""The device program of w4a8_wgmma: kernel.py says what is computed and how it is tiled."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.prefill.copies import (
    make_clear_rows,
    make_copy_weights,
    make_copy_x,
)
from ferrum_numba.kernels.prefill.products import make_release
from ferrum_numba.kernels.prefill.result import (
    make_store_result,
    make_sum_of_blocks,
    make_sum_of_cluster,
)
from ferrum_numba.kernels.prefill.schedule import make_schedule
from ferrum_numba.kernels.prefill.tile import (
    CONSUMER_REGISTERS,
    CONSUMER_WARPS,
    PRODUCER_REGISTERS,
)
from ferrum_numba.kernels.w4a8_wgmma.copies import make_clear_tokens, make_copy_scales
from ferrum_numba.kernels.w4a8_wgmma.products import (
    make_products,
    make_token_scales,
    make_write_tables,
)
from ferrum_numba.ptx.asynchronous import fence_mbarrier_init, mbarrier_init, mbarrier_wait
from ferrum_numba.ptx.memory import ld_global_nc_u32
from ferrum_numba.ptx.special import opaque_u32, smem_base, thread_id
from ferrum_numba.ptx.sync import (
    bar_sync,
    bar_warp_sync,
    cluster_arrive,
    cluster_wait,
    griddepcontrol_wait,
    setmaxnreg_dec,
    setmaxnreg_inc,
)


def build(config):
    """Return the kernel of a config: a function of `W4A8Wgmma`'s parameters, in their order."""
    tile_k, strips, num_stages = config.tile_k, config.strips, config.num_stages
    per_channel, has_zero_points = config.group_size < 0, config.has_zero_points
    w_offset, s_offset, z_offset = config.w_offset, config.s_offset, config.z_offset
    stage_bytes, bars_offset = config.stage_bytes, config.bars_offset
    places = 4 // config.strips
    schedule = make_schedule(config)
    num_tiles, corner = schedule.num_tiles, schedule.corner
    own_column, first_segment = schedule.own_column, schedule.first_segment
    next_segment, advance = schedule.next_segment, schedule.advance
    copy_x, copy_weights = make_copy_x(config, schedule), make_copy_weights(config, schedule)
    clear_rows, write_tables = make_clear_rows(config), make_write_tables(config)
    copies_scales, copy_scales = config.copies_scales, make_copy_scales(config, schedule)
    copying_warps, by_row = 4 if copies_scales else 3, config.x_group < 0
    clear_tokens = make_clear_tokens(config)
    release = make_release(config)
    start, multiply_stage, finish = make_products(config)
    needs_tables = has_zero_points and config.x_dtype == "fp8"
    fetch_scales, scale_by_token = make_token_scales(config)
    pair, releases = config.pair, config.unit_blocks * CONSUMER_WARPS
    sum_of_cluster, clustered = make_sum_of_cluster(config), config.cluster > 1
    sum_of_blocks = make_sum_of_blocks(config, schedule, config.tile_m)
    store_result = make_store_result(config, schedule)

    def w4a8_wgmma(
        x8, sx, packed, scales, zero_points, bias, out, partials, counters, maps,
        m, n, k, x_columns, out_columns, stripe_steps, striped_tiles, has_bias,
    ):  # fmt: skip
        # index: which role, which strip of columns, which segment
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        if thread_id() == 0:
            for i in range(num_stages):
                # one arrival of each warp that copies; one of each that multiplies, in a pair
                mbarrier_init(bars + i * 16, uint32(copying_warps))
                mbarrier_init(bars + (i * 16 + 8), uint32(releases))
            fence_mbarrier_init()
        if needs_tables:
            write_tables()
        if not by_row:
            clear_tokens()
        clear_rows(m)
        cuda.syncthreads()
        if clustered or pair:
            cluster_arrive()
        if pair:
            cluster_wait()
        # read again wherever it is asked for: kept, it would cost the main loop a register
        if thread_id() >= uint32(32 * CONSUMER_WARPS):
            setmaxnreg_dec(PRODUCER_REGISTERS)
            warp_id = uint32(thread_id() >> 5)
            if warp_id == CONSUMER_WARPS:
                copy_x(x8, maps, m, n, k, x_columns, stripe_steps, striped_tiles)
            elif uint32(thread_id() & 31) == 0:
                role = uint32(warp_id - (CONSUMER_WARPS + 1))
                if role < 2:
                    copy_weights(packed, m, n, k, stripe_steps, striped_tiles, role)
                elif copies_scales:
                    copy_scales(sx, scales, zero_points, m, n, k, stripe_steps, striped_tiles)
            if clustered:
                # the cluster's barrier counts every thread, twice
                bar_warp_sync()
                cluster_wait()
                cluster_arrive()
                cluster_wait()
        else:
            setmaxnreg_inc(CONSUMER_REGISTERS)
            griddepcontrol_wait()
            k_steps = uint32(k // uint32(tile_k))
            lane_id, warp_id = uint32(thread_id() & 31), uint32(thread_id() >> 5)
            # a warp's strips lie side by side in one Marlin tile of 64 columns; which, depends on
            # the lane too, so that its words lie in different banks
            tile64 = uint32(uint32(warp_id * strips) >> 2)
            strip = uint32((uint32(warp_id + (lane_id >> 3)) % uint32(places)) * strips)
            w_place = uint32(w_offset + tile64 * 512 + lane_id * 16 + strip * 4)
            s_place = uint32(s_offset + tile64 * 128 + (lane_id >> 2) * 16 + strip * 4)
            z_place = uint32(tile64 * 32 + (lane_id >> 2) * 4)
            t_place = uint32(uint32(lane_id & 3) * 8)
            places_of = (w_place, s_place, uint32(z_place + z_offset), strip, t_place)
            stage, phase = uint32(0), uint32(0)
            tile, k_first, k_stop, left = first_segment(k_steps, stripe_steps, striped_tiles)
            # what the compiler kept over the main loop would be registers that sums need
            while tile < num_tiles(opaque_u32(m), opaque_u32(n)):
                row, column = corner(tile, opaque_u32(m), opaque_u32(n))
                if by_row:
                    fetch_scales(sx, row, m)
                zero = uint32(0)
                if has_zero_points and per_channel:
                    column = own_column(column, n)
                    word = uint32((column >> 1) + z_place)
                    zero = ld_global_nc_u32(zero_points + uint64(word))
                k_step = k_first
                sums = start()

                # main loop: one stage a turn, whose products have ended when it is given back
                while k_step < k_stop:
                    bar = uint32(bars + stage * 16)
                    mbarrier_wait(bar, phase)
                    at = uint32(smem + stage * stage_bytes)
                    sums = multiply_stage(sums, at, places_of, zero, bar, phase)
                    bar_warp_sync()
                    release(bar, True)
                    stage, phase = advance(stage, phase)
                    k_step = uint32(k_step + 1)

                if by_row:
                    sums = scale_by_token(sums, t_place)
                acc, k_steps = finish(sums), uint32(opaque_u32(k) // uint32(tile_k))
                if clustered:
                    acc = sum_of_cluster(acc)
                elif k_first > 0 or k_stop < k_steps:
                    acc = sum_of_blocks(
                        acc, partials, counters, tile, k_steps, opaque_u32(stripe_steps), k_first
                    )
                if clustered or k_first == 0:
                    sizes = (opaque_u32(m), opaque_u32(n), opaque_u32(out_columns))
                    store_result(acc, out, scales, bias, tile, sizes, has_bias)
                tile, k_first, k_stop, left = next_segment(
                    tile, left, k_steps, opaque_u32(striped_tiles)
                )
                if by_row:
                    # the scales of the next tile's rows are written where this one's were read
                    bar_sync(uint32(1 + (thread_id() >> 7)), uint32(128))
        if pair:
            # nobody leaves while the other may still copy or arrive here
            bar_warp_sync()
            cluster_arrive()
            cluster_wait()

    return w4a8_wgmma
