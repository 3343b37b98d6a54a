"""In which order the blocks of a list are taken where those of few pairs take less time.

Tiles are dealt out as if all took the same time. So blocks with more than `short_m` pairs come
first, in the list's order, then the others: but for one wave, tiles that run at the same time do
take the same time.
"""

from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.kernels.shared.work_list import HEADER, NUM_BLOCKS
from ferrum_numba.ptx.arithmetic import popc
from ferrum_numba.ptx.memory import ld_global_cg_u32, ld_shared_u32, st_shared_u32
from ferrum_numba.ptx.shuffle import ballot
from ferrum_numba.ptx.special import smem_base, thread_id


def make_order(config):
    """Return (order_blocks, row_of): who comes when, and the row that a block really begins with.

    Blocks of the list from the `most_ordered`-th on stay where they are: they are so many that it
    does not matter.
    """
    tile_m, short_m = config.tile_m, config.short_m
    order_offset, most_ordered = config.order_offset, config.most_ordered

    @cuda.jit(device=True, forceinline=True)
    def load_rows(work_list, max_blocks, block, end):
        rows = uint32(0)
        if block < end:
            rows = ld_global_cg_u32(work_list + (uint64(uint32(block + max_blocks + HEADER)) << 2))
        return rows

    @cuda.jit(device=True, forceinline=True)
    def put(block, rows, end, full, short):
        """Write a lane's block to its place; return how many full and short ones there are so far.

        end: where the short ones end, which are counted backwards
        """
        below = uint32(uint32(uint32(1) << uint32(thread_id() & 31)) - 1)
        fulls = ballot(uint32(rows > short_m))
        shorts = ballot(uint32(rows > 0 and rows <= short_m))
        place = uint32(full + popc(uint32(fulls & below)))
        if rows <= short_m:
            place = uint32(uint32(end - 1) - uint32(short + popc(uint32(shorts & below))))
        if rows > 0:
            st_shared_u32(uint32(smem_base() + order_offset + place * 4), block)
        return uint32(full + popc(fulls)), uint32(short + popc(shorts))

    @cuda.jit(device=True, forceinline=True)
    def order_blocks(work_list, max_blocks):
        """Write which block comes at which place, by one warp."""
        end = ld_global_cg_u32(work_list + uint64(4 * NUM_BLOCKS))
        if end > most_ordered:
            end = uint32(most_ordered)
        block, full, short = uint32(thread_id() & 31), uint32(0), uint32(0)
        while uint32(block & uint32(0xFFFFFFE0)) < end:
            # four in flight: a warp waits for each
            rows0 = load_rows(work_list, max_blocks, block, end)
            rows1 = load_rows(work_list, max_blocks, uint32(block + 32), end)
            rows2 = load_rows(work_list, max_blocks, uint32(block + 64), end)
            rows3 = load_rows(work_list, max_blocks, uint32(block + 96), end)
            full, short = put(block, rows0, end, full, short)
            full, short = put(uint32(block + 32), rows1, end, full, short)
            full, short = put(uint32(block + 64), rows2, end, full, short)
            full, short = put(uint32(block + 96), rows3, end, full, short)
            block = uint32(block + 128)

    @cuda.jit(device=True, forceinline=True)
    def row_of(row):
        """Return where in the list the block begins that is taken in the place of row's."""
        block = uint32(row // uint32(tile_m))
        if block < most_ordered:
            block = ld_shared_u32(uint32(smem_base() + order_offset + block * 4))
        return uint32(block * tile_m)

    return order_blocks, row_of
