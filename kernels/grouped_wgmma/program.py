"""The device program of grouped_wgmma: kernel.py says what is computed and how it is tiled."""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.grouped_wgmma.copies import make_fill
from ferrum_numba.kernels.grouped_wgmma.order import make_order
from ferrum_numba.kernels.grouped_wgmma.schedule import make_deal
from ferrum_numba.kernels.grouped_wgmma.segment import make_segment
from ferrum_numba.kernels.prefill.schedule import make_schedule
from ferrum_numba.kernels.prefill.tile import (
    CONSUMER_WARPS,
)
from ferrum_numba.ptx.asynchronous import (
    fence_mbarrier_init,
    mbarrier_arrive,
    mbarrier_init,
    mbarrier_wait,
)
from ferrum_numba.ptx.memory import ld_global_nc_u32, ld_shared_u32
from ferrum_numba.ptx.special import opaque_u32, smem_base, thread_id
from ferrum_numba.ptx.sync import (
    bar_warp_sync,
    griddepcontrol_wait,
    setmaxnreg_dec,
    setmaxnreg_inc,
)


def build(config):
    """Return the kernel of a config: a function of the parameters of its program, in order."""
    tile_k, strips, num_stages = config.tile_k, config.strips, config.num_stages
    per_channel, has_zero_points = config.group_size < 0, config.has_zero_points
    w_offset, s_offset, z_offset = config.w_offset, config.s_offset, config.z_offset
    bars_offset = config.bars_offset
    slot_bars_offset, num_slots = config.slot_bars_offset, config.num_slots
    expert_offset, rows_offset = config.expert_offset, config.rows_offset
    more, fewer = config.registers
    copying, leaving = 32 * config.x_warps + config.word_warps, config.x_warps // config.panels
    places, column_zeros = 4 // config.strips, has_zero_points and per_channel
    short_m = config.short_m
    schedule = make_schedule(config)
    corner, own_column = schedule.corner, schedule.own_column
    first_segment, next_segment = schedule.first_segment, schedule.next_segment
    deal = make_deal(config, schedule)
    publish, dealt, slot_of = deal.publish, deal.dealt, deal.slot_of
    order_blocks, _ = make_order(config)
    fill = make_fill(config, schedule, deal)
    do_segment = make_segment(config, schedule, deal, config.tile_m)
    do_short_segment = make_segment(config, schedule, deal, short_m or config.tile_m)

    @cuda.jit(device=True, forceinline=True)
    def init_bars(smem):
        for i in range(num_stages):
            bar = uint32(smem + bars_offset + i * 16)
            # an arrival of each lane that gathers, and one a warp that copies words
            mbarrier_init(bar, uint32(copying))
            mbarrier_init(bar + 8, uint32(CONSUMER_WARPS))
        for i in range(num_slots):
            bar = uint32(smem + slot_bars_offset + i * 16)
            # of two panels' warps one says whose rows they are
            mbarrier_init(bar, uint32(leaving))
            mbarrier_init(bar + 8, uint32(CONSUMER_WARPS))
        fence_mbarrier_init()

    @cuda.jit(device=True, forceinline=True)
    def find_places():
        """Return where in a stage a lane's words, scales and zero points lie, and its first strip.

        A warp's strips lie side by side in one Marlin tile of 64 columns; which, depends on the
        lane too, so that its words lie in different banks.
        """
        lane_id, warp_id = uint32(thread_id() & 31), uint32(thread_id() >> 5)
        tile64 = uint32(uint32(warp_id * strips) >> 2)
        strip = uint32((uint32(warp_id + (lane_id >> 3)) % uint32(places)) * strips)
        w_place = uint32(w_offset + tile64 * 512 + lane_id * 16 + strip * 4)
        s_place = uint32(s_offset + tile64 * 128 + (lane_id >> 2) * 16 + strip * 4)
        z_place = uint32(tile64 * 32 + (lane_id >> 2) * 4)
        return w_place, s_place, uint32(z_place + z_offset), strip

    @cuda.jit(device=True, forceinline=True)
    def load_rows(turn):
        """Return how many pairs a tile has, which lie there before its first stage."""
        slot, slot_bar, parity = slot_of(turn)
        mbarrier_wait(slot_bar, parity)
        return ld_shared_u32(uint32(slot + rows_offset))

    @cuda.jit(device=True, forceinline=True)
    def load_column_zeros(zero_points, slot, tile, z_place, n):
        """Return the zero points of a lane's columns where an expert has one of each."""
        m, _, _, _ = dealt()
        _, column = corner(tile, m, n)
        column = own_column(column, n)
        word = uint64(ld_shared_u32(uint32(slot + expert_offset))) * uint64(n >> 3)
        word = word + uint64(uint32((column >> 3) + uint32(z_place - z_offset) // uint32(4)))
        return ld_global_nc_u32(zero_points + (word << 2))

    def grouped_wgmma(
        x, packed, scales, zero_points, bias, out, topk_weights, work_list, partials, counters,
        n, k, x_columns, out_columns, x_divisor, num_experts, num_pairs, max_blocks,
        has_bias, has_weights, list_is_new,
    ):  # fmt: skip
        # index: which role, which strip of columns, which segment
        smem = smem_base()
        if list_is_new > 0:
            griddepcontrol_wait()
        if thread_id() == 0:
            init_bars(smem)
        elif thread_id() == 32:
            publish(work_list, n, uint32(k // uint32(tile_k)))
        elif short_m > 0 and uint32(thread_id() >> 5) == 2:
            order_blocks(work_list, max_blocks)
        cuda.syncthreads()
        # read again wherever it is asked for: kept, it would cost the main loop a register
        if thread_id() >= uint32(32 * CONSUMER_WARPS):
            setmaxnreg_dec(fewer)
            role = uint32((thread_id() >> 5) - CONSUMER_WARPS)
            x_sizes = (x_columns, x_divisor, num_pairs, max_blocks)
            sources = (x, packed, scales, zero_points)
            fill(sources, work_list, topk_weights, k, n, x_sizes, has_weights, role)
        else:
            setmaxnreg_inc(more)
            griddepcontrol_wait()
            operands = (scales, bias, out, partials, counters)
            sizes = (n, out_columns, num_pairs)
            k_steps = uint32(k // uint32(tile_k))
            places_of = find_places()
            stage, phase = uint32(0), uint32(0)
            turn = uint32(0)
            _, tiles, stripe_steps, striped_tiles = dealt()
            tile, k_first, k_stop, left = first_segment(k_steps, stripe_steps, striped_tiles)
            while tile < tiles:
                zero = uint32(0)
                if column_zeros:
                    slot, slot_bar, parity = slot_of(turn)
                    mbarrier_wait(slot_bar, parity)
                    zero = load_column_zeros(zero_points, slot, tile, places_of[2], n)
                segment, ring = (tile, k_first, k_stop, k_steps, turn), (stage, phase)
                if short_m > 0 and load_rows(turn) <= short_m:
                    stage, phase = do_short_segment(
                        segment, places_of, zero, ring, operands, sizes, has_bias
                    )
                else:
                    stage, phase = do_segment(
                        segment, places_of, zero, ring, operands, sizes, has_bias
                    )
                bar_warp_sync()
                if uint32(thread_id() & 31) == 0:
                    _, slot_bar, _ = slot_of(opaque_u32(turn))
                    mbarrier_arrive(slot_bar + 8)
                turn = uint32(turn + 1)
                _, tiles, _, striped_tiles = dealt()
                tile, k_first, k_stop, left = next_segment(
                    tile, left, opaque_u32(k_steps), striped_tiles
                )

    return grouped_wgmma
