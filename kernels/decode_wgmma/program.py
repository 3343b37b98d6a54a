"""The device program of decode_wgmma: kernel.py says what is computed and how it is tiled."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.decode_wgmma.result import make_finish
from ferrum_numba.kernels.decode_wgmma.schedule import make_stripe_of
from ferrum_numba.kernels.decode_wgmma.steps import multiply_stage
from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.shared.int4 import TILE_BYTES
from ferrum_numba.kernels.shared.stage_text import row_strides
from ferrum_numba.kernels.shared.stripes import first_segment, next_segment, settle
from ferrum_numba.ptx.asynchronous import (
    cp_async_16,
    cp_async_16_zfill,
    cp_async_commit,
    cp_async_wait,
)
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.shuffle import shfl_idx
from ferrum_numba.ptx.special import smem_base, thread_id
from ferrum_numba.ptx.sync import (
    bar_sync,
    fence_proxy_async_shared,
    griddepcontrol_launch_dependents,
    griddepcontrol_wait,
)
from ferrum_numba.ptx.wgmma import smem_descriptor

# bytes of a token's row of a stage: what a swizzle repeats in
ROW_BYTES = 128
# bytes from a tile of the warpgroup to the one below it, from a row of its scales to the next, and
# the same of its zero points
TILE_ROW_BYTES, SCALE_ROW_BYTES, ZERO_ROW_BYTES = row_strides(256)


def build(config):
    """Return the kernel of a config: a function of the parameters of `DecodeWgmma`, in order."""
    tile_m, tile_k, early = config.tile_m, config.tile_k, config.early
    num_warpgroups, num_stages = config.num_warpgroups, config.num_stages
    scale_rows, zero_rows = config.scale_rows, config.zero_rows
    per_channel, has_zero_points = config.group_size < 0, zero_rows > 0
    group_size = 1 if per_channel else config.group_size
    stage_bytes, ring_bytes = config.stage_bytes, config.num_stages * config.stage_bytes
    w_offset, s_offset, z_offset = config.w_offset, config.s_offset, config.z_offset
    ahead, in_flight = num_stages - 1, num_stages - 2
    k_tiles, panels = tile_k // 16, tile_k // 64
    x_copies, two_panels, panel_bytes = tile_m // 16, panels == 2, tile_m * ROW_BYTES

    half = HALVES[config.dtype]
    splat = splat_f32(2 * tile_m)
    multiply = multiply_stage(tile_m, half, scale_rows, zero_rows, k_tiles, config.in_flight)
    describe = smem_descriptor(128, 8 * ROW_BYTES)
    stripe_of = make_stripe_of(config)
    finish = make_finish(config, stripe_of)

    @cuda.jit(device=True, forceinline=True)
    def tile_column_of(n, slice_id):
        """Return which 64 columns are this warp's; beyond the weight, the last ones before."""
        tile_column = uint32(slice_id * 4 + ((thread_id() >> 5) & 3))
        last = uint32((n >> 6) - 1)
        return tile_column if tile_column < last else last

    @cuda.jit(device=True, forceinline=True)
    def aim(weight, n, slice_id, k_step):
        """Return where this lane's words of a stage begin, and its slice's scales and zeros."""
        packed, scales, zero_points = weight
        lane_id = uint32(thread_id() & 31)
        tile_column = tile_column_of(n, slice_id)
        words = packed + uint64(uint32(k_step * k_tiles)) * uint64(uint32(n * 8))
        words = words + uint64(uint32(tile_column * TILE_BYTES + lane_id * 16))
        # a warp's scales of a row are 128 bytes, which eight lanes copy; its zero points 32
        group = uint64(uint32(lane_id >> 3)) * uint64(uint32(n * 2))
        factors = scales + group + uint64(uint32(tile_column * 128 + (lane_id & 7) * 16))
        zeros = zero_points
        if has_zero_points:
            group = uint64(uint32(lane_id >> 1)) * uint64(uint32(n >> 1))
            zeros = zero_points + group + uint64(uint32(tile_column * 32 + (lane_id & 1) * 16))
        return words, factors, zeros

    @cuda.jit(device=True, forceinline=True)
    def places_of():
        """Return where this thread's words, scales, zero points and tokens go in a stage."""
        tid = thread_id()
        thread, lane_id, warp_id = uint32(tid & 127), uint32(tid & 31), uint32((tid >> 5) & 3)
        factor = uint32((lane_id >> 3) * SCALE_ROW_BYTES + (lane_id & 7) * 16 + warp_id * 128)
        zero = uint32((lane_id >> 1) * ZERO_ROW_BYTES + (lane_id & 1) * 16 + warp_id * 32)
        row, piece = uint32(thread >> 3), uint32(thread & 7)
        token = uint32(row * ROW_BYTES + (piece ^ (row & 7)) * 16)
        return uint32(w_offset + thread * 16), uint32(s_offset + factor), zero + z_offset, token

    @cuda.jit(device=True, forceinline=True)
    def factor_places(tid):
        """Return where in a stage this lane's columns have their scales and zero points.

        Warps lie side by side, and so do the eight sets of columns that lanes share.
        """
        columns = uint32(uint32(tid & 127) >> 2)
        return uint32(s_offset + columns * 16), uint32(z_offset + columns * 4)

    @cuda.jit(device=True, forceinline=True)
    def fetch_panel(to, gmem, row_bytes):
        """Begin to copy the lane's words of 64 rows."""
        cp_async_16(to, gmem)
        cp_async_16(uint32(to + TILE_ROW_BYTES), gmem + row_bytes)
        cp_async_16(uint32(to + 2 * TILE_ROW_BYTES), gmem + row_bytes * uint64(2))
        cp_async_16(uint32(to + 3 * TILE_ROW_BYTES), gmem + row_bytes * uint64(3))

    @cuda.jit(device=True, forceinline=True)
    def fetch_weights(filled, places, sources, n, k, k_row):
        """Begin to copy a stage's words, each lane its own, its scales and its zero points."""
        gmem, factors, zeros = sources
        word, factor, zero, _ = places
        lane_id = uint32(thread_id() & 31)
        row_bytes = uint64(uint32(n * 8))
        fetch_panel(uint32(filled + word), gmem, row_bytes)
        if two_panels:
            # where K ends before it, the first panel again, whose tokens are zeros there
            if uint32(k_row + 64) < k:
                gmem = gmem + row_bytes * uint64(4)
            fetch_panel(uint32(filled + word + 4 * TILE_ROW_BYTES), gmem, row_bytes)
        group = uint32(0)
        if not per_channel:
            group = uint32(k_row // uint32(group_size))
            if lane_id < uint32(8 * scale_rows):
                row = uint64(group) * uint64(uint32(n * 2))
                cp_async_16(uint32(filled + factor), factors + row)
        if has_zero_points and lane_id < uint32(2 * zero_rows):
            cp_async_16(uint32(filled + zero), zeros + uint64(group) * uint64(uint32(n >> 1)))

    @cuda.jit(device=True, forceinline=True)
    def fetch_x(to, gmem, k_row, tokens_of):
        """Begin to copy a stage's tokens for this warpgroup; what is past M or K becomes zeros."""
        row, rows, x_limit, x_columns = tokens_of
        for i in range(x_copies):
            for panel in range(panels):
                size_bytes = uint32(0)
                if uint32(k_row + panel * 64) < x_limit and uint32(row + i * 16) < rows:
                    size_bytes = uint32(16)
                place = uint32(to + panel * panel_bytes + i * (16 * ROW_BYTES))
                cp_async_16_zfill(place, gmem + uint64(panel * 128), size_bytes)
            gmem = gmem + uint64(uint32(x_columns * 32))

    @cuda.jit(device=True, forceinline=True)
    def locate_tokens(x, tid, m, x_columns):
        """Return where this thread's first piece of a stage's tokens comes from, and what is there.

        That is its token, how many the block has, the K from which on its pieces are past the end,
        and the columns of x.
        """
        first_row = uint32(uint32(cuda.blockIdx.y) * tile_m)
        x_row, x_column = uint32(uint32(tid & 127) >> 3), uint32((tid & 7) * 8)
        x_lane = x + (
            (uint64(uint32(first_row + x_row)) * uint64(x_columns) + uint64(x_column)) << 1
        )
        x_limit = uint32(x_columns - x_column) if x_column < x_columns else uint32(0)
        return x_lane, (x_row, uint32(m - first_row), x_limit, x_columns)

    @cuda.jit(device=True, forceinline=True)
    def aim_tokens(x_lane, k_step):
        """Return where this thread's first piece of a step's tokens begins, and the step's K."""
        return x_lane + uint64(uint32(k_step * (2 * tile_k))), uint32(k_step * tile_k)

    @cuda.jit(device=True, forceinline=True)
    def turns_of(step, k_stop, next_step, next_stop):
        """Return a warpgroup's turns until a segment ends: that in work, or that being loaded."""
        turns = uint32(uint32(k_stop - step + (num_warpgroups - 1)) // uint32(num_warpgroups))
        if next_stop > 0:
            left = uint32(next_stop - next_step + (num_warpgroups - 1))
            left = uint32(left // uint32(num_warpgroups))
            turns = left if left < turns else turns
        return turns

    def decode_wgmma(
        x, packed, scales, zero_points, bias, out, slots,
        m, n, k, x_columns, out_columns, stripe_steps, has_bias,
    ):  # fmt: skip
        # index: which stripe, which tokens, which step
        smem = smem_base()
        tid = thread_id()
        # from one lane: so the compiler knows it, and where the ring lies, for the same in a warp
        warpgroup = shfl_idx(uint32(tid >> 7), uint32(0))
        _, first, end, k_steps = stripe_of(n, k, stripe_steps)
        slice_id, k_step, k_stop = first_segment(first, end, k_steps)
        ring = uint32(smem + warpgroup * ring_bytes)
        weight = (packed, scales, zero_points)
        x_lane, tokens_of = locate_tokens(x, tid, m, x_columns)
        places, (scale_place, zero_place) = places_of(), factor_places(tid)
        word_place, _, _, token_place = places

        # prologue: load weights; then, when the launch before has ended, the tokens
        step = uint32(k_step + warpgroup)
        next_slice, next_step, next_stop = settle(slice_id, step, k_stop, warpgroup, end, k_steps)
        x_slice, x_step, x_stop = next_slice, next_step, next_stop
        row_bytes = uint64(uint32(n * 8))
        words, factors, zeros = aim(weight, n, next_slice, next_step)
        filled = ring
        for _ in range(ahead):
            if next_stop > 0:
                k_row = uint32(next_step * tile_k)
                fetch_weights(filled, places, (words, factors, zeros), n, k, k_row)
                next_step = uint32(next_step + num_warpgroups)
                words = words + row_bytes * uint64(k_tiles * num_warpgroups)
                if next_step >= next_stop:
                    next_slice, next_step, next_stop = settle(
                        next_slice, next_step, next_stop, warpgroup, end, k_steps
                    )
                    words, factors, zeros = aim(weight, n, next_slice, next_step)
            filled = uint32(filled + stage_bytes)
        if early:
            if next_stop == 0:
                griddepcontrol_launch_dependents()
            griddepcontrol_wait()
        at = ring
        for _ in range(ahead):
            if x_stop > 0:
                tokens, k_row = aim_tokens(x_lane, x_step)
                fetch_x(uint32(at + token_place), tokens, k_row, tokens_of)
                x_slice, x_step, x_stop = settle(
                    x_slice, uint32(x_step + num_warpgroups), x_stop, warpgroup, end, k_steps
                )
            # the first group has all of the weights too, which were begun long before
            cp_async_commit()
            at = uint32(at + stage_bytes)
        (tokens, _), at = aim_tokens(x_lane, next_step), ring
        while k_stop > 0:
            acc = splat(float32(0))
            while step < k_stop:
                # turns until this segment ends, or the one that is being loaded
                more = next_stop > 0
                turns = turns_of(step, k_stop, next_step, next_stop)
                step = uint32(step + turns * num_warpgroups)
                row = uint32(next_step * tile_k)
                next_step = uint32(next_step + turns * num_warpgroups)

                # main loop: one stage a turn; the copies run some stages ahead, across slices
                while turns > 0:
                    cp_async_wait(in_flight)
                    # wgmma reads shared memory through another proxy than cp.async writes it
                    fence_proxy_async_shared()
                    # and all warps have done with the stage that is filled next
                    bar_sync(uint32(warpgroup + 1), uint32(128))
                    if more:
                        fetch_weights(filled, places, (words, factors, zeros), n, k, row)
                        fetch_x(uint32(filled + token_place), tokens, row, tokens_of)
                        row = uint32(row + tile_k * num_warpgroups)
                        words = words + row_bytes * uint64(k_tiles * num_warpgroups)
                        tokens = tokens + uint64(2 * tile_k * num_warpgroups)
                    cp_async_commit()
                    scale, zero = uint32(at + scale_place), uint32(at + zero_place)
                    acc = multiply(uint32(at + word_place), scale, zero, describe(at), acc)
                    filled = at
                    at = uint32(at + stage_bytes)
                    if at == uint32(ring + ring_bytes):
                        at = ring
                    turns = uint32(turns - 1)
                if more and next_step >= next_stop:
                    _, _, end, k_steps = stripe_of(n, k, stripe_steps)
                    next_slice, next_step, next_stop = settle(
                        next_slice, next_step, next_stop, warpgroup, end, k_steps
                    )
                    words, factors, zeros = aim(weight, n, next_slice, next_step)
                    tokens, _ = aim_tokens(x_lane, next_step)
                    if early and next_stop == 0:
                        griddepcontrol_launch_dependents()

            finish(
                acc, slice_id, scales, bias, out, slots,
                m, n, k, out_columns, stripe_steps, has_bias,
            )  # fmt: skip
            _, _, end, k_steps = stripe_of(n, k, stripe_steps)
            slice_id, k_stop = next_segment(slice_id, k_stop, end, k_steps)
            step = warpgroup

    return decode_wgmma
