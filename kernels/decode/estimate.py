"""What a decode launch is expected to take, for ranking configs; see kernels/shared/estimate.py."""

from ferrum_numba.division import ceil_div
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.estimate import read_us, slower, total_us

COSTS = {
    "call": 0.73055, "bytes": 0.28023, "products": 0.003241, "steps": 0.72387, "slots": 1.9785,
    "cluster": 0.775, "sums": 0.87825, "turns": 0.081839,
}  # fmt: skip
# clusters of four that are more than this part of a wave do not find room at once; what that costs
CROWDED, CROWDED_COST = 0.9, 1.45


def terms(config, problem, launch, gpu):
    """Return what a launch is made of.

    bytes:    time of the weights of the SM with most of them, us
    products: tokens times steps of its warps
    steps:    steps of a warp one after the other, in units of 128 of K
    turns:    the same, each counted once
    sums:     sums that warps add in shared memory, 10^4
    """
    K = layout.stored_shape(problem)[0]
    k_steps = K // config.step_k
    stripe_steps = launch.scalars["stripe_steps"]
    if config.cluster > 1:
        stripe_steps = ceil_div(k_steps, config.cluster)
    blocks = launch.grid[0] * launch.grid[1]
    waves = ceil_div(blocks, gpu.num_sms * config.blocks_per_sm)
    busiest = ceil_div(blocks, gpu.num_sms) * stripe_steps
    turns = waves * ceil_div(stripe_steps, config.warps_k) * slower(gpu)
    return {
        "call": 1.0,
        "bytes": read_us(busiest * gpu.num_sms * config.step_k * config.tile_n / 2, gpu),
        "products": busiest * config.warps_n * config.step_k / 128 * config.tile_m * slower(gpu),
        "steps": turns * config.step_k / 128,
        "slots": float(launch.workspace["slots"] > 16),
        "cluster": float(config.cluster > 1),
        "sums": waves * config.warps_k * config.tile_m * config.tile_n / 1e4,
        "turns": turns,
    }


def estimate_us(config, problem, launch, gpu, costs=COSTS):
    """Return what a launch takes as modelled, in us."""
    us = total_us(costs, terms(config, problem, launch, gpu))
    wave = launch.grid[0] / (gpu.num_sms * config.blocks_per_sm)
    return us * CROWDED_COST if config.cluster >= 4 and wave > CROWDED else us
