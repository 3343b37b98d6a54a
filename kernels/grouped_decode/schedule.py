"""Which steps a block of grouped_decode has, and what the work list says of them."""

from typing import NamedTuple

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.shared.stripes import DeviceFunction
from ferrum_numba.kernels.shared.work_list import HEADER, NUM_BLOCKS
from ferrum_numba.ptx.memory import ld_global_u32, ld_shared_u32, st_shared_u32
from ferrum_numba.ptx.special import block_id, block_id_y, smem_base, thread_id
from ferrum_numba.ptx.sync import bar_warp_sync

# in place of a row of x where there is none
NO_ROW = 0xFFFFFFFF


class Schedule(NamedTuple):
    """What is a block's.

    A slice is tile_n columns of one block of the list; `work` is (list, num_experts, num_pairs,
    max_blocks, stripe_units, longer_stripes,
    first_block).

    find_stripe:   (work, n, k): find this block's steps, and keep them in shared memory
    kept_stripe:   () -> its first step, and the one after its last
    steps_of_slice: (k) -> steps of a slice
    first_stripe:  (work, n, k, step) -> the number of the stripe that has a step
    place_of:      (work, n, slice) -> the block of the list, and the slice's number in it
    expert_of:     (work, block) -> its expert
    rows_of:       (work, block) -> how many rows it has
    pair_of:       (work, block, row) -> the number of a row's pair
    own_place:     () -> where this warp keeps rows of x in shared memory
    warp_along_k:  () -> which of the warps along K this is: its first step of a slice
    """

    find_stripe: DeviceFunction
    kept_stripe: DeviceFunction
    steps_of_slice: DeviceFunction
    first_stripe: DeviceFunction
    place_of: DeviceFunction
    expert_of: DeviceFunction
    rows_of: DeviceFunction
    pair_of: DeviceFunction
    own_place: DeviceFunction
    warp_along_k: DeviceFunction


def make_schedule(config):
    """Return the schedule of a config."""
    tile_m, tile_n, step_k = config.tile_m, config.tile_n, config.step_k
    direct, whole, buckets = config.direct, config.whole, config.buckets
    warps_n, own_offset, own_bytes = config.warps_n, config.own_offset, config.own_bytes

    @cuda.jit(device=True, forceinline=True)
    def read(address, index):
        return ld_global_u32(address + (uint64(index) << 2))

    @cuda.jit(device=True, forceinline=True)
    def num_blocks(work):
        """Return how many blocks of the list there are."""
        return work[2] if direct else read(work[0], uint32(NUM_BLOCKS))

    @cuda.jit(device=True, forceinline=True)
    def steps_of_slice(k):
        return uint32(k // uint32(step_k))

    @cuda.jit(device=True, forceinline=True)
    def cut(work, n, k):
        """Return how the steps are cut: units of a stripe, stripes that have one more, and a unit.

        A unit is a step, or all steps of a slice.
        """
        unit = steps_of_slice(k) if whole else uint32(1)
        if buckets:
            return work[4], work[5], unit
        units = uint32(num_blocks(work) * uint32(n // uint32(tile_n)))
        if not whole:
            units = uint32(units * steps_of_slice(k))
        stripes = uint32(cuda.gridDim.x)
        each = uint32(units // stripes)
        return each, uint32(units - uint32(each * stripes)), unit

    @cuda.jit(device=True, forceinline=True)
    def own_place():
        return uint32(smem_base() + own_offset + uint32(thread_id() >> 5) * own_bytes)

    @cuda.jit(device=True, forceinline=True)
    def bucket_of(work):
        """Return the block of the list that all of this row's blocks have."""
        return uint32(work[6] + block_id_y())

    @cuda.jit(device=True, forceinline=True)
    def find_stripe(work, n, k):
        each, longer, unit = cut(work, n, k)
        index = block_id()
        before = index if index < longer else longer
        first = uint32(uint32(index * each) + before)
        count = uint32(each + 1) if index < longer else each
        if buckets and not direct and bucket_of(work) >= num_blocks(work):
            count = uint32(0)
        first, end = uint32(first * unit), uint32(uint32(first + count) * unit)
        # found once: it takes a division, and registers in the main loop
        place = own_place()
        if uint32(thread_id() & 31) == 0:
            st_shared_u32(place, first)
            st_shared_u32(uint32(place + 4), end)
        bar_warp_sync()
        return first, end

    @cuda.jit(device=True, forceinline=True)
    def kept_stripe():
        place = own_place()
        return ld_shared_u32(place), ld_shared_u32(uint32(place + 4))

    @cuda.jit(device=True, forceinline=True)
    def first_stripe(work, n, k, step):
        each, longer, unit = cut(work, n, k)
        step = uint32(step // unit)
        end_of_longer = uint32(longer * uint32(each + 1))
        if step < end_of_longer:
            return uint32(step // uint32(each + 1))
        return uint32(longer + uint32(uint32(step - end_of_longer) // each))

    @cuda.jit(device=True, forceinline=True)
    def place_of(work, n, slice_id):
        if buckets:
            return bucket_of(work), slice_id
        slices = uint32(n // uint32(tile_n))
        block = uint32(slice_id // slices)
        return block, uint32(slice_id - uint32(block * slices))

    @cuda.jit(device=True, forceinline=True)
    def expert_of(work, block):
        if direct:
            expert = read(work[0], block)
            # of a dropped pair the weight of another expert is multiplied, and nothing written
            return expert if expert < work[1] else uint32(0)
        return read(work[0], uint32(HEADER + block))

    @cuda.jit(device=True, forceinline=True)
    def rows_of(work, block):
        if direct:
            return uint32(1) if read(work[0], block) < work[1] else uint32(0)
        return read(work[0], uint32(HEADER + uint32(work[3] + block)))

    @cuda.jit(device=True, forceinline=True)
    def pair_of(work, block, row):
        if direct:
            return block if row == 0 else uint32(NO_ROW)
        place = uint32(uint32(work[3] * 2) + uint32(block * uint32(tile_m) + row))
        return read(work[0], uint32(HEADER + place))

    @cuda.jit(device=True, forceinline=True)
    def warp_along_k():
        return uint32(uint32(thread_id() >> 5) // uint32(warps_n))

    return Schedule(
        find_stripe, kept_stripe, steps_of_slice, first_stripe, place_of, expert_of, rows_of,
        pair_of, own_place, warp_along_k,
    )  # fmt: skip
