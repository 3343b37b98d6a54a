"""Which steps a block of decode has: a stripe over slices, or its part of one slice."""

from typing import NamedTuple

from numba import cuda
from numba.cuda.types import uint32

from ferrum_numba.kernels.shared.stripes import DeviceFunction, stripe_bounds
from ferrum_numba.ptx.special import block_id, block_id_y, thread_id


class Schedule(NamedTuple):
    """What is a block's.

    stripe_of:    (n, k, stripe_steps) -> its first step, the one after its last, steps of a slice
    block_rows:   (m) -> its first token, and how many it has
    warp_along_k: () -> which of the warps along K this is: its first step of a slice
    """

    stripe_of: DeviceFunction
    block_rows: DeviceFunction
    warp_along_k: DeviceFunction


def make_schedule(config):
    """Return the schedule of a config."""
    tile_m, tile_n, step_k = config.tile_m, config.tile_n, config.step_k
    warps_n, cluster, clustered = config.warps_n, config.cluster, config.cluster > 1

    @cuda.jit(device=True, forceinline=True)
    def stripe_of(n, k, stripe_steps):
        # found again where it is needed: kept, it would cost the main loop its registers
        k_steps = uint32(k // uint32(step_k))
        if clustered:
            bid = block_id()
            rank = uint32(bid % uint32(cluster))
            begin = uint32(uint32(bid // uint32(cluster)) * k_steps)
            first = uint32(begin + uint32(rank * k_steps) // uint32(cluster))
            return first, uint32(begin + uint32((rank + 1) * k_steps) // uint32(cluster)), k_steps
        num_steps = uint32(uint32(n // uint32(tile_n)) * k_steps)
        first, end = stripe_bounds(block_id(), stripe_steps, num_steps)
        return first, end, k_steps

    @cuda.jit(device=True, forceinline=True)
    def block_rows(m):
        first_row = uint32(block_id_y() * tile_m)
        rows = uint32(m - first_row)
        return first_row, rows if rows < tile_m else uint32(tile_m)

    @cuda.jit(device=True, forceinline=True)
    def warp_along_k():
        return uint32(uint32(thread_id() >> 5) // uint32(warps_n))

    return Schedule(stripe_of, block_rows, warp_along_k)
