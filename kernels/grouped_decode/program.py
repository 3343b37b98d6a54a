"""The device program of grouped_decode: kernel.py says what is computed and how it is tiled."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.decode.steps import (
    load_tiles,
    load_tokens,
    load_words,
    multiply_step,
    scale_sums,
)
from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.grouped_decode.result import make_finish, make_take_over
from ferrum_numba.kernels.grouped_decode.schedule import NO_ROW, make_schedule
from ferrum_numba.kernels.shared.int4 import TILE_BYTES
from ferrum_numba.kernels.shared.stripes import first_segment, next_segment, settle
from ferrum_numba.ptx.asynchronous import cp_async_16_ca_zfill, cp_async_commit, cp_async_wait
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.memory import ld_global_nc_u32, ld_shared_u32, st_shared_u32
from ferrum_numba.ptx.special import smem_base, thread_id
from ferrum_numba.ptx.sync import (
    bar_warp_sync,
    griddepcontrol_launch_dependents,
    griddepcontrol_wait,
)


def build(config, early):
    """Return the kernel of a config: a function of its parameters, in their order."""
    tile_m, step_k = config.tile_m, config.step_k
    warps_n, warps_k = config.warps_n, config.warps_k
    half_tiles, n_tiles = config.half_tiles, config.tile_m // 8
    half_groups, zero_rows = config.half_groups, config.zero_rows
    has_groups, has_zero_points = half_groups > 0, zero_rows > 0
    group_size = config.group_size if has_groups else 1
    two_scales = config.two_scales
    x_slot_bytes, x_row_bytes = config.x_slot_bytes, config.x_row_bytes
    k_tiles, half_k = 2 * half_tiles, step_k // 2

    # a step's activations are copied in pieces of 16 bytes, some rows at once
    row_pieces = step_k // 8
    rows_at_once = 32 // row_pieces
    x_copies = tile_m // rows_at_once

    zeros = splat_f32(16 * n_tiles)
    load = load_tiles(half_tiles)
    load_scales = load_words(max(half_groups, 1), 4)
    load_zeros = load_words(max(zero_rows, 2), 1)
    load_x = load_tokens(half_tiles, n_tiles, x_row_bytes)
    half = HALVES[config.dtype]
    # where both halves are of one group, the sums of a whole step are scaled at once
    carries = has_groups and not two_scales
    multiply = multiply_step(half_tiles, n_tiles, half, 0 if carries else half_groups, zero_rows)
    scale = scale_sums(n_tiles, half)
    one_zero_row = zero_rows == 1
    schedule = make_schedule(config)
    find_stripe, kept_stripe = schedule.find_stripe, schedule.kept_stripe
    steps_of_slice, place_of = schedule.steps_of_slice, schedule.place_of
    expert_of, pair_of, own_place = schedule.expert_of, schedule.pair_of, schedule.own_place
    warp_along_k = schedule.warp_along_k
    finish, take_over = make_finish(config, schedule), make_take_over(config, schedule)

    @cuda.jit(device=True, forceinline=True)
    def column_of(slice_of):
        """Return which 64 columns of its expert are this warp's."""
        return uint32(slice_of * warps_n + uint32(thread_id() >> 5) % uint32(warps_n))

    @cuda.jit(device=True, forceinline=True)
    def locate(packed, n, k, k_step, target):
        """Return the address of this lane's 16 bytes of the first tile of a step."""
        expert, slice_of = target
        slab = uint64(expert) * (uint64(k) * uint64(uint32(n >> 1)))
        row = uint64(uint32(k_step * k_tiles)) * uint64(uint32(n * 8))
        lane = uint32(column_of(slice_of) * TILE_BYTES + (thread_id() & 31) * 16)
        return packed + slab + row + uint64(lane)

    @cuda.jit(device=True, forceinline=True)
    def group_row(k, k_step, expert, i):
        """Return which row of the scales of all experts half a step has."""
        if not has_groups:
            return expert
        groups = uint32(k // uint32(group_size))
        return uint32(
            uint32(expert * groups) + uint32(k_step * step_k + i * half_k) // uint32(group_size)
        )

    @cuda.jit(device=True, forceinline=True)
    def fetch_scales(scales, n, k, k_step, target, i):
        """Load the scales of half a step; the multiplication takes any words if there are none."""
        if not has_groups:
            return uint32(0), uint32(0), uint32(0), uint32(0)
        expert, slice_of = target
        row_bytes = uint64(uint32(n * 2))
        lane = uint32(column_of(slice_of) * 128 + uint32(uint32(thread_id() & 31) >> 2) * 16)
        row = uint64(group_row(k, k_step, expert, i)) * row_bytes
        return load_scales(scales + row + uint64(lane), row_bytes)

    @cuda.jit(device=True, forceinline=True)
    def fetch_zeros(zero_points, n, k, k_step, target, i):
        """Load the zero points of half a step, or nothing."""
        if not has_zero_points:
            return (uint32(0),)
        expert, slice_of = target
        row_bytes = uint64(uint32(n >> 1))
        lane = uint32(column_of(slice_of) * 32 + uint32(uint32(thread_id() & 31) >> 2) * 4)
        gmem = zero_points + uint64(group_row(k, k_step, expert, i)) * row_bytes + uint64(lane)
        if one_zero_row:
            return (ld_global_nc_u32(gmem),)
        return load_zeros(gmem, row_bytes)

    @cuda.jit(device=True, forceinline=True)
    def fetch_factors(factors, n, k, k_step, target, i):
        """Load the scales and the zero points of half a step."""
        scales, zero_points = factors
        return fetch_scales(scales, n, k, k_step, target, i), fetch_zeros(
            zero_points, n, k, k_step, target, i
        )

    @cuda.jit(device=True, forceinline=True)
    def aim(work, n, slice_id):
        """Return a slice's expert, and its number among the slices of it."""
        block, slice_of = place_of(work, n, slice_id)
        return expert_of(work, block), slice_of

    @cuda.jit(device=True, forceinline=True)
    def keep_rows(work, x_divisor, n, slice_id):
        """Keep the rows of x that a slice multiplies."""
        lane_id = uint32(thread_id() & 31)
        block, _ = place_of(work, n, slice_id)
        bar_warp_sync()
        if lane_id < uint32(tile_m):
            pair = pair_of(work, block, lane_id)
            row = uint32(NO_ROW)
            if pair < work[2]:
                row = uint32(pair // x_divisor)
            st_shared_u32(uint32(own_place() + (8 + lane_id * 4)), row)
        bar_warp_sync()

    @cuda.jit(device=True, forceinline=True)
    def fetch_x(x, x_slot, x_columns, k_step):
        """Begin to copy a step's activations for this warp; where there are none, zeros."""
        lane_id = uint32(thread_id() & 31)
        first = uint32(lane_id // uint32(row_pieces))
        piece = uint32(lane_id % uint32(row_pieces))
        to = uint32(x_slot + first * x_row_bytes + piece * 16)
        column = uint32(k_step * step_k + piece * 8)
        inside = column < x_columns
        places = uint32(own_place() + (8 + first * 4))
        for i in range(x_copies):
            row = ld_shared_u32(uint32(places + i * (rows_at_once * 4)))
            size = uint32(16) if inside and row != uint32(NO_ROW) else uint32(0)
            row = row if size > 0 else uint32(0)
            gmem = x + ((uint64(row) * uint64(x_columns) + uint64(column)) << 1)
            cp_async_16_ca_zfill(uint32(to + i * (rows_at_once * x_row_bytes)), gmem, size)
        cp_async_commit()

    def grouped_decode(
        x, packed, scales, zero_points, bias, out, topk_weights, list_of_blocks, slots,
        n, k, x_columns, out_columns, x_divisor, num_experts, num_pairs, max_blocks, has_bias,
        has_weights, list_is_new, stripe_units, longer_stripes, first_block,
    ):  # fmt: skip
        # index: which stripe, which slice, whose weight
        if early and list_is_new > 0:
            griddepcontrol_wait()
        work = (
            list_of_blocks, num_experts, num_pairs, max_blocks, stripe_units, longer_stripes,
            first_block,
        )  # fmt: skip
        first, end = find_stripe(work, n, k)
        k_steps = steps_of_slice(k)
        if first >= end:
            if early:
                griddepcontrol_wait()
                griddepcontrol_launch_dependents()
            return
        smem = smem_base()
        lane_id = uint32(thread_id() & 31)
        slice_id, k_step, k_stop = first_segment(first, end, k_steps)
        x_slot = uint32(smem + uint32(thread_id() >> 5) * (2 * x_slot_bytes))
        x_both = uint32(x_slot + x_slot + x_slot_bytes)
        # each lane addresses a token's row of one of the four matrices of two tiles
        token_lane = uint32((lane_id & 7) * x_row_bytes + (lane_id >> 3) * 16)
        tile_stride, factors = uint64(uint32(n * 8)), (scales, zero_points)

        # prologue: load weights; then, when the launch before has ended, the tokens
        step = uint32(k_step + warp_along_k())
        next_slice, next_step, next_stop = settle(
            slice_id, step, k_stop, warp_along_k(), end, k_steps
        )
        # a warp without a step loads another's
        load_slice, load_step = slice_id, k_step
        if next_stop > 0:
            load_slice, load_step = next_slice, next_step
        target = aim(work, n, load_slice)
        tile = locate(packed, n, k, load_step, target)
        first_words = load(tile, tile_stride)
        first_scale, first_zero = fetch_factors(factors, n, k, load_step, target, 0)
        second_words = load(tile + tile_stride * uint64(half_tiles), tile_stride)
        second_scale, second_zero = first_scale, first_zero
        if two_scales:
            second_scale, second_zero = fetch_factors(factors, n, k, load_step, target, 1)
        keep_rows(work, x_divisor, n, load_slice)
        if early:
            griddepcontrol_wait()
        fetch_x(x, x_slot, x_columns, load_step)
        held = load_slice
        next_slice, next_step, next_stop = settle(
            next_slice, uint32(next_step + warps_k), next_stop, warp_along_k(), end, k_steps
        )
        if early and next_stop == 0:
            griddepcontrol_launch_dependents()
        if next_stop > 0 and next_slice != held:
            target = aim(work, n, next_slice)
            keep_rows(work, x_divisor, n, next_slice)
        tile = locate(packed, n, k, next_step, target)
        while k_stop > 0:
            acc = zeros(float32(0))

            # main loop: one step a turn; the loads run a step ahead, across slices
            while step < k_stop:
                cp_async_wait(0)
                bar_warp_sync()
                more = next_stop > 0
                if more:
                    fetch_x(x, uint32(x_both - x_slot), x_columns, next_step)
                token = load_x(x_slot + token_lane)
                if carries:
                    total = multiply(first_words, token, first_scale, first_zero, zeros(float32(0)))
                else:
                    acc = multiply(first_words, token, first_scale, first_zero, acc)
                if more:
                    first_words = load(tile, tile_stride)
                    if two_scales:
                        first_scale, first_zero = fetch_factors(factors, n, k, next_step, target, 0)
                token = load_x(x_slot + token_lane + step_k)
                if carries:
                    total = multiply(second_words, token, first_scale, first_zero, total)
                    acc = scale(total, first_scale, acc)
                elif two_scales:
                    acc = multiply(second_words, token, second_scale, second_zero, acc)
                else:
                    acc = multiply(second_words, token, first_scale, first_zero, acc)
                if more:
                    second_words = load(tile + tile_stride * uint64(half_tiles), tile_stride)
                    second_scale, second_zero = fetch_factors(
                        factors, n, k, next_step, target, 1 if two_scales else 0
                    )
                    if not two_scales:
                        first_scale, first_zero = second_scale, second_zero
                next_step = uint32(next_step + warps_k)
                tile = tile + tile_stride * uint64(warps_k * k_tiles)
                if more and next_step >= next_stop:
                    (_, end), k_steps = kept_stripe(), steps_of_slice(k)
                    next_slice, next_step, next_stop = settle(
                        next_slice, next_step, next_stop, warp_along_k(), end, k_steps
                    )
                    if next_stop > 0:
                        target = aim(work, n, next_slice)
                        keep_rows(work, x_divisor, n, next_slice)
                        tile = locate(packed, n, k, next_step, target)
                    elif early:
                        griddepcontrol_launch_dependents()
                x_slot = uint32(x_both - x_slot)
                step = uint32(step + warps_k)

            finish(
                acc, slice_id, k_stop, (scales, bias, out, topk_weights, slots), work,
                (n, k, out_columns, has_bias, has_weights),
            )  # fmt: skip
            (_, end), k_steps = kept_stripe(), steps_of_slice(k)
            slice_id, k_stop = next_segment(slice_id, k_stop, end, k_steps)
            step = warp_along_k()
        take_over(
            (scales, bias, out, topk_weights, slots), work,
            (n, k, out_columns, has_bias, has_weights),
        )  # fmt: skip

    return grouped_decode
