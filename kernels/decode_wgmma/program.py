"""The device program of decode_wgmma: kernel.py says what is computed and how it is tiled."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.decode.schedule import next_segment
from ferrum_numba.kernels.decode_wgmma.result import make_finish, make_stripe_of
from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.shared.int4 import TILE_BYTES
from ferrum_numba.kernels.shared.multiply_stage import multiply_stage, row_strides
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
    groups_k, num_stages = config.groups_k, config.num_stages
    scale_rows, zero_rows = config.scale_rows, config.zero_rows
    per_channel, has_zeros = config.group_size < 0, zero_rows > 0
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
    stripe_of, finish = make_stripe_of(config), make_finish(config)

    @cuda.jit(device=True, inline="always")
    def strip_of(n, slice_id):
        """Return which 64 columns are this warp's; beyond the weight, the last ones before."""
        strip = uint32(slice_id * 4 + ((thread_id() >> 5) & 3))
        last = uint32((n >> 6) - 1)
        return strip if strip < last else last

    @cuda.jit(device=True, inline="always")
    def aim(packed, scales, zero_points, n, slice_id, k_step):
        """Return where this lane's words of a stage begin, and its slice's scales and zeros."""
        lane_id = uint32(thread_id() & 31)
        strip = strip_of(n, slice_id)
        words = packed + uint64(uint32(k_step * k_tiles)) * uint64(uint32(n * 8))
        words = words + uint64(uint32(strip * TILE_BYTES + lane_id * 16))
        # a warp's scales of a row are 128 bytes, which eight lanes copy; its zero points 32
        group = uint64(uint32(lane_id >> 3)) * uint64(uint32(n * 2))
        factors = scales + group + uint64(uint32(strip * 128 + (lane_id & 7) * 16))
        zeros = zero_points
        if has_zeros:
            group = uint64(uint32(lane_id >> 1)) * uint64(uint32(n >> 1))
            zeros = zero_points + group + uint64(uint32(strip * 32 + (lane_id & 1) * 16))
        return words, factors, zeros

    @cuda.jit(device=True, inline="always")
    def places_of():
        """Return where this thread's words, scales, zero points and tokens go in a stage."""
        tid = thread_id()
        thread, lane_id, warp_id = uint32(tid & 127), uint32(tid & 31), uint32((tid >> 5) & 3)
        factor = uint32((lane_id >> 3) * SCALE_ROW_BYTES + (lane_id & 7) * 16 + warp_id * 128)
        zero = uint32((lane_id >> 1) * ZERO_ROW_BYTES + (lane_id & 1) * 16 + warp_id * 32)
        row, piece = uint32(thread >> 3), uint32(thread & 7)
        token = uint32(row * ROW_BYTES + (piece ^ (row & 7)) * 16)
        return uint32(w_offset + thread * 16), uint32(s_offset + factor), zero + z_offset, token

    @cuda.jit(device=True, inline="always")
    def fetch_panel(to, gmem, row_bytes):
        """Begin to copy the lane's words of 64 rows."""
        cp_async_16(to, gmem)
        cp_async_16(uint32(to + TILE_ROW_BYTES), gmem + row_bytes)
        cp_async_16(uint32(to + 2 * TILE_ROW_BYTES), gmem + row_bytes * uint64(2))
        cp_async_16(uint32(to + 3 * TILE_ROW_BYTES), gmem + row_bytes * uint64(3))

    @cuda.jit(device=True, inline="always")
    def fetch_weights(slot, places, sources, n, k, k_row):
        """Begin to copy a stage's words, each lane its own, its scales and its zero points."""
        gmem, factors, zeros = sources
        word, factor, zero, _ = places
        lane_id = uint32(thread_id() & 31)
        row_bytes = uint64(uint32(n * 8))
        fetch_panel(uint32(slot + word), gmem, row_bytes)
        if two_panels:
            # where K ends before it, the first panel again, whose tokens are zeros there
            if uint32(k_row + 64) < k:
                gmem = gmem + row_bytes * uint64(4)
            fetch_panel(uint32(slot + word + 4 * TILE_ROW_BYTES), gmem, row_bytes)
        group = uint32(0)
        if not per_channel:
            group = uint32(k_row // uint32(group_size))
            if lane_id < uint32(8 * scale_rows):
                row = uint64(group) * uint64(uint32(n * 2))
                cp_async_16(uint32(slot + factor), factors + row)
        if has_zeros and lane_id < uint32(2 * zero_rows):
            cp_async_16(uint32(slot + zero), zeros + uint64(group) * uint64(uint32(n >> 1)))

    @cuda.jit(device=True, inline="always")
    def fetch_x(to, gmem, row, rows, k_row, x_limit, x_columns):
        """Begin to copy a stage's tokens for this warpgroup; what is past M or K becomes zeros."""
        for i in range(x_copies):
            for panel in range(panels):
                size_bytes = uint32(0)
                if uint32(k_row + panel * 64) < x_limit and uint32(row + i * 16) < rows:
                    size_bytes = uint32(16)
                place = uint32(to + panel * panel_bytes + i * (16 * ROW_BYTES))
                cp_async_16_zfill(place, gmem + uint64(panel * 128), size_bytes)
            gmem = gmem + uint64(uint32(x_columns * 32))

    @cuda.jit(device=True, inline="always")
    def settle(slice_id, k_step, k_stop, group_k, end, k_steps):
        """Return this step or the group's first of a later slice; k_stop is 0 if none is left."""
        while k_step >= k_stop and k_stop > uint32(0):
            slice_id, k_stop = next_segment(slice_id, k_stop, end, k_steps)
            k_step = group_k
        return slice_id, k_step, k_stop

    def decode_wgmma(
        x, packed, scales, zero_points, bias, out, slots,
        m, n, k, x_columns, out_columns, units_per_block, has_bias,
    ):  # fmt: skip
        # index: which stripe, which tokens, which step
        smem = smem_base()
        tid = thread_id()
        # from one lane: so the compiler knows it, and where the ring lies, for the same in a warp
        group_k = shfl_idx(uint32(tid >> 7), uint32(0))
        _, unit, end, k_steps = stripe_of(n, k, units_per_block)
        first_row = uint32(uint32(cuda.blockIdx.y) * tile_m)
        rows = uint32(m - first_row)
        slice_id = uint32(unit // k_steps)
        k_step = uint32(unit - uint32(slice_id * k_steps))
        k_stop = uint32(k_step + uint32(end - unit))
        if k_stop > k_steps:
            k_stop = k_steps
        ring = uint32(smem + group_k * ring_bytes)
        # where this thread's first piece of a stage's tokens comes from
        x_row, x_column = uint32(uint32(tid & 127) >> 3), uint32((tid & 7) * 8)
        x_lane = x + (
            (uint64(uint32(first_row + x_row)) * uint64(x_columns) + uint64(x_column)) << 1
        )
        # K from which on this thread's pieces are past the end
        x_limit = uint32(x_columns - x_column) if x_column < x_columns else uint32(0)
        places = places_of()
        # warps lie side by side, and so do the eight sets of columns that lanes share
        scale_place = uint32(s_offset + uint32(uint32(tid & 127) >> 2) * 16)
        zero_place = uint32(z_offset + uint32(uint32(tid & 127) >> 2) * 4)
        barrier = uint32(group_k + 1)

        # prologue: load weights; then, when the launch before has ended, the tokens
        step = uint32(k_step + group_k)
        next_slice, next_step, next_stop = settle(slice_id, step, k_stop, group_k, end, k_steps)
        x_slice, x_step, x_stop = next_slice, next_step, next_stop
        row_bytes = uint64(uint32(n * 8))
        words, factors, zeros = aim(packed, scales, zero_points, n, next_slice, next_step)
        slot = ring
        for _ in range(ahead):
            if next_stop > uint32(0):
                k_row = uint32(next_step * tile_k)
                fetch_weights(slot, places, (words, factors, zeros), n, k, k_row)
                next_step = uint32(next_step + groups_k)
                words = words + row_bytes * uint64(k_tiles * groups_k)
                if next_step >= next_stop:
                    next_slice, next_step, next_stop = settle(
                        next_slice, next_step, next_stop, group_k, end, k_steps
                    )
                    words, factors, zeros = aim(
                        packed, scales, zero_points, n, next_slice, next_step
                    )
            slot = uint32(slot + stage_bytes)
        if early:
            if next_stop == uint32(0):
                griddepcontrol_launch_dependents()
            griddepcontrol_wait()
        at = ring
        for _ in range(ahead):
            if x_stop > uint32(0):
                tokens = x_lane + uint64(uint32(x_step * (2 * tile_k)))
                k_row = uint32(x_step * tile_k)
                fetch_x(uint32(at + places[3]), tokens, x_row, rows, k_row, x_limit, x_columns)
                x_slice, x_step, x_stop = settle(
                    x_slice, uint32(x_step + groups_k), x_stop, group_k, end, k_steps
                )
            # the first group has all of the weights too, which were begun long before
            cp_async_commit()
            at = uint32(at + stage_bytes)
        tokens = x_lane + uint64(uint32(next_step * (2 * tile_k)))
        at = ring
        while k_stop > uint32(0):
            acc = splat(float32(0))
            while step < k_stop:
                # turns until this segment ends, or the one that is being loaded
                turns = uint32(uint32(k_stop - step + (groups_k - 1)) // uint32(groups_k))
                more = next_stop > uint32(0)
                if more:
                    left = uint32(next_stop - next_step + (groups_k - 1))
                    left = uint32(left // uint32(groups_k))
                    turns = left if left < turns else turns
                step = uint32(step + turns * groups_k)
                row = uint32(next_step * tile_k)
                next_step = uint32(next_step + turns * groups_k)

                # main loop: one stage a turn; the copies run some stages ahead, across slices
                while turns > uint32(0):
                    cp_async_wait(in_flight)
                    # wgmma reads shared memory through another proxy than cp.async writes it
                    fence_proxy_async_shared()
                    # and all warps have done with the slot that is filled next
                    bar_sync(barrier, uint32(128))
                    if more:
                        fetch_weights(slot, places, (words, factors, zeros), n, k, row)
                        to = uint32(slot + places[3])
                        fetch_x(to, tokens, x_row, rows, row, x_limit, x_columns)
                        row = uint32(row + tile_k * groups_k)
                        words = words + row_bytes * uint64(k_tiles * groups_k)
                        tokens = tokens + uint64(2 * tile_k * groups_k)
                    cp_async_commit()
                    scale, zero = uint32(at + scale_place), uint32(at + zero_place)
                    acc = multiply(uint32(at + places[0]), scale, zero, describe(at), acc)
                    slot = at
                    at = uint32(at + stage_bytes)
                    if at == uint32(ring + ring_bytes):
                        at = ring
                    turns = uint32(turns - 1)
                if more and next_step >= next_stop:
                    _, _, end, k_steps = stripe_of(n, k, units_per_block)
                    next_slice, next_step, next_stop = settle(
                        next_slice, next_step, next_stop, group_k, end, k_steps
                    )
                    words, factors, zeros = aim(
                        packed, scales, zero_points, n, next_slice, next_step
                    )
                    tokens = x_lane + uint64(uint32(next_step * (2 * tile_k)))
                    if early and next_stop == uint32(0):
                        griddepcontrol_launch_dependents()

            sizes = (out_columns, units_per_block)
            finish(acc, slice_id, scales, bias, out, slots, m, n, k, sizes, has_bias)
            _, _, end, k_steps = stripe_of(n, k, units_per_block)
            slice_id, k_stop = next_segment(slice_id, k_stop, end, k_steps)
            step = group_k

    return decode_wgmma
