"""What a decode_wgmma launch is expected to take, for ranking; see kernels/shared/estimate.py."""

from ferrum_numba.division import ceil_div
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.estimate import read_us, slower, total_us

COSTS = {
    "call": 3.7649, "bytes": 0.5763, "products": 0.059718, "turns": 0.037474, "slices": 0.0,
    "late": 1.3998, "shares": 0.33563, "tiles": 0.0,
}  # fmt: skip


def terms(config, problem, launch, gpu):
    """Return what a launch is made of.

    bytes:    time of the weights of the SM with most of them, us
    products: tokens times panels of K of that SM, tenths
    turns:    panels of K of a warpgroup one after the other
    slices:   slices that a block has a part of
    late:     whether it waits for the launch before it to end
    shares:   blocks that share a slice
    tiles:    tiles of tokens
    """
    K = layout.stored_shape(problem)[0]
    stripe_steps, k_steps = launch.scalars["stripe_steps"], ceil_div(K, config.tile_k)
    blocks = ceil_div(launch.grid[0] * launch.grid[1], gpu.num_sms)
    busiest = blocks * stripe_steps
    panels = config.tile_k / 64
    turns = blocks * ceil_div(stripe_steps, config.num_warpgroups) * panels
    return {
        "call": 1.0,
        "bytes": read_us(busiest * gpu.num_sms * config.tile_k * config.tile_n / 2, gpu),
        "products": busiest * panels / 10 * config.tile_m * slower(gpu),
        "turns": turns * slower(gpu),
        "slices": 1 + stripe_steps / k_steps,
        "late": float(not config.early),
        "shares": k_steps / stripe_steps if stripe_steps % k_steps else 0.0,
        "tiles": float(launch.grid[1]),
    }


def estimate_us(config, problem, launch, gpu, costs=COSTS):
    """Return what a launch takes as modelled, in us."""
    return total_us(costs, terms(config, problem, launch, gpu))
