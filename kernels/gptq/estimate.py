"""What a w4a16_gptq launch is expected to take, for ranking; see kernels/shared/estimate.py."""

from math import prod

from ferrum_numba.division import ceil_div
from ferrum_numba.kernels.shared.estimate import read_us, slower, total_us

COSTS = {
    "bytes": 0.44858, "products": 0.96706, "rows": 0.37937, "split": 5.2455, "shares": 31.131,
    "stages": 0.026413, "copies": 0.0,
}  # fmt: skip
# registers of a thread, by rows of a tile, with which blocks share an SM
REGISTERS = {16: 100, 32: 100, 64: 168}


def terms(config, problem, launch, gpu):
    """Return what a launch is made of.

    bytes:    time of the weights of the SM with most of them, us
    products: rows of x times weights of that SM, 10^6
    rows:     rows of K that a block goes through, in all waves, 10^2
    stages:   the same in stages
    copies:   the same times rows of x, 10^4
    split:    whether blocks share a tile
    shares:   sums that they leave in memory, 10^8
    """
    blocks = prod(launch.grid)
    by_registers = gpu.registers_per_sm // (config.num_threads * REGISTERS[config.tile_m])
    by_smem = gpu.smem_per_sm // (config.smem_bytes + gpu.smem_reserved)
    resident = max(1, min(by_registers, by_smem, gpu.max_blocks_per_sm))
    waves = ceil_div(blocks, gpu.num_sms * resident)
    stages = ceil_div(ceil_div(problem.K, config.tile_k), config.split_k)
    words = ceil_div(blocks, gpu.num_sms) * stages * config.tile_k * config.tile_n
    rows = waves * stages * config.tile_k * slower(gpu)
    split = config.split_k > 1
    return {
        "bytes": read_us(words * gpu.num_sms / 2, gpu),
        "products": words / 1e6 * config.tile_m * slower(gpu),
        "rows": rows / 100,
        "split": float(split),
        "shares": split * config.split_k * problem.M * problem.N / 1e8,
        "stages": waves * stages * slower(gpu),
        "copies": rows * config.tile_m / 1e4,
    }


def estimate_us(config, problem, launch, gpu, costs=COSTS):
    """Return what a launch takes as modelled, in us."""
    return total_us(costs, terms(config, problem, launch, gpu))
