"""What a marlin launch is expected to take, for ranking configs; see kernels/shared/estimate.py."""

from ferrum_numba.division import ceil_div
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.estimate import read_us, slower, total_us

COSTS = {
    "call": 3.7572, "bytes": 0.59363, "products": 0.2121, "steps": 0.16409, "shares": 0.18564,
    "sums": 2.5982,
}  # fmt: skip


def terms(config, problem, launch, gpu):
    """Return what a launch is made of.

    bytes:    time of the weights of the SM with most of them, us
    products: rows of x times Marlin tiles of that SM, 10^2
    steps:    stages of a block one after the other
    shares:   blocks that share a slice
    sums:     results and shares of them that a block hands on, 10^4
    """
    K = layout.stored_shape(problem)[0]
    stripe_steps, k_steps = launch.scalars["stripe_steps"], K // config.tile_k
    busiest = ceil_div(launch.grid[0], gpu.num_sms) * stripe_steps
    words = busiest * config.tile_k * config.tile_n
    return {
        "call": 1.0,
        "bytes": read_us(words * gpu.num_sms / 2, gpu),
        "products": words / 4096 * config.tile_m / 100 * slower(gpu),
        "steps": stripe_steps * slower(gpu),
        "shares": k_steps / stripe_steps if stripe_steps % k_steps else 0.0,
        "sums": config.tile_m * config.tile_n / 1e4 * (1 + stripe_steps / k_steps),
    }


def estimate_us(config, problem, launch, gpu, costs=COSTS):
    """Return what a launch takes as modelled, in us."""
    return total_us(costs, terms(config, problem, launch, gpu))
