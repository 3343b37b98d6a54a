"""What becomes of marlin's sums: added over warps and blocks, scaled, rounded, written."""

from typing import NamedTuple

from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.kernels.dtypes import HALVES
from ferrum_numba.kernels.shared.stripes import DeviceFunction
from ferrum_numba.kernels.shared.tile import add_tile, store_tile, store_tile_rounded
from ferrum_numba.ptx.convert import UNPACK, splat_f32
from ferrum_numba.ptx.memory import (
    atom_add_acq_rel_gpu,
    ld_global_nc_v2,
    ld_global_nc_v4,
    ld_shared_u32,
    ld_shared_v4,
    st_global_u32,
    st_global_v4,
    st_shared_u32,
)
from ferrum_numba.ptx.sync import fence_acq_rel_gpu


class Result(NamedTuple):
    """Device functions, in the order in which they are called; see their docstrings."""

    sum_of_warps: DeviceFunction
    sum_of_blocks: DeviceFunction
    scale_and_bias: DeviceFunction
    store_result: DeviceFunction


def make_result(config):
    """Return the functions of a config."""
    tile_m, tile_n, num_threads = config.tile_m, config.tile_n, config.num_threads
    warps_n, warps_k, m_blocks = tile_n // 64, config.warps_k, tile_m // 16
    per_channel, half = config.group_size < 0, HALVES[config.dtype]
    unpack = UNPACK[half]
    flag_offset = config.smem_bytes - 16
    # a warp's sums are four accumulators of a 16-column strip each, in 16-byte pieces of all lanes;
    # after the reduction a warp owns `strips` of them
    acc_floats = 8 * m_blocks
    acc_bytes = acc_floats * 128
    warp_bytes = 4 * acc_bytes
    slot_bytes = tile_m * tile_n * 4
    strips = 4 // warps_k
    own_floats = strips * acc_floats
    out_row_bytes = tile_n * 2 + 16  # 16: rows start four banks apart
    out_row_pieces = tile_n // 8

    zeros_own = splat_f32(own_floats)
    ones_own = splat_f32(4 * strips)
    store_sums = store_tile("shared", acc_floats, 512)
    add_sums = add_tile("shared", own_floats, 512)
    store_partial = store_tile("global", own_floats, 512)
    add_partial = add_tile("global", own_floats, 512)
    store_out = store_tile_rounded(m_blocks, strips, out_row_bytes, half)

    @cuda.jit(device=True, forceinline=True)
    def unpack_pairs(first, second):
        low = unpack(first)
        high = unpack(second)
        return low[0], low[1], high[0], high[1]

    @cuda.jit(device=True, forceinline=True)
    def load_columns(gmem):
        """Return the fp32 values of the columns a lane owns in the epilogue, in fragment order."""
        if strips == 1:
            pairs = ld_global_nc_v2(gmem)
            return unpack_pairs(pairs[0], pairs[1])
        pairs = ld_global_nc_v4(gmem)
        return unpack_pairs(pairs[0], pairs[1]) + unpack_pairs(pairs[2], pairs[3])

    @cuda.jit(device=True, forceinline=True)
    def sum_of_warps(ring_end, warps, acc):
        """Return the sum over the warps along K, in their order, of a warp's share of a strip."""
        lane_id, warp_n, warp_k = warps
        sums = uint32(ring_end + lane_id * 16)
        mine = uint32(sums + (warp_k * warps_n + warp_n) * warp_bytes)
        store_sums(mine, acc[0])
        store_sums(mine + acc_bytes, acc[1])
        store_sums(mine + 2 * acc_bytes, acc[2])
        store_sums(mine + 3 * acc_bytes, acc[3])
        cuda.syncthreads()
        own = zeros_own(float32(0))
        for i in range(warps_k):
            theirs = uint32(sums + (warp_n + i * warps_n) * warp_bytes)
            own = add_sums(theirs + warp_k * (warp_bytes // warps_k), own)
        return own

    @cuda.jit(device=True, forceinline=True)
    def sum_of_blocks(smem, partials, counter, warps, own, begin, k_steps, k_first, stripe_steps):
        """Return whether this block is the last of its slice, and then the sum, in block order."""
        lane_id, warp_n, warp_k = warps
        tid, bid = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        first_block = uint32(begin // stripe_steps)
        last_block = uint32(uint32(begin + k_steps - 1) // stripe_steps)
        place = uint32(warp_n * warp_bytes + warp_k * (warp_bytes // warps_k) + lane_id * 16)
        own_partial = partials + uint64(place)
        # a block keeps the slice it begins in its second slot, others in the first
        slot = uint32(bid * 2 + 1) if k_first == 0 else uint32(bid * 2)
        store_partial(own_partial + uint64(slot) * uint64(slot_bytes), own)
        cuda.syncthreads()
        if tid == 0:
            fence_acq_rel_gpu()
            st_shared_u32(smem + flag_offset, atom_add_acq_rel_gpu(counter, uint32(1)))
        cuda.syncthreads()
        complete = ld_shared_u32(smem + flag_offset) == uint32(last_block - first_block)
        if complete:
            fence_acq_rel_gpu()
            if tid == 0:
                st_global_u32(counter, uint32(0))  # ready for the next launch
            own = zeros_own(float32(0))
            block = first_block
            while block <= last_block:
                begins = uint32(block * stripe_steps) <= begin
                slot = uint32(block * 2 + 1) if begins else uint32(block * 2)
                own = add_partial(own_partial + uint64(slot) * uint64(slot_bytes), own)
                block = uint32(block + 1)
        return complete, own

    @cuda.jit(device=True, forceinline=True)
    def scale_and_bias(scales, bias, column, warps, has_bias):
        """Return what the sums of a lane's columns are multiplied by, and what is added."""
        lane_id, warp_n, warp_k = warps
        # where `permute_scales` of one group puts this lane's columns
        columns = uint32(column + warp_n * 64 + (lane_id & 3) * 8)
        if strips == 1:
            columns = uint32(columns + (warp_k >> 1) * 32 + (warp_k & 1) * 4)
        else:
            columns = uint32(columns + warp_k * 32)
        scale = ones_own(float32(1))
        if per_channel:
            scale = load_columns(scales + (uint64(columns) << 1))
        shift = ones_own(float32(0))
        if has_bias > 0:
            shift = load_columns(bias + (uint64(columns) << 1))
        return scale, shift

    @cuda.jit(device=True, forceinline=True)
    def store_result(tile_out, out, warps, own, scale, shift, row, column, m, out_columns):
        """Round, and write: registers -> smem as rows -> gmem."""
        lane_id, warp_n, warp_k = warps
        place = uint32(warp_n * 128 + warp_k * (32 * strips) + (lane_id & 3) * 4)
        store_out(tile_out + (lane_id >> 2) * out_row_bytes + place, own, scale, shift)
        cuda.syncthreads()
        piece = uint32(cuda.threadIdx.x)
        while piece < uint32(tile_m * out_row_pieces):
            r = uint32(piece // uint32(out_row_pieces))
            c = uint32(piece % uint32(out_row_pieces))
            if uint32(row + r) < m and uint32(column + c * 8) < out_columns:
                value = ld_shared_v4(tile_out + r * out_row_bytes + c * 16)
                to = uint64(uint32(row + r)) * out_columns + uint32(column + c * 8)
                st_global_v4(out + (to << 1), value)
            piece = uint32(piece + num_threads)

    return Result(sum_of_warps, sum_of_blocks, scale_and_bias, store_result)
