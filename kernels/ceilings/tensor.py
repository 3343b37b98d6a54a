"""How fast the tensor cores multiply, with everything in registers.

    out[t] = k_steps * a[t] @ b.T       by mma.sync, and by wgmma

    a    [tiles, 64, 16] fp16      gmem, one fragment a lane
    b    [256, 16] fp16            registers of mma.sync; smem of wgmma
    out  [tiles, 64, 256] fp32     gmem, written once

The operands are random multiples of 1/8 that an fp32 sum of k_steps products holds exactly, so a
product that was left out shows; zeros would run faster than any GEMM.

Bound by the tensor cores, and their power.
"""

from dataclasses import dataclass

import numpy as np

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.reference.ceilings import tensor_chain
from ferrum_numba.space import space

TILE_M, TILE_N, MMA_K = 64, 256, 16
A_TILE_BYTES = TILE_M * MMA_K * 2
OUT_TILE_BYTES = TILE_M * TILE_N * 4
# 16 products of up to 15 * 15 / 64 a step: 4096 steps stay below 2^24 / 64, and so exact in fp32
MAX_K_STEPS = 4096
# wgmma between two waits
GROUP = 4
EXACT = Tolerance(0.0, 0.0, "sums of multiples of 1/64 below 2^24 / 64 are exact in fp32")


@dataclass(frozen=True)
class TensorChain:
    """Tiles of 64 x 256, and how often 16 of k are added to each."""

    tiles: int
    k_steps: int

    def __post_init__(self):
        if not 1 <= self.k_steps <= MAX_K_STEPS:
            raise ProblemError(f"k_steps must be 1 to {MAX_K_STEPS}; got {self.k_steps}")


@dataclass(frozen=True)
class MmaConfig:
    """How mma.sync is fed."""

    chains: int = 16  # accumulators of 16 x 8 a warp
    blocks_per_sm: int = 2  # what the registers must allow

    def __post_init__(self):
        if self.chains not in (8, 16, 32):
            raise ConfigError(f"chains must be 8, 16 or 32; got {self.chains}")

    @property
    def num_threads(self):
        """Threads of a block, which has one tile."""
        return 128 * (TILE_N // 8) // self.chains


@dataclass(frozen=True)
class WgmmaConfig:
    """How wgmma is fed."""

    blocks_per_sm: int = 2  # what fits beside each other; a block is one warpgroup

    @property
    def smem_bytes(self):
        """Shared memory a block: b, and as much more as keeps further blocks off the SM."""
        return 227 * 1024 // self.blocks_per_sm // 1024 * 1024 - 1024


# an accumulator has 4 registers and its share of b two, of which the compiler reloads some
MMA_CONFIGS = space(
    MmaConfig,
    chains=(16, 8, 32),
    blocks_per_sm=(2, 1),
    where=lambda c: (5 * c.chains + 24) * c.num_threads * c.blocks_per_sm <= 65536,
)
WGMMA_CONFIGS = space(WgmmaConfig, blocks_per_sm=(2, 1, 3))


def _eighths(shape, rng):
    """Return random multiples of 1/8 between -15/8 and 15/8, none of them zero."""
    return (rng.integers(1, 16, shape) * rng.choice((-1, 1), shape) / 8).astype(np.float16)


def _tensor_work(problem):
    tiles = problem.tiles
    size_bytes = tiles * (A_TILE_BYTES + OUT_TILE_BYTES) + TILE_N * MMA_K * 2
    return Work(flops=2 * TILE_M * TILE_N * MMA_K * problem.k_steps * tiles, bytes=size_bytes)


# the last test is what the ceiling is measured with: ten waves of two blocks a SM on 132 SMs
TENSOR = Op(
    name="tensor_f16",
    formula="out[t, m, n] = k_steps * sum_k a[t, m, k] b[n, k]",
    problem=TensorChain,
    make_inputs=lambda problem, rng: {
        "a": _eighths((problem.tiles, TILE_M, MMA_K), rng),
        "b": _eighths((TILE_N, MMA_K), rng),
    },
    reference=lambda problem, inputs: tensor_chain(inputs["a"], inputs["b"], problem.k_steps),
    output=lambda problem: ((problem.tiles, TILE_M, TILE_N), np.dtype(np.float32)),
    work=_tensor_work,
    tolerance=lambda problem: EXACT,
    tests=(TensorChain(1, 4), TensorChain(2, 8), TensorChain(2640, 1024)),
    activations=frozenset(),
)


class MmaSync(Kernel):
    """Chains of mma.m16n8k16, which every GPU since Ampere has."""

    name = "mma_sync"
    op = TENSOR
    config: type = MmaConfig
    summary = "mma.sync.m16n8k16 chains, all operands in registers"

    def configs(self, gpu):
        """Return how many chains a warp, and how many blocks a SM."""
        return MMA_CONFIGS

    def refuses(self, problem):
        """Run every problem."""
        return None

    def build(self, config, arch):
        """Return the program: Grid: tiles; Block: the warps of a tile."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.tensor_program import build_mma

        parameters = (*pointers("a", "b", "out"), *sizes("k_steps"))
        return Program(
            build_mma(config.chains), parameters, config.num_threads, config.blocks_per_sm
        )

    def prepare(self, problem, inputs):
        """Return the matrices as they are."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return a block a tile."""
        return Launch((problem.tiles, 1, 1), {"k_steps": problem.k_steps})


class Wgmma(MmaSync):
    """Chains of wgmma.m64n256k16 with A from registers, as a dequantising GEMM has it."""

    name = "wgmma"
    config = WgmmaConfig
    summary = "wgmma.m64n256k16 chains, A in registers, B in shared memory; Hopper only"

    def configs(self, gpu):
        """Return how many blocks a SM; none but on Hopper."""
        return WGMMA_CONFIGS if gpu.arch == "sm_90a" else ()

    def refuses(self, problem):
        """Return why the chain cannot be cut into groups, or None."""
        if problem.k_steps % GROUP:
            return f"k_steps must be a multiple of {GROUP}; got {problem.k_steps}"
        return None

    def build(self, config, arch):
        """Return the program: Grid: tiles; Block: a warpgroup; smem: b."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.tensor_program import build_wgmma

        parameters = (*pointers("a", "b", "out"), *sizes("k_steps"))
        return Program(build_wgmma(), parameters, 128, config.blocks_per_sm, config.smem_bytes)
