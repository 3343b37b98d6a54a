"""What becomes of the sums of kernels/prefill.py: added over the blocks, rounded, written."""

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.prefill_schedule import make_schedule
from ferrum_numba.ptx.accumulator import store_accumulator_transposed
from ferrum_numba.ptx.convert import bf16_to_f32, f16_to_f32
from ferrum_numba.ptx.memory import (
    ld_acquire_gpu,
    ld_global_nc_u16,
    ld_shared_v4,
    red_add_release_gpu,
    st_global_u32,
    st_global_v4,
)
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import bar_sync, fence_acq_rel_gpu
from ferrum_numba.ptx.tile import add_tile, store_tile


def make_sum_of_blocks(config):
    """Return what adds the sums of all blocks that share a tile."""
    strips, acc_floats = config.strips, config.tile_m // 2
    slot_bytes, slot_acc_bytes = config.tile_m * config.tile_n * 4, acc_floats * 512
    store_partial = store_tile("global", acc_floats, 2048)
    add_partial = add_tile("global", acc_floats, 2048)

    @cuda.jit(device=True, inline="always")
    def store_sums(gmem, acc):
        store_partial(gmem, acc[0])
        if strips > 1:
            store_partial(gmem + slot_acc_bytes, acc[1])
        if strips > 2:
            store_partial(gmem + 2 * slot_acc_bytes, acc[2])
            store_partial(gmem + 3 * slot_acc_bytes, acc[3])

    @cuda.jit(device=True, inline="always")
    def add_sums(gmem, acc):
        acc0 = add_partial(gmem, acc[0])
        if strips == 1:
            return (acc0,)
        acc1 = add_partial(gmem + slot_acc_bytes, acc[1])
        if strips == 2:
            return acc0, acc1
        acc2 = add_partial(gmem + 2 * slot_acc_bytes, acc[2])
        return acc0, acc1, acc2, add_partial(gmem + 3 * slot_acc_bytes, acc[3])

    @cuda.jit(device=True, inline="always")
    def sum_of_blocks(acc, partials, counters, tile, k_tiles, stripe, block, k_first):
        """Return whether this block has a tile's first k, and then the sum, in block order.

        It waits for blocks of smaller index than its own in the grid, which began no later.
        """
        warpgroup = uint32(uint32(cuda.threadIdx.x) >> 7)
        thread = uint32(uint32(cuda.threadIdx.x) & 127)
        counter = counters + (uint64(uint32(tile * 2 + warpgroup)) << 2)
        place = partials + uint64(uint32(warpgroup * (strips * slot_acc_bytes) + thread * 16))
        if k_first > uint32(0):
            store_sums(place + uint64(block) * uint64(slot_bytes), acc)
            bar_sync(uint32(1 + warpgroup), uint32(128))
            if thread == uint32(0):
                fence_acq_rel_gpu()
                red_add_release_gpu(counter, uint32(1))
        else:
            last = uint32(uint32(uint32(tile + 1) * k_tiles - 1) // stripe)
            if thread == uint32(0):
                while ld_acquire_gpu(counter) != uint32(last - block):
                    pass
                st_global_u32(counter, uint32(0))  # ready for the next launch
            bar_sync(uint32(1 + warpgroup), uint32(128))
            fence_acq_rel_gpu()
            other = uint32(block + 1)
            while other <= last:
                acc = add_sums(place + uint64(other) * uint64(slot_bytes), acc)
                other = uint32(other + 1)
        return acc

    return sum_of_blocks


def make_load_strips(config):
    """Return what loads the factors and the bias of a warp's columns."""
    strips, per_channel = config.strips, config.group_size < 0
    widen = {"fp16": f16_to_f32, "bf16": bf16_to_f32}[config.dtype]

    @cuda.jit(device=True, inline="always")
    def load_pair(gmem, column, strip):
        """Return the fp32 values of columns lane / 4 and lane / 4 + 8 of a strip.

        They lie where `permute_scales` of one group puts them.
        """
        g = uint32(uint32(uint32(cuda.threadIdx.x) & 31) >> 2)
        place = uint32(column + (strip >> 1) * 32 + (g >> 1) * 8 + (strip & 1) * 4 + (g & 1))
        at = gmem + (uint64(place) << 1)
        return widen(ld_global_nc_u16(at)), widen(ld_global_nc_u16(at + 4))

    @cuda.jit(device=True, inline="always")
    def load_strip(scales, bias, column, strip, has_bias):
        """Return what the sums of a strip are multiplied by, and what is added."""
        scale = (float32(1), float32(1))
        if per_channel:
            scale = load_pair(scales, column, strip)
        shift = (float32(0), float32(0))
        if has_bias > uint32(0):
            shift = load_pair(bias, column, strip)
        return scale, shift

    @cuda.jit(device=True, inline="always")
    def load_strips(scales, bias, column, strip, has_bias):
        """Return `load_strip` of each strip of the warp."""
        first = load_strip(scales, bias, column, strip, has_bias)
        if strips == 1:
            return (first,)
        second = load_strip(scales, bias, column, uint32(strip + 1), has_bias)
        if strips == 2:
            return first, second
        third = load_strip(scales, bias, column, uint32(strip + 2), has_bias)
        return first, second, third, load_strip(scales, bias, column, uint32(strip + 3), has_bias)

    return load_strips


def make_store_result(config):
    """Return what writes a tile; a warpgroup's columns leave together, `part_rows` rows at once."""
    tile_m, strips, out_row_bytes = config.tile_m, config.strips, config.out_row_bytes
    out_pieces, rows_at_once = 8 * strips, 16 // strips
    out_offset, part_rows, part_bytes = config.out_offset, config.part_rows, config.part_bytes
    parts = -(-tile_m // part_rows)
    store_out0, store_out1, store_out2, store_out3 = (
        store_accumulator_transposed(
            tile_m,
            out_row_bytes,
            HALVES[config.dtype],
            i * part_rows,
            min(tile_m, (i + 1) * part_rows),
        )
        for i in range(4)
    )
    _, corner, clamp, *_ = make_schedule(config)
    load_strips = make_load_strips(config)

    @cuda.jit(device=True, inline="always")
    def stage_strip(part, to, acc, columns):
        """Round a part's rows of a strip into shared memory, transposed."""
        scale, shift = columns
        if part == 0:
            store_out0(to, acc, scale, shift)
        elif part == 1:
            store_out1(to, acc, scale, shift)
        elif part == 2:
            store_out2(to, acc, scale, shift)
        else:
            store_out3(to, acc, scale, shift)

    @cuda.jit(device=True, inline="always")
    def store_part(part, acc, columns, smem, gmem, target):
        """Round a part of the rows, and write them: registers -> smem as rows -> gmem."""
        to, start_row = smem
        inside, row, m, step = target
        warpgroup = uint32(uint32(cuda.threadIdx.x) >> 7)
        bar_sync(uint32(1 + warpgroup), uint32(128))  # what was here before has left
        stage_strip(part, to, acc[0], columns[0])
        if strips > 1:
            stage_strip(part, to + 32, acc[1], columns[1])
        if strips > 2:
            stage_strip(part, to + 64, acc[2], columns[2])
            stage_strip(part, to + 96, acc[3], columns[3])
        bar_sync(uint32(1 + warpgroup), uint32(128))
        rows = part_rows if part + 1 < parts else tile_m - (parts - 1) * part_rows
        for i in range(rows // rows_at_once):
            if inside and uint32(row + i * rows_at_once) < m:
                st_global_v4(gmem, ld_shared_v4(start_row + i * (rows_at_once * out_row_bytes)))
            gmem = gmem + step
        return gmem, uint32(row + rows)

    @cuda.jit(device=True, inline="always")
    def store_result(acc, out, scales, bias, tile, sizes, has_bias):
        """Write a tile, part after part."""
        m, n, out_columns = sizes
        row, nominal = corner(tile, m, n)
        tid = uint32(cuda.threadIdx.x)
        warpgroup, lane_id, thread = uint32(tid >> 7), uint32(tid & 31), uint32(tid & 127)
        column = clamp(nominal, n)
        columns = load_strips(scales, bias, column, uint32((tid >> 5) * strips), has_bias)
        stage = uint32(smem_base() + out_offset + warpgroup * part_bytes)
        to = uint32(((lane_id >> 4) * 8 + (lane_id & 7)) * out_row_bytes)
        to = uint32(stage + to + ((tid >> 5) & 3) * (32 * strips) + ((lane_id >> 3) & 1) * 16)
        r, c = uint32(thread // uint32(out_pieces)), uint32(thread % uint32(out_pieces))
        smem = (to, uint32(stage + r * out_row_bytes + c * 16))
        column = uint32(column + warpgroup * (64 * strips) + c * 8)
        row = uint32(row + r)
        # what the tile before has too is that tile's to write
        inside = column >= nominal and column < out_columns
        gmem = out + ((uint64(row) * out_columns + uint64(column)) << 1)
        step = uint64(out_columns) * uint64(rows_at_once * 2)
        gmem, row = store_part(0, acc, columns, smem, gmem, (inside, row, m, step))
        if parts > 1:
            gmem, row = store_part(1, acc, columns, smem, gmem, (inside, row, m, step))
        if parts > 2:
            gmem, row = store_part(2, acc, columns, smem, gmem, (inside, row, m, step))
        if parts > 3:
            store_part(3, acc, columns, smem, gmem, (inside, row, m, step))

    return store_result
