"""The main loop of grouped_wgmma: a segment's stages, times all rows of a tile or the first of them.

The rows of a product are a part of its instruction. So a program that multiplies fewer rows where a
tile has fewer pairs has a loop for either: in one loop, with a branch inside, the compiler would let
no product run beside another.
"""

from numba import cuda
from numba.cuda.types import float32, uint32

from ferrum_numba.kernels.prefill.products import make_products, make_release
from ferrum_numba.ptx.asynchronous import mbarrier_wait
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import fence_proxy_async_shared


def make_multiply(config, schedule, rows):
    """Return what multiplies a segment with a tile's first `rows` rows; other sums are zero."""
    strips, stage_bytes, bars_offset = config.strips, config.stage_bytes, config.bars_offset
    advance, release = schedule.advance, make_release(config)
    start, finish, multiply_stage = make_products(config, release, rows)
    fewer = rows < config.tile_m
    zeros = splat_f32(max(config.tile_m - rows, 1) // 2)

    @cuda.jit(device=True, forceinline=True)
    def fill_up(acc):
        """Return the sums of all rows of a tile."""
        if not fewer:
            return acc
        nothing = zeros(float32(0))
        if strips == 1:
            return (acc[0] + nothing,)
        return acc[0] + nothing, acc[1] + nothing

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
        return fill_up(acc), stage, phase

    return multiply
