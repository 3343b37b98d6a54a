"""What the warps that multiply do of a segment, for all rows of a tile or only for the first.

How many rows a product has is a part of its instruction. So a program that multiplies fewer rows
where a tile has few pairs has a loop, and a way out, for either: in one loop, with a branch inside,
the compiler would let no product run beside another.
"""

from numba import cuda
from numba.cuda.types import uint32

from ferrum_numba.kernels.grouped_wgmma.result import make_store_pairs
from ferrum_numba.kernels.prefill.products import make_products, make_release
from ferrum_numba.kernels.prefill.result import make_sum_of_blocks
from ferrum_numba.ptx.asynchronous import mbarrier_wait
from ferrum_numba.ptx.special import opaque_u32, smem_base
from ferrum_numba.ptx.sync import fence_proxy_async_shared


def make_multiply(config, schedule, rows):
    """Return what multiplies a segment's stages with the first `rows` rows of its tile."""
    stage_bytes, bars_offset = config.stage_bytes, config.bars_offset
    advance, release = schedule.advance, make_release(config)
    start, finish, multiply_stage = make_products(config, release, rows)

    @cuda.jit(device=True, forceinline=True)
    def multiply(places_of, zero, k_first, k_stop, stage, phase):
        """Return a tuple of sums a strip, and what comes next of the ring."""
        smem = smem_base()
        bars = uint32(smem + bars_offset)
        k_step = k_first
        last = (uint32(smem + stage * stage_bytes), bars)
        acc = start()

        # main loop: one stage a turn, products in flight
        while k_step < k_stop:
            at = uint32(smem + stage * stage_bytes)
            bar = uint32(bars + stage * 16)
            mbarrier_wait(bar, phase)
            # wgmma reads through another proxy what lanes have copied
            fence_proxy_async_shared()
            order = (k_step > k_first, bar, phase)
            acc, zero = multiply_stage(acc, at, places_of, zero, last, order)
            last = (at, bar)
            stage, phase = advance(stage, phase)
            k_step = uint32(k_step + 1)
        acc = finish(acc, places_of, last)
        release(last[1], True)
        return acc, stage, phase

    return multiply


def make_segment(config, schedule, deal, rows):
    """Return what multiplies a segment, adds what others have of its tile, and writes that."""
    multiply, dealt, slot_of = make_multiply(config, schedule, rows), deal.dealt, deal.slot_of
    sum_of_blocks = make_sum_of_blocks(config, schedule, rows)
    store_tile = make_store_pairs(config, schedule, rows)

    @cuda.jit(device=True, forceinline=True)
    def do_segment(segment, places_of, zero, ring, operands, sizes, has_bias):
        """Return what comes next of the ring.

        segment:  tile, its first step, the one after its last, those of all K; this block's turn
        operands: scales, bias, out, partials, counters
        sizes:    n, out_columns, num_pairs
        """
        tile, k_first, k_stop, k_steps, turn = segment
        scales, bias, out, partials, counters = operands
        acc, stage, phase = multiply(places_of, zero, k_first, k_stop, ring[0], ring[1])
        # of what the compiler computed before the loop it would keep no accumulators
        m, _, stripe_steps, _ = dealt()
        if k_first > 0 or k_stop < k_steps:
            acc = sum_of_blocks(acc, partials, counters, tile, k_steps, stripe_steps, k_first)
        slot, slot_bar, parity = slot_of(opaque_u32(turn))
        mbarrier_wait(slot_bar, parity)
        if k_first == 0:
            n, out_columns, num_pairs = sizes
            sizes_of = (m, opaque_u32(n), opaque_u32(out_columns), opaque_u32(num_pairs))
            store_tile(acc, out, scales, bias, slot, tile, sizes_of, has_bias)
        return stage, phase

    return do_segment
