"""The warpgroups of prefill that multiply: a stage's weights times its rows of x."""

from numba import cuda
from numba.cuda.types import float32, uint32

from ferrum_numba.division import ceil_div
from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.prefill.schedule import ROW_BYTES
from ferrum_numba.kernels.prefill.steps import StageAhead
from ferrum_numba.kernels.shared.int4 import dequantize as make_dequantize
from ferrum_numba.ptx.asynchronous import mbarrier_arrive, mbarrier_arrive_cluster_if
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.memory import ld_shared_u32, ld_shared_v2
from ferrum_numba.ptx.special import thread_id
from ferrum_numba.ptx.sync import bar_warp_sync, mapa
from ferrum_numba.ptx.wgmma import (
    descriptor_step,
    smem_descriptor,
    wgmma_commit,
    wgmma_fence,
    wgmma_rs,
    wgmma_wait,
    wgmma_wait_acc,
)


def make_release(config):
    """Return what gives a stage back to those that copy to it, once a warp, where it is due."""
    pair = config.pair

    @cuda.jit(device=True, forceinline=True)
    def release(bar, due):
        lane_id = uint32(thread_id() & 31)
        if pair:
            # the other block copies x to it too
            arrives = uint32(0)
            if due and lane_id < 2:
                arrives = uint32(1)
            mbarrier_arrive_cluster_if(mapa(bar + 8, uint32(lane_id & 1)), arrives)
        elif due and lane_id == 0:
            mbarrier_arrive(bar + 8)

    return release


