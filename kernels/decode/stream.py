"""The main loop of a GEMM for few tokens that streams the weight: steps, stripes, loads ahead.

decode/kernel.py says how it is tiled. What tokens are, and how a step is multiplied with them, is
the design's own.
"""

from typing import NamedTuple

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.decode.result import make_finish, make_take_over
from ferrum_numba.kernels.decode.schedule import make_schedule
from ferrum_numba.kernels.decode.steps import load_tiles, load_words
from ferrum_numba.kernels.shared.int4 import TILE_BYTES
from ferrum_numba.kernels.shared.stripes import (
    DeviceFunction,
    first_segment,
    next_segment,
    settle,
)
from ferrum_numba.ptx.asynchronous import (
    cp_async_wait,
    fence_mbarrier_init,
    mbarrier_arrive_expect_tx,
    mbarrier_init,
)
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.instruction import Instruction
from ferrum_numba.ptx.memory import ld_global_nc_u32, st_shared_v4
from ferrum_numba.ptx.special import cluster_ctarank, smem_base, thread_id
from ferrum_numba.ptx.sync import (
    bar_warp_sync,
    cluster_arrive_relaxed,
    cluster_wait,
    griddepcontrol_launch_dependents,
    griddepcontrol_wait,
)


class Tokens(NamedTuple):
    """How a step's tokens come into shared memory, a slot of `x_slot_bytes` a warp, and out of it.

    locate:     (x, lane_id, first_row, rows, x_columns) -> where this lane copies from, and reads
    fetch:      (x_lane, x_slot, rows, x_columns, k_step): begin to copy those of a step
    load:       (address) -> the operands of half a step
    half_bytes: from those of a step's first half to those of its second
    multiply:   (words, tokens, scales, zeros, acc) -> acc: half a step; scales its sums where its
                halves are of different groups
    scale:      (sums, scales, acc) -> acc: the sums of a whole step
    """

    locate: DeviceFunction
    fetch: DeviceFunction
    load: Instruction | DeviceFunction
    half_bytes: int
    multiply: Instruction
    scale: Instruction


