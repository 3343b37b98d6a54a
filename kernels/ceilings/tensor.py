"""How fast the tensor cores multiply, with everything in registers.

    out[t] = k_steps * a[t] @ b.T       by mma.sync, and by wgmma

    a    [tiles, 64, 32 bytes]     gmem, one fragment a lane
    b    [256, 32 bytes]           registers of mma.sync; smem of wgmma
    out  [tiles, 64, 256]          gmem, written once, fp32 or int32

The operands are random numbers whose sums of k_steps products are exact, so a product that was left
out shows; zeros would run faster than any GEMM. Of fp8, A changes its sign every 4 steps:
out[t] = 4 * a[t] @ b.T. Hopper has no mma.sync of fp8.

Bound by the tensor cores, and their power.
"""

from dataclasses import dataclass

import numpy as np

from ferrum_numba.contract import Kernel, Launch, Op, Program, Work, pointers, sizes
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.kernels.ceilings.elements import ELEMENTS, FP8, FP16, STEP_BYTES
from ferrum_numba.kernels.ceilings.rates import Rate
from ferrum_numba.reference.ceilings import tensor_chain
from ferrum_numba.space import space

TILE_M, TILE_N = 64, 256
A_TILE_BYTES = TILE_M * STEP_BYTES
OUT_TILE_BYTES = TILE_M * TILE_N * 4
# 16 products of up to 15 * 15 / 64 a step: 4096 steps stay below 2^24 / 64, and so exact in fp32
MAX_K_STEPS = 4096
# whose mma.sync takes fp8
NATIVE_FP8 = ("sm_89", "sm_120a", "sm_121a")
# wgmma between two waits, and steps between two signs
GROUP = 4


@dataclass(frozen=True)
class TensorChain:
    """Tiles of 64 x 256, and how often 32 bytes of k are added to each."""

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
    blocks_per_sm=(2,),
    where=lambda c: (5 * c.chains + 24) * c.num_threads * c.blocks_per_sm <= 65536,
)
WGMMA_CONFIGS = space(WgmmaConfig, blocks_per_sm=(2, 1))


def net_steps(element, k_steps):
    """Return how many products the result is of; where signs alternate, one group's."""
    return GROUP if element.alternate else k_steps


def steps_refusal(element, k_steps):
    """Return why a chain cannot be cut into groups, or None."""
    if k_steps % GROUP:
        return f"k_steps must be a multiple of {GROUP}; got {k_steps}"
    if element.alternate and k_steps // GROUP % 2 == 0:
        return f"k_steps must be an odd multiple of {GROUP}, as signs alternate; got {k_steps}"
    return None


def tensor_op(element, name, row_bytes, tests):
    """Return the Op of chains of a type, with rows of a and b of so many bytes.

    A row of several steps is gone through again and again.
    """
    row = row_bytes // element.size_bytes
    steps = row_bytes // STEP_BYTES

    def work(problem):
        size_bytes = problem.tiles * (TILE_M * row_bytes + OUT_TILE_BYTES) + TILE_N * row_bytes
        flops = 2 * TILE_M * TILE_N * element.per_step * problem.k_steps * problem.tiles
        return Work(flops=flops, bytes=size_bytes)

    return Op(
        name=f"{name}_{element.ptx if element.size_bytes == 2 else element.name}",
        formula="out[t, m, n] = k_steps * sum_k a[t, m, k] b[n, k]",
        problem=type(tests[0]),
        make_inputs=lambda problem, rng: {
            "a": element.random((problem.tiles, TILE_M, row), rng),
            "b": element.random((TILE_N, row), rng),
        },
        reference=lambda problem, inputs: tensor_chain(
            inputs["a"], inputs["b"], net_steps(element, problem.k_steps) // steps
        ),
        output=lambda problem: ((problem.tiles, TILE_M, TILE_N), np.dtype(element.sums)),
        work=work,
        tolerance=lambda problem: element.tolerance,
        tests=tests,
        # not rotated: they are read once
        activations=frozenset({"a", "b"}),
    )


def full_size(element):
    """Return what a ceiling is measured with: four waves of two blocks a SM on 132 SMs."""
    return 1056, 2048 + (GROUP if element.alternate else 0)


def _tests(element):
    small = ((1, 4), (2, 12)) if element.alternate else ((1, 4), (2, 8))
    return tuple(TensorChain(*sizes) for sizes in (*small, full_size(element)))


OPS = {one.name: tensor_op(one, "tensor", STEP_BYTES, _tests(one)) for one in ELEMENTS}
TENSOR = OPS["fp16"]


class MmaSync(Kernel):
    """Chains of mma.sync, which every GPU since Ampere has; of fp8 since Ada."""

    config: type = MmaConfig
    word = "mma_sync"

    def __init__(self, element=FP16):
        self.element = element
        self.name = self.word if element is FP16 else f"{self.word}_{element.name}"
        self.op = OPS[element.name]
        self.summary = f"mma.sync chains of {element.name}, all operands in registers"
        self.rate = Rate("tensor", element.unit, element.name)

    def __reduce__(self):
        # its Op is made of functions, which no process can be sent
        return type(self), (self.element,)

    def configs(self, gpu):
        """Return how many chains a warp, and how many blocks a SM."""
        # elsewhere the compiler makes fp16 of both operands, which takes longer than to multiply
        return MMA_CONFIGS if self.element is not FP8 or gpu.arch in NATIVE_FP8 else ()

    def refuses(self, problem):
        """Return why the chain cannot be cut into groups, or None."""
        return steps_refusal(self.element, problem.k_steps)

    def build(self, config, arch):
        """Return the program: Grid: tiles; Block: the warps of a tile."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.tensor_program import build_mma

        parameters = (*pointers("a", "b", "out"), *sizes("k_steps"))
        function = build_mma(config.chains, self.element)
        return Program(function, parameters, config.num_threads, config.blocks_per_sm)

    def prepare(self, problem, inputs):
        """Return the matrices as they are, as bytes."""
        return {name: array.view(np.uint8) for name, array in inputs.items()}

    def launch(self, config, problem, gpu):
        """Return a block a tile."""
        return Launch((problem.tiles, 1, 1), {"k_steps": problem.k_steps})


class Wgmma(MmaSync):
    """Chains of wgmma.m64n256 with A from registers, as a dequantising GEMM has it."""

    config: type = WgmmaConfig
    word = "wgmma"

    def __init__(self, element=FP16):
        super().__init__(element)
        self.summary = (
            f"wgmma.m64n256 chains of {element.name}, A in registers, B in shared memory; "
            "Hopper only"
        )

    def configs(self, gpu):
        """Return how many blocks a SM; none but on Hopper."""
        return WGMMA_CONFIGS if gpu.arch == "sm_90a" else ()

    def build(self, config, arch):
        """Return the program: Grid: tiles; Block: a warpgroup; smem: b."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.tensor_program import build_wgmma

        parameters = (*pointers("a", "b", "out"), *sizes("k_steps"))
        function = build_wgmma(self.element)
        return Program(function, parameters, 128, config.blocks_per_sm, config.smem_bytes)