def make_accumulators(strips, rows):
    """Return (start, finish): sums of zero, and a wait for all products."""
    zeros, wait_acc = splat_f32(rows // 2), wgmma_wait_acc(rows)

    @cuda.jit(device=True, forceinline=True)
    def start():
        nothing = zeros(float32(0))
        if strips == 1:
            return (nothing,)
        return nothing, nothing

    @cuda.jit(device=True, forceinline=True)
    def finish(acc, places, last):
        """Wait for all products."""
        if strips == 1:
            return (wait_acc(acc[0], 0),)
        return wait_acc(acc[0], 0), wait_acc(acc[1], 0)

    return start, finish


def make_fragments(config):
    """Return (load_words, load_group, fragment): from a stage to operand A."""
    strips, per_channel, has_zero_points = (
        config.strips,
        config.group_size < 0,
        config.has_zero_points,
    )
    scale_row_bytes, zero_row_bytes = config.tile_n * 2, config.tile_n // 2
    # pinned: a product may still read what registers a fragment is written to, until the wait that
    # comes before it
    convert = make_dequantize(
        HALVES[config.dtype], zeros=has_zero_points, scaled=not per_channel, pinned=True
    )

    @cuda.jit(device=True, forceinline=True)
    def load_words(address):
        """Return the words of a warp's strips of 16 columns, which lie side by side."""
        if strips == 1:
            return (ld_shared_u32(address),)
        return ld_shared_v2(address)

    @cuda.jit(device=True, forceinline=True)
    def load_group(stage, s_place, z_place, group):
        """Return the scales of a lane's columns, and their zero points in one word."""
        zero = uint32(0)
        if has_zero_points:
            zero = ld_shared_u32(stage + z_place + group * zero_row_bytes)
        return load_words(stage + s_place + group * scale_row_bytes), zero

    @cuda.jit(device=True, forceinline=True)
    def fragment(word, scale, zero, strip):
        """Return a strip as operand A: rows are columns of the weight."""
        pair = uint32((zero >> (4 * strip)) & 0x000F000F)
        if has_zero_points and per_channel:
            d = convert(word, pair)
        elif has_zero_points:
            d = convert(word, pair, scale)
        elif per_channel:
            d = convert(word)
        else:
            d = convert(word, scale)
        return d[0], d[2], d[1], d[3]

    return load_words, load_group, fragment


def make_scale_weights(config, release, rows):
    """Return (start, finish, multiply_stage) of weights that are scaled: see `make_products`.

    A strip's product of 16 of k is a group of products.
    """
    strips, scale_rows = config.strips, config.scale_rows
    per_channel = config.group_size < 0
    w_row_bytes = config.tile_n * 8
    # groups of products that run while the next is dequantised, each with registers of its own for
    # A; the step of a stage after which those of the stage before are none of them
    in_flight = config.in_flight_of(rows)
    last_overlap = ceil_div(in_flight, strips) - 1
    describe_x = smem_descriptor(128, 8 * ROW_BYTES)
    step_x = descriptor_step(32)  # 16 of k
    mma = wgmma_rs(rows, HALVES[config.dtype])
    load_words, load_group, fragment = make_fragments(config)

    @cuda.jit(device=True, forceinline=True)
    def multiply_strip(acc, word, scale, zero, strip, x_desc):
        """Begin the products of a strip; of those begun before, at most `in_flight` still run."""
        wgmma_wait(in_flight)
        a = fragment(word, scale, zero, strip)
        wgmma_fence()
        acc = mma(acc, a, x_desc, uint32(1))
        wgmma_commit()
        return acc

    @cuda.jit(device=True, forceinline=True)
    def multiply(acc, words, scale, zero, strip, x_desc):
        """Begin the products of 16 of k with every strip."""
        acc0 = multiply_strip(acc[0], words[0], scale[0], zero, strip, x_desc)
        if strips == 1:
            return (acc0,)
        return acc0, multiply_strip(acc[1], words[1], scale[1], zero, uint32(strip + 1), x_desc)

    @cuda.jit(device=True, forceinline=True)
    def pass_back(step, before, due):
        """Release the stage before this one, after the step that leaves none of its products."""
        if step == last_overlap:
            wgmma_wait(in_flight)
            release(before, due)

    @cuda.jit(device=True, forceinline=True)
    def multiply_stage(acc, at, places, zero, last, order):
        w_place, s_place, z_place, strip = places
        _, before = last
        due, _, _ = order
        words = load_words(at + w_place)
        scale = words
        if not per_channel:
            scale, zero = load_group(at, s_place, z_place, uint32(0))
        x_desc = describe_x(at)
        next_words = load_words(at + w_place + w_row_bytes)
        acc = multiply(acc, words, scale, zero, strip, x_desc)
        pass_back(0, before, due)
        words = load_words(at + w_place + 2 * w_row_bytes)
        x_desc = step_x(x_desc)
        acc = multiply(acc, next_words, scale, zero, strip, x_desc)
        pass_back(1, before, due)
        if scale_rows == 2:
            scale, zero = load_group(at, s_place, z_place, uint32(1))
        next_words = load_words(at + w_place + 3 * w_row_bytes)
        x_desc = step_x(x_desc)
        acc = multiply(acc, words, scale, zero, strip, x_desc)
        pass_back(2, before, due)
        acc = multiply(acc, next_words, scale, zero, strip, step_x(x_desc))
        return acc, zero

    return (*make_accumulators(strips, rows), multiply_stage)


def make_scale_sums(config, release, rows):
    """Return (start, finish, multiply_stage) of sums that are scaled: see `make_products`.

    The sums of a warp's strips are one tuple until the last product has ended, with those that are
    still to be scaled behind them.
    """
    strips, acc_floats = config.strips, rows // 2
    both_floats = 2 * acc_floats
    zeros = splat_f32((strips + 1) * acc_floats)
    describe_x = smem_descriptor(128, 8 * ROW_BYTES)
    stages = StageAhead(
        rows,
        HALVES[config.dtype],
        config.scale_rows,
        config.zero_rows,
        config.tile_k // 16,
        config.tile_n,
        strips,
        config.tile_m,
    )
    dequantize_first, multiply, end_last = stages.first, stages.multiply, stages.last

    @cuda.jit(device=True, forceinline=True)
    def start():
        return zeros(float32(0))

    @cuda.jit(device=True, forceinline=True)
    def multiply_stage(acc, at, places, zero, last, order):
        w_place, s_place, z_place, strip = places
        last_at, before = last
        due, bar, phase = order
        a = dequantize_first(uint32(at + w_place), uint32(at + z_place), strip)
        acc = multiply(
            uint32(at + w_place), uint32(at + s_place), uint32(at + z_place), strip,
            uint32(last_at + s_place), describe_x(at), bar, phase, a, acc,
        )  # fmt: skip
        release(before, due)
        return acc, zero

    @cuda.jit(device=True, forceinline=True)
    def finish(acc, places, last):
        last_at, _ = last
        acc = end_last(uint32(last_at + places[1]), acc)
        # all lanes have read the scales of the stage that one of them gives back next
        bar_warp_sync()
        return acc[:acc_floats], acc[acc_floats:both_floats]

    return start, finish, multiply_stage


def make_products(config, release, rows):
    """Return (start, finish, multiply_stage) of a warp's sums: of the tile's first `rows` rows.

    start() -> sums of zero
    multiply_stage(sums, at, places, zero, last, order) -> sums, zero points in use:
        begin the products of a stage, and give back the one before it
    finish(sums, places, last) -> a tuple of sums a strip: wait for all products

    at:     where the stage lies
    places: of the lane's words, scales and zero points in it, and the number of its first strip
    last:   where the stage before lies, and its barrier; this one's for the first
    order:  whether there was a stage before, this one's barrier and the phase of it that has ended
    """
    make = make_scale_sums if config.scale_sums else make_scale_weights
    return make(config, release, rows)