def make_stream(config, early, tokens, make_write):
    """Return what multiplies all of a block's steps and writes or hands on their sums.

    stream(x, packed, scales, zero_points, columns, bias, out, slots, m, n, k, x_columns,
    out_columns, stripe_steps, has_bias)

    tokens:     `Tokens`
    make_write: config -> what writes sums, which has `columns` in the place of scales
    """
    tile_m, tile_n, step_k = config.tile_m, config.tile_n, config.step_k
    warps_n, warps_k, num_threads = config.warps_n, config.warps_k, config.num_threads
    half_tiles, n_tiles = config.half_tiles, config.tile_m // 8
    half_groups, zero_rows = config.half_groups, config.zero_rows
    has_groups, has_zero_points = half_groups > 0, zero_rows > 0
    group_size = config.group_size if has_groups else 1
    two_scales = config.two_scales
    x_slot_bytes = config.x_slot_bytes
    sums_offset, bar_offset = config.sums_offset, config.bar_offset
    cluster, clustered = config.cluster, config.cluster > 1
    k_tiles, half_k = 2 * half_tiles, step_k // 2

    zeros = splat_f32(16 * n_tiles)
    load = load_tiles(half_tiles)
    load_scales = load_words(max(half_groups, 1), 4)
    load_zeros = load_words(max(zero_rows, 2), 1)
    locate_tokens, fetch_x, load_x, half_bytes, multiply, scale = tokens
    carries = config.carries
    one_zero_row = zero_rows == 1
    schedule = make_schedule(config)
    stripe_of, block_rows = schedule.stripe_of, schedule.block_rows
    warp_along_k = schedule.warp_along_k
    write = make_write(config)
    finish = make_finish(config, schedule, write)
    take_over = make_take_over(config, schedule, write)

    @cuda.jit(device=True, forceinline=True)
    def locate(packed, n, k_step, slice_id):
        """Return the address of this lane's 16 bytes of the first tile of a step."""
        tid = thread_id()
        tile_column = uint32(slice_id * warps_n + uint32(tid >> 5) % uint32(warps_n))
        row = uint64(uint32(k_step * k_tiles)) * uint64(uint32(n * 8))
        return packed + row + uint64(uint32(tile_column * TILE_BYTES + (tid & 31) * 16))

    @cuda.jit(device=True, forceinline=True)
    def fetch_scales(scales, n, k_step, slice_id, i):
        """Load the scales of half a step; the multiplication takes any words if there are none."""
        if not has_groups:
            return uint32(0), uint32(0), uint32(0), uint32(0)
        tid = thread_id()
        tile_column = uint32(slice_id * warps_n + uint32(tid >> 5) % uint32(warps_n))
        group = uint32(uint32(k_step * step_k + i * half_k) // uint32(group_size))
        row_bytes = uint64(uint32(n * 2))
        lane = uint64(uint32(tile_column * 128 + uint32(uint32(tid & 31) >> 2) * 16))
        return load_scales(scales + uint64(group) * row_bytes + lane, row_bytes)

    @cuda.jit(device=True, forceinline=True)
    def fetch_zeros(zero_points, n, k_step, slice_id, i):
        """Load the zero points of half a step, or nothing."""
        if not has_zero_points:
            return (uint32(0),)
        tid = thread_id()
        tile_column = uint32(slice_id * warps_n + uint32(tid >> 5) % uint32(warps_n))
        group = uint32(uint32(k_step * step_k + i * half_k) // uint32(group_size))
        group = group if has_groups else uint32(0)
        row_bytes = uint64(uint32(n >> 1))
        lane = uint64(uint32(tile_column * 32 + uint32(uint32(tid & 31) >> 2) * 4))
        gmem = zero_points + uint64(group) * row_bytes + lane
        if one_zero_row:
            return (ld_global_nc_u32(gmem),)
        return load_zeros(gmem, row_bytes)

    @cuda.jit(device=True, forceinline=True)
    def fetch_factors(factors, n, k_step, slice_id, i):
        """Load the scales and the zero points of half a step."""
        scales, zero_points = factors
        return fetch_scales(scales, n, k_step, slice_id, i), fetch_zeros(
            zero_points, n, k_step, slice_id, i
        )

    @cuda.jit(device=True, forceinline=True)
    def move_on(slice_id, k_step, k_stop, n, k, stripe_steps):
        """Return the step that is loaded next: in a later slice where this one has no more."""
        _, end, k_steps = stripe_of(n, k, stripe_steps)
        slice_id, k_step, k_stop = settle(slice_id, k_step, k_stop, warp_along_k(), end, k_steps)
        if early and k_stop == 0:
            griddepcontrol_launch_dependents()
        return slice_id, k_step, k_stop

    @cuda.jit(device=True, forceinline=True)
    def clear_tokens(smem, tid):
        """Clear all tokens: rows past M are read, and must have been written."""
        at = uint32(tid * 16)
        while at < sums_offset:
            st_shared_v4(smem + at, (uint32(0), uint32(0), uint32(0), uint32(0)))
            at = uint32(at + num_threads * 16)
        cuda.syncthreads()

    @cuda.jit(device=True, forceinline=True)
    def expect_sums(smem, tid, rows):
        """Let the cluster's other blocks send their sums: its first block waits for them."""
        if tid == 0 and cluster_ctarank() == 0:
            mbarrier_init(smem + bar_offset, uint32(1))
            fence_mbarrier_init()
            mbarrier_arrive_expect_tx(smem + bar_offset, rows * ((cluster - 1) * tile_n * 4))
        cluster_arrive_relaxed()
        cluster_wait()

    @cuda.jit(device=True, forceinline=True)
    def stream(
        x, packed, scales, zero_points, columns, bias, out, slots,
        m, n, k, x_columns, out_columns, stripe_steps, has_bias,
    ):  # fmt: skip
        # index: which stripe, which tokens, which tile
        smem = smem_base()
        tid = thread_id()
        lane_id = uint32(tid & 31)
        first_row, rows = block_rows(m)
        first, end, k_steps = stripe_of(n, k, stripe_steps)
        slice_id, k_step, k_stop = first_segment(first, end, k_steps)
        x_slot = uint32(smem + uint32(tid >> 5) * (2 * x_slot_bytes))
        x_both = uint32(x_slot + x_slot + x_slot_bytes)
        x_lane, token_lane = locate_tokens(x, lane_id, first_row, rows, x_columns)
        tile_stride, factors = uint64(uint32(n * 8)), (scales, zero_points)

        # prologue: load weights; then, when the launch before has ended, the tokens
        step = uint32(k_step + warp_along_k())
        next_slice, next_step, next_stop = settle(
            slice_id, step, k_stop, warp_along_k(), end, k_steps
        )
        # a warp without a step loads another's
        first_slice, first_step = slice_id, k_step
        if next_stop > 0:
            first_slice, first_step = next_slice, next_step
        tile = locate(packed, n, first_step, first_slice)
        first = load(tile, tile_stride)
        first_scale, first_zero = fetch_factors(factors, n, first_step, first_slice, 0)
        second = load(tile + tile_stride * uint64(half_tiles), tile_stride)
        second_scale, second_zero = first_scale, first_zero
        if two_scales:
            second_scale, second_zero = fetch_factors(factors, n, first_step, first_slice, 1)
        if n_tiles > 1 and rows < tile_m:
            clear_tokens(smem, tid)
        next_slice, next_step, next_stop = settle(
            next_slice, uint32(next_step + warps_k), next_stop, warp_along_k(), end, k_steps
        )
        tile = locate(packed, n, next_step, next_slice)
        if clustered:
            expect_sums(smem, tid, rows)
        if early:
            if next_stop == 0:
                griddepcontrol_launch_dependents()
            griddepcontrol_wait()
        fetch_x(x_lane, x_slot, rows, x_columns, first_step)
        while k_stop > 0:
            acc = zeros(float32(0))

            # main loop: one step a turn; the loads run a step ahead, across slices
            while step < k_stop:
                cp_async_wait(0)
                bar_warp_sync()
                more = next_stop > 0
                if more:
                    fetch_x(x_lane, uint32(x_both - x_slot), rows, x_columns, next_step)
                token = load_x(x_slot + token_lane)
                if carries:
                    total = multiply(first, token, first_scale, first_zero, zeros(float32(0)))
                else:
                    acc = multiply(first, token, first_scale, first_zero, acc)
                if more:
                    first = load(tile, tile_stride)
                    if two_scales:
                        first_scale, first_zero = fetch_factors(
                            factors, n, next_step, next_slice, 0
                        )
                token = load_x(x_slot + token_lane + half_bytes)
                if carries:
                    total = multiply(second, token, first_scale, first_zero, total)
                    acc = scale(total, first_scale, acc)
                elif two_scales:
                    acc = multiply(second, token, second_scale, second_zero, acc)
                else:
                    acc = multiply(second, token, first_scale, first_zero, acc)
                if more:
                    second = load(tile + tile_stride * uint64(half_tiles), tile_stride)
                    second_scale, second_zero = fetch_factors(
                        factors, n, next_step, next_slice, 1 if two_scales else 0
                    )
                    if not two_scales:
                        first_scale, first_zero = second_scale, second_zero
                next_step = uint32(next_step + warps_k)
                tile = tile + tile_stride * uint64(warps_k * k_tiles)
                if more and next_step >= next_stop:
                    next_slice, next_step, next_stop = move_on(
                        next_slice, next_step, next_stop, n, k, stripe_steps
                    )
                    tile = locate(packed, n, next_step, next_slice)
                x_slot = uint32(x_both - x_slot)
                step = uint32(step + warps_k)

            finish(
                acc, slice_id, k_stop, columns, bias, out, slots,
                m, n, k, out_columns, stripe_steps, has_bias,
            )  # fmt: skip
            _, end, k_steps = stripe_of(n, k, stripe_steps)
            slice_id, k_stop = next_segment(slice_id, k_stop, end, k_steps)
            step = warp_along_k()
        if not clustered:
            take_over(columns, bias, out, slots, m, n, k, out_columns, stripe_steps, has_bias)

    return stream
