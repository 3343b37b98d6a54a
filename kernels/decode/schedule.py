"""Which steps a block of decode has: a stripe over slices, or its part of one slice."""

from numba import cuda
from numba.cuda.types import uint32

from ferrum_numba.ptx.special import block_id, block_id_y, thread_id


@cuda.jit(device=True, inline="always")
def next_segment(slice_id, k_stop, end, k_steps):
    """Return the next slice of a stripe and the step after its last, 0 if none is left."""
    done = uint32(uint32(slice_id * k_steps) + k_stop)
    k_stop = uint32(0)
    if done < end:
        k_stop = uint32(end - done) if uint32(end - done) < k_steps else k_steps
    return uint32(slice_id + 1), k_stop


def make_stripes(config):
    """Return what finds a block's stripe and tokens, and walks over its segments of slices."""
    tile_m, tile_n, step_k = config.tile_m, config.tile_n, config.step_k
    warps_n, cluster, clustered = config.warps_n, config.cluster, config.cluster > 1

    @cuda.jit(device=True, inline="always")
    def stripe_of(n, k, units_per_block):
        """Return this block's first step, the step after its last, and the steps of a slice."""
        # found again where it is needed: kept, it would cost the main loop its registers
        k_steps = uint32(k // uint32(step_k))
        if clustered:
            bid = block_id()
            rank = uint32(bid % uint32(cluster))
            begin = uint32(uint32(bid // uint32(cluster)) * k_steps)
            first = uint32(begin + uint32(rank * k_steps) // uint32(cluster))
            return first, uint32(begin + uint32((rank + 1) * k_steps) // uint32(cluster)), k_steps
        first = uint32(block_id() * units_per_block)
        end = uint32(uint32(n // uint32(tile_n)) * k_steps)
        if uint32(end - first) > units_per_block:
            end = uint32(first + units_per_block)
        return first, end, k_steps

    @cuda.jit(device=True, inline="always")
    def block_rows(m):
        """Return this block's first token and how many it has."""
        first_row = uint32(block_id_y() * tile_m)
        rows = uint32(m - first_row)
        return first_row, rows if rows < uint32(tile_m) else uint32(tile_m)

    @cuda.jit(device=True, inline="always")
    def warp_along_k():
        """Return which of the warps along K this is: its first step of a slice."""
        return uint32(uint32(thread_id() >> 5) // uint32(warps_n))

    @cuda.jit(device=True, inline="always")
    def settle(slice_id, k_step, k_stop, end, k_steps):
        """Return this step or the warp's first of a later slice; k_stop is 0 if none is left."""
        while k_step >= k_stop and k_stop > uint32(0):
            slice_id, k_stop = next_segment(slice_id, k_stop, end, k_steps)
            k_step = warp_along_k()
        return slice_id, k_step, k_stop

    return stripe_of, block_rows, warp_along_k, settle
