"""Which steps a block of grouped_decode has, and what the work list says of them."""

from typing import NamedTuple

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.grouped_decode.kernel import HANDOFF_BYTES
from ferrum_numba.kernels.shared.stripes import DeviceFunction, stripe_bounds
from ferrum_numba.kernels.shared.work_list import HEADER
from ferrum_numba.ptx.memory import ld_global_u32
from ferrum_numba.ptx.special import block_id, block_id_y, thread_id

# in place of a row of x where there is none
NO_ROW = 0xFFFFFFFF


class Schedule(NamedTuple):
    """What is a block's.

    A slice is tile_n columns of one block of the list; `work` is (list, num_experts, num_pairs,
    max_blocks, first_block, most_blocks).

    stripe_of:    (work, n, k) -> its first step, the one after its last, steps of a slice
    stripe_steps: (work, n, k) -> steps of a stripe
    place_of:     (work, n, slice) -> the block of the list, and the slice's number in it
    expert_of:    (work, block) -> its expert
    rows_of:      (work, block) -> how many rows it has
    pair_of:      (work, block, row) -> the number of a row's pair
    warp_along_k: () -> which of the warps along K this is: its first step of a slice
    """

    stripe_of: DeviceFunction
    stripe_steps: DeviceFunction
    place_of: DeviceFunction
    expert_of: DeviceFunction
    rows_of: DeviceFunction
    pair_of: DeviceFunction
    warp_along_k: DeviceFunction


def make_schedule(config):
    """Return the schedule of a config."""
    tile_m, tile_n, step_k, direct = config.tile_m, config.tile_n, config.step_k, config.direct
    warps_n, blocks_per_sm = config.warps_n, config.blocks_per_sm
    most_more = HANDOFF_BYTES // (step_k * tile_n // 2 * blocks_per_sm)

    @cuda.jit(device=True, forceinline=True)
    def read(address, index):
        return ld_global_u32(address + (uint64(index) << 2))

    @cuda.jit(device=True, forceinline=True)
    def first_block_of(work):
        return uint32(work[4] + block_id_y())

    @cuda.jit(device=True, forceinline=True)
    def num_slices(work, n):
        """Return how many slices this row of blocks has, after its first."""
        count, first = work[2], first_block_of(work)
        if not direct:
            count = read(work[0], uint32(0))
        left = uint32(count - first) if count > first else uint32(0)
        left = left if left < work[5] else work[5]
        return uint32(left * uint32(n // uint32(tile_n)))

    @cuda.jit(device=True, forceinline=True)
    def steps_of(num_steps, k_steps):
        """Return the steps of a stripe: as many as give all blocks the same."""
        blocks = uint32(cuda.gridDim.x)
        steps = uint32(uint32(num_steps + uint32(blocks - 1)) // blocks)
        # a stripe of whole slices needs nobody's sums
        over = uint32(steps % k_steps)
        more = uint32(k_steps - over)
        if over > 0 and more <= uint32(most_more):
            steps = uint32(steps + more)
        return steps

    @cuda.jit(device=True, forceinline=True)
    def stripe_steps(work, n, k):
        k_steps = uint32(k // uint32(step_k))
        return steps_of(uint32(num_slices(work, n) * k_steps), k_steps)

    @cuda.jit(device=True, forceinline=True)
    def stripe_of(work, n, k):
        # found again where it is needed: kept, it would cost the main loop its registers
        k_steps = uint32(k // uint32(step_k))
        num_steps = uint32(num_slices(work, n) * k_steps)
        steps = steps_of(num_steps, k_steps)
        # beyond the last stripe there is none
        if uint32(block_id() * steps) >= num_steps:
            return num_steps, num_steps, k_steps
        first, end = stripe_bounds(block_id(), steps, num_steps)
        return first, end, k_steps

    @cuda.jit(device=True, forceinline=True)
    def place_of(work, n, slice_id):
        slices = uint32(n // uint32(tile_n))
        block = uint32(slice_id // slices)
        return uint32(first_block_of(work) + block), uint32(slice_id - uint32(block * slices))

    @cuda.jit(device=True, forceinline=True)
    def is_expert(work, expert):
        return expert < work[1]

    @cuda.jit(device=True, forceinline=True)
    def expert_of(work, block):
        if direct:
            expert = read(work[0], block)
            # of a dropped pair the weight of another expert is multiplied, and nothing written
            return expert if is_expert(work, expert) else uint32(0)
        return read(work[0], uint32(HEADER + block))

    @cuda.jit(device=True, forceinline=True)
    def rows_of(work, block):
        if direct:
            return uint32(1) if is_expert(work, read(work[0], block)) else uint32(0)
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
        stripe_of, stripe_steps, place_of, expert_of, rows_of, pair_of, warp_along_k
    )
