"""Which tiles are whose: dealt out by the blocks that have begun, for a list that they read."""

from typing import NamedTuple

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.shared.stripes import DeviceFunction
from ferrum_numba.kernels.shared.work_list import HEADER, NUM_PADDED
from ferrum_numba.ptx.memory import ld_global_cg_u32, ld_shared_v4, st_shared_v4
from ferrum_numba.ptx.special import smem_base


class Deal(NamedTuple):
    """What of a work list is a block's to know.

    publish:    (work_list, n, k_steps) -> None: read the list and say what follows, by one thread
    dealt:      () -> rows of the list with their padding, tiles, steps of a stripe, striped tiles
    expert_of:  (work_list, row) -> the expert of the list's block that begins with a row
    rows_of:    (work_list, max_blocks, row) -> how many pairs that block has
    pair_at:    (work_list, max_blocks, row) -> the number of a row's pair
    slot_of:    turn -> where the pairs of this block's tile of that turn lie, the barrier that says
                so, and the parity of its phase
    """

    publish: DeviceFunction
    dealt: DeviceFunction
    expert_of: DeviceFunction
    rows_of: DeviceFunction
    pair_at: DeviceFunction
    slot_of: DeviceFunction


def make_deal(config, schedule):
    """Return what reads a list whose blocks are the rows of tiles.

    A tile's row is the row of the list that its block begins with. So prefill's schedule has the
    tiles in bands: blocks that follow each other, which share an expert's columns, then the next
    columns.
    """
    tile_m, stripes, deal_offset = config.tile_m, config.stripes, config.deal_offset
    num_tiles, num_slots = schedule.num_tiles, config.num_slots
    slots_offset, slot_bytes = config.slots_offset, config.slot_bytes
    slot_bars_offset = config.slot_bars_offset

    @cuda.jit(device=True, forceinline=True)
    def cut_left(tiles, k_steps):
        """Return the steps of a stripe and how many tiles are striped: what cut.py does on hosts.

        Those that fill no wave are, and one wave more, so that every block has some of them.
        """
        stripe_steps, striped_tiles = uint32(0), uint32(0)
        if stripes:
            blocks = uint32(cuda.gridDim.x)
            waves = uint32(tiles // blocks)
            if tiles > uint32(waves * blocks):
                striped_tiles = tiles
                if waves > 1:
                    striped_tiles = uint32(tiles - uint32(uint32(waves - 1) * blocks))
                steps = uint32(striped_tiles * k_steps)
                stripe_steps = uint32(uint32(steps + uint32(blocks - 1)) // blocks)
        return stripe_steps, striped_tiles

    @cuda.jit(device=True, forceinline=True)
    def publish(work_list, n, k_steps):
        m = ld_global_cg_u32(work_list + uint64(4 * NUM_PADDED))
        tiles = num_tiles(m, n)
        stripe_steps, striped_tiles = cut_left(tiles, k_steps)
        st_shared_v4(uint32(smem_base() + deal_offset), (m, tiles, stripe_steps, striped_tiles))

    @cuda.jit(device=True, forceinline=True)
    def dealt():
        """Read it again wherever it is asked for: kept, it would cost the main loop registers."""
        return ld_shared_v4(uint32(smem_base() + deal_offset))

    @cuda.jit(device=True, forceinline=True)
    def expert_of(work_list, row):
        block = uint32(row // uint32(tile_m))
        return ld_global_cg_u32(work_list + (uint64(uint32(block + HEADER)) << 2))

    @cuda.jit(device=True, forceinline=True)
    def rows_of(work_list, max_blocks, row):
        block = uint32(uint32(row // uint32(tile_m)) + max_blocks)
        return ld_global_cg_u32(work_list + (uint64(uint32(block + HEADER)) << 2))

    @cuda.jit(device=True, forceinline=True)
    def pair_at(work_list, max_blocks, row):
        place = uint64(uint32(max_blocks * 2 + HEADER)) + uint64(row)
        return ld_global_cg_u32(work_list + (place << 2))

    @cuda.jit(device=True, forceinline=True)
    def slot_of(turn):
        smem, slot = smem_base(), uint32(turn % uint32(num_slots))
        at = uint32(smem + slots_offset + slot * slot_bytes)
        bar = uint32(smem + slot_bars_offset + slot * 16)
        return at, bar, uint32(uint32(turn // uint32(num_slots)) & 1)

    return Deal(publish, dealt, expert_of, rows_of, pair_at, slot_of)
