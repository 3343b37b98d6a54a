"""What all parts of prefill share: who does what, and the tiles in their order."""

from typing import NamedTuple

from numba import cuda
from numba.cuda.types import uint32

from ferrum_numba.kernels.shared import stripes
from ferrum_numba.kernels.shared.stripes import DeviceFunction
from ferrum_numba.ptx.special import block_id, cluster_ctarank

# bytes of a panel's rows of x, which are what the swizzle repeats in
ROW_BYTES = 128


class Schedule(NamedTuple):
    """What is a block's.

    A pair of blocks that share x is one unit, with a tile of twice the columns. A segment is what a
    unit does of one output tile: (tile, its first step, the one after its last, steps that are left
    in its stripe).

    num_tiles:     (m, n) -> output tiles
    corner:        (tile, m, n) -> its row, and its nominal first column
    own_column:    (nominal first column, n) -> the first column of this block's part
    unit_index:    () -> the number of this unit
    first_segment: (k_steps, stripe_steps, striped_tiles) -> a segment
    next_segment:  (tile, left, k_steps, striped_tiles) -> a segment
    advance:       (stage, phase) -> the next stage of the ring, and the parity of its phase
    """

    num_tiles: DeviceFunction
    corner: DeviceFunction
    own_column: DeviceFunction
    unit_index: DeviceFunction
    first_segment: DeviceFunction
    next_segment: DeviceFunction
    advance: DeviceFunction


def make_schedule(config):
    """Return the schedule of a config."""
    tile_m, num_stages = config.tile_m, config.num_stages
    raster, cluster, tile_n = config.raster, config.cluster, config.unit_n
    unit_blocks, pair, block_n = config.unit_blocks, config.pair, config.tile_n

    @cuda.jit(device=True, forceinline=True)
    def unit_index():
        """Return the number of this unit, which has those that began before it below it.

        It is found again wherever it is asked for: kept, it would cost the main loop a register.
        """
        return uint32(uint32(uint32(cuda.gridDim.x) - block_id() - 1) // uint32(unit_blocks))

    @cuda.jit(device=True, forceinline=True)
    def num_tiles(m, n):
        m_tiles = uint32(uint32(m + (tile_m - 1)) // uint32(tile_m))
        return uint32(uint32(uint32(n + (tile_n - 1)) // uint32(tile_n)) * m_tiles)

    @cuda.jit(device=True, forceinline=True)
    def corner(tile, m, n):
        """Return the row and the nominal first column of an output tile.

        Tiles go down `raster` rows of tiles, then right, then to the next such band: what runs at
        the same time shares rows of x and columns of the weight in L2.
        """
        m_tiles = uint32(uint32(m + (tile_m - 1)) // uint32(tile_m))
        n_tiles = uint32(uint32(n + (tile_n - 1)) // uint32(tile_n))
        band = uint32(tile // uint32(n_tiles * raster))
        place = uint32(tile - uint32(band * uint32(n_tiles * raster)))
        height = uint32(m_tiles - uint32(band * raster))
        if height > raster:
            height = uint32(raster)
        tile_column = uint32(place // height)
        tile_row = uint32(uint32(band * raster) + uint32(place - uint32(tile_column * height)))
        return uint32(tile_row * tile_m), uint32(tile_column * tile_n)

    @cuda.jit(device=True, forceinline=True)
    def own_column(column, n):
        """Return the first column of this block's part of a tile: the last tile is moved left.

        column: the nominal first one of the tile
        """
        if uint32(column + tile_n) > n:
            column = uint32(n - tile_n)
        if pair:
            column = uint32(column + cluster_ctarank() * block_n)
        return column

    @cuda.jit(device=True, forceinline=True)
    def first_segment(k_steps, stripe_steps, striped_tiles):
        """Return the segment that a block begins with."""
        if cluster > 1:
            # the blocks of a cluster have equal parts of one tile
            rank = cluster_ctarank()
            k_first = uint32(uint32(rank * k_steps) // uint32(cluster))
            k_stop = uint32(uint32(uint32(rank + 1) * k_steps) // uint32(cluster))
            return uint32(block_id() // uint32(cluster)), k_first, k_stop, uint32(0)
        unit = unit_index()
        tile, k_first, k_stop, left = uint32(striped_tiles + unit), uint32(0), k_steps, uint32(0)
        num_steps = uint32(striped_tiles * k_steps)
        if uint32(unit * stripe_steps) < num_steps:
            first, end = stripes.stripe_bounds(unit, stripe_steps, num_steps)
            tile, k_first, k_stop = stripes.first_segment(first, end, k_steps)
            left = uint32(uint32(end - first) - uint32(k_stop - k_first))
        return tile, k_first, k_stop, left

    @cuda.jit(device=True, forceinline=True)
    def next_segment(tile, left, k_steps, striped_tiles):
        """Return what follows a segment: the next tile of the stripe, then whole tiles."""
        if cluster > 1:
            return uint32(0xFFFFFFFF), uint32(0), k_steps, uint32(0)
        k_stop = k_steps
        if left > 0:
            tile = uint32(tile + 1)
            if left < k_steps:
                k_stop = left
            left = uint32(left - k_stop)
        elif tile < striped_tiles:
            tile = uint32(striped_tiles + unit_index())
        else:
            tile = uint32(tile + uint32(uint32(cuda.gridDim.x) // uint32(unit_blocks)))
        return tile, uint32(0), k_stop, left

    @cuda.jit(device=True, forceinline=True)
    def advance(stage, phase):
        """Return the next stage of the ring, and the parity of its phase."""
        stage = uint32(stage + 1)
        if stage == num_stages:
            stage = uint32(0)
            phase = uint32(phase ^ 1)
        return stage, phase

    return Schedule(num_tiles, corner, own_column, unit_index, first_segment, next_segment, advance)
