"""What all parts of prefill share: who does what, and the tiles in their order."""

from numba import cuda
from numba.cuda.types import uint32

from ferrum_numba.ptx.special import block_id, cluster_ctarank

# the warps that multiply, and those that copy: two warpgroups and one, as `setmaxnreg` wants it
CONSUMER_WARPS, PRODUCER_WARPS = 8, 4
# K of a panel of a stage, and the bytes of its rows of x, which are what the swizzle repeats in
PANEL_K, ROW_BYTES = 64, 128


def make_schedule(config):
    """Return (num_tiles, corner, own_column, unit_index, first_segment, next_segment, advance).

    A pair of blocks that share x is one unit, with a tile of twice the columns. A segment is what a
    unit does of one output tile: (tile, first and last k tile, k tiles left in its stripe).
    """
    tile_m, num_stages = config.tile_m, config.num_stages
    raster, cluster, tile_n = config.raster, config.cluster, config.unit_n
    unit_blocks, pair, block_n = config.unit_blocks, config.pair, config.tile_n

    @cuda.jit(device=True, inline="always")
    def unit_index():
        """Return the number of this unit, which has those that began before it below it.

        It is found again wherever it is asked for: kept, it would cost the main loop a register.
        """
        return uint32(uint32(uint32(cuda.gridDim.x) - block_id() - 1) // uint32(unit_blocks))

    @cuda.jit(device=True, inline="always")
    def num_tiles(m, n):
        m_tiles = uint32(uint32(m + (tile_m - 1)) // uint32(tile_m))
        return uint32(uint32(uint32(n + (tile_n - 1)) // uint32(tile_n)) * m_tiles)

    @cuda.jit(device=True, inline="always")
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

    @cuda.jit(device=True, inline="always")
    def own_column(column, n):
        """Return the first column of this block's part of a tile: the last tile is moved left.

        column: the nominal first one of the tile
        """
        if uint32(column + tile_n) > n:
            column = uint32(n - tile_n)
        if pair:
            column = uint32(column + cluster_ctarank() * block_n)
        return column

    @cuda.jit(device=True, inline="always")
    def first_segment(k_tiles, stripe_steps, striped_tiles):
        """Return (tile, first and last k tile, k tiles left in the stripe) of a block's begin."""
        if cluster > 1:
            # the blocks of a cluster have equal parts of one tile
            rank = cluster_ctarank()
            k_first = uint32(uint32(rank * k_tiles) // uint32(cluster))
            k_last = uint32(uint32(uint32(rank + 1) * k_tiles) // uint32(cluster))
            return uint32(block_id() // uint32(cluster)), k_first, k_last, uint32(0)
        unit = unit_index()
        begin, end = uint32(unit * stripe_steps), uint32(striped_tiles * k_tiles)
        tile, k_first, k_last, left = uint32(striped_tiles + unit), uint32(0), k_tiles, uint32(0)
        if begin < end:
            left = uint32(end - begin)
            if left > stripe_steps:
                left = stripe_steps
            tile = uint32(begin // k_tiles)
            k_first = uint32(begin - uint32(tile * k_tiles))
            k_last = uint32(k_first + left)
            if k_last > k_tiles:
                k_last = k_tiles
            left = uint32(left - uint32(k_last - k_first))
        return tile, k_first, k_last, left

    @cuda.jit(device=True, inline="always")
    def next_segment(tile, left, k_tiles, striped_tiles):
        """Return what follows a segment: the next tile of the stripe, then whole tiles."""
        if cluster > 1:
            return uint32(0xFFFFFFFF), uint32(0), k_tiles, uint32(0)
        k_last = k_tiles
        if left > 0:
            tile = uint32(tile + 1)
            if left < k_tiles:
                k_last = left
            left = uint32(left - k_last)
        elif tile < striped_tiles:
            tile = uint32(striped_tiles + unit_index())
        else:
            tile = uint32(tile + uint32(uint32(cuda.gridDim.x) // uint32(unit_blocks)))
        return tile, uint32(0), k_last, left

    @cuda.jit(device=True, inline="always")
    def advance(stage, phase):
        """Return the next stage of the ring, and the parity of its phase."""
        stage = uint32(stage + 1)
        if stage == num_stages:
            stage = uint32(0)
            phase = uint32(phase ^ 1)
        return stage, phase

    return num_tiles, corner, own_column, unit_index, first_segment, next_segment, advance
