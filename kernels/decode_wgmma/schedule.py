"""Which steps a block of decode_wgmma has: a stripe over slices; later stripes begin first."""

from numba import cuda
from numba.cuda.types import uint32

from ferrum_numba.kernels.shared.stripes import stripe_bounds
from ferrum_numba.ptx.special import block_id


def make_stripe_of(config):
    """Return what says which steps are a block's."""
    tile_n, tile_k = config.tile_n, config.tile_k

    @cuda.jit(device=True, forceinline=True)
    def stripe_of(n, k, stripe_steps):
        """Return this block's stripe: its index, its first step, the one after its last.

        And the steps of a slice. Later stripes begin first: a block waits only for blocks that the
        GPU has started before it.
        """
        # found again where it is needed: kept, it would cost the main loop its registers
        k_steps = uint32(uint32(k + (tile_k - 1)) // uint32(tile_k))
        stripe = uint32(uint32(cuda.gridDim.x) - 1 - block_id())
        num_steps = uint32(uint32(uint32(n + (tile_n - 1)) // uint32(tile_n)) * k_steps)
        first, end = stripe_bounds(stripe, stripe_steps, num_steps)
        return stripe, first, end, k_steps

    return stripe_of
