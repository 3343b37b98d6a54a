"""How fast a SM works where no memory outside of it is asked: its shared memory, fp32, and bits.

    shared_read  out[w, l] = passes * sum of the words of data that lane l reads
    fp32_fma     out[i] = 8 (x[i % 1024] + steps * y[i % 1024])
    lop3         out[i] = XOR of 8 words after `steps` rounds of r[j] = lut(r[j], r[j+1], r[j+3])

    data  [32, 32, 4] uint32       16 KB; a warp reads 512 bytes at once, 16 a lane: no conflicts
    x, y  [1024] float32           whole numbers, so that sums are exact
    seed  [1024] uint32            the words begin as seed + j * increment

Rates of fp32_fma count two FLOPs an FMA; those of lop3 count LOP3s, which an unpacking of int4
codes has most of (see `dequantize`).

Bound by shared memory's banks, the FMA pipe, or the integer pipe.
"""

from dataclasses import dataclass

import numpy as np

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ProblemError
from ferrum_numba.kernels.ceilings.rates import Rate
from ferrum_numba.reference.ceilings import lop3_rounds
from ferrum_numba.space import space

TILE_BYTES = 16384
# accesses of a warp that cover the tile
ACCESSES = TILE_BYTES // 512
# what all threads begin with in turn
PERIOD = 1024
# chains of a thread, which hide each other's latency
CHAINS = 8
INCREMENT = 0x9E3779B9
# neither linear nor constant: no rounds of it fold into fewer
LUT = 0x6A
EXACT = Tolerance(0.0, 0.0, "sums of whole numbers and bits are exact")


@dataclass(frozen=True)
class SharedRead:
    """How many warps there are, and how often each reads the tile."""

    warps: int
    passes: int


@dataclass(frozen=True)
class FmaChain:
    """Threads of 8 chains each, and the FMAs of a chain."""

    threads: int
    steps: int

    def __post_init__(self):
        # sums stay below 2^24
        if not 1 <= self.steps <= 65536:
            raise ProblemError(f"steps must be 1 to 65536; got {self.steps}")


@dataclass(frozen=True)
class Lop3Chain:
    """Threads of 8 words each, and the rounds that each word goes through."""

    threads: int
    steps: int


@dataclass(frozen=True)
class BlockConfig:
    """How large blocks are."""

    num_threads: int = 256
    blocks_per_sm: int = 4  # what the registers must allow


BLOCK_CONFIGS = space(
    BlockConfig,
    num_threads=(256, 512, 1024),
    blocks_per_sm=(4, 2),
    where=lambda c: c.num_threads * c.blocks_per_sm in (1024, 2048),
)
# steps between two looks at the counter, which takes an issue slot as they do
UNROLL = 32


def _chain_inputs(problem, rng):
    # fp32 sums of up to 65536 steps of at most 3 are exact, eight of them too
    return {
        "x": rng.integers(1, 64, PERIOD).astype(np.float32),
        "y": rng.integers(1, 4, PERIOD).astype(np.float32),
    }


def _repeated(values, count):
    return np.resize(values, count)


SHARED = Op(
    name="shared_read",
    formula="out[w, l] = passes sum_ij data[i, l, j] mod 2^32",
    problem=SharedRead,
    make_inputs=lambda problem, rng: {"data": rng.integers(0, 2**32, (ACCESSES, 32, 4), np.uint32)},
    reference=lambda problem, inputs: np.tile(
        inputs["data"].sum(axis=(0, 2), dtype=np.uint32) * np.uint32(problem.passes),
        (problem.warps, 1),
    ),
    output=lambda problem: ((problem.warps, 32), np.dtype(np.uint32)),
    work=lambda problem: Work(flops=0, bytes=problem.warps * problem.passes * TILE_BYTES),
    tolerance=lambda problem: EXACT,
    # the last is what the ceiling is measured with: a wave of 132 SMs and 64 warps
    tests=(SharedRead(2, 1), SharedRead(5, 2), SharedRead(132 * 64, 64)),
    activations=frozenset({"data"}),
)
FMA = Op(
    name="fp32_fma",
    formula="out[i] = 8 (x[i % 1024] + steps y[i % 1024])",
    problem=FmaChain,
    make_inputs=_chain_inputs,
    reference=lambda problem, inputs: _repeated(
        CHAINS * (inputs["x"] + problem.steps * inputs["y"]), problem.threads
    ),
    output=lambda problem: ((problem.threads,), np.dtype(np.float32)),
    work=lambda problem: Work(
        flops=2 * CHAINS * problem.threads * problem.steps, bytes=12 * problem.threads
    ),
    tolerance=lambda problem: EXACT,
    tests=(FmaChain(40, 32), FmaChain(300, 64), FmaChain(132 * 2048, 8192)),
    activations=frozenset({"x", "y"}),
)
LOP3 = Op(
    name="lop3",
    formula="out[i] = XOR_j r[j], r[j] = lut(r[j], r[j+1], r[j+3]) steps times",
    problem=Lop3Chain,
    make_inputs=lambda problem, rng: {"seed": rng.integers(0, 2**32, PERIOD, np.uint32)},
    reference=lambda problem, inputs: _repeated(
        lop3_rounds(inputs["seed"], CHAINS, problem.steps, INCREMENT, LUT), problem.threads
    ),
    output=lambda problem: ((problem.threads,), np.dtype(np.uint32)),
    work=lambda problem: Work(
        flops=CHAINS * problem.threads * problem.steps, bytes=8 * problem.threads
    ),
    tolerance=lambda problem: EXACT,
    tests=(Lop3Chain(40, 32), Lop3Chain(300, 64), Lop3Chain(132 * 2048, 4096)),
    activations=frozenset({"seed"}),
)


class SharedBandwidth(Kernel):
    """Reads a tile of shared memory again and again."""

    name = "shared_read"
    op = SHARED
    config = BlockConfig
    summary = "ld.shared.v4 without bank conflicts, a tile of 16 KB a block"
    rate = Rate("shared memory", "GB/s")

    def configs(self, gpu):
        """Return how large blocks are."""
        most = gpu.max_threads_per_sm
        return tuple(c for c in BLOCK_CONFIGS if c.num_threads * c.blocks_per_sm <= most)

    def refuses(self, problem):
        """Run every problem."""
        return None

    def build(self, config, arch):
        """Return the program: Block: warps that all read one tile; smem: data."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.on_chip_program import build_shared

        parameters = (*pointers("data", "out"), *sizes("warps", "passes"))
        function = build_shared(config)
        return Program(function, parameters, config.num_threads, config.blocks_per_sm, TILE_BYTES)

    def prepare(self, problem, inputs):
        """Return the inputs as they are."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return a thread a lane of every warp."""
        blocks = ceil_div(32 * problem.warps, config.num_threads)
        return Launch((blocks, 1, 1), {"warps": problem.warps, "passes": problem.passes})


class Fma(SharedBandwidth):
    """Chains of fma.rn.f32 in registers."""

    name = "fp32_fma"
    op = FMA
    summary = "fma.rn.f32, 8 chains a thread, all in registers"
    rate = Rate("ALU", "TFLOP/s", "fp32")

    def refuses(self, problem):
        """Return why the chain cannot be unrolled, or None."""
        if problem.steps % UNROLL:
            return f"steps must be a multiple of {UNROLL}; got {problem.steps}"
        return None

    def build(self, config, arch):
        """Return the program: Block: threads of 8 chains."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.on_chip_program import build_fma

        # a factor of one that the compiler does not know
        parameters = (*pointers("x", "y", "out"), *sizes("threads", "steps", "factor"))
        return Program(build_fma(config), parameters, config.num_threads, config.blocks_per_sm)

    def launch(self, config, problem, gpu):
        """Return the threads."""
        blocks = ceil_div(problem.threads, config.num_threads)
        scalars = {"threads": problem.threads, "steps": problem.steps, "factor": 1}
        return Launch((blocks, 1, 1), scalars)


class Lop3(Fma):
    """Rounds of lop3 in registers."""

    name = "lop3"
    op = LOP3
    summary = "lop3.b32, 8 words a thread, all in registers"
    rate = Rate("ALU", "TOP/s", "int32")

    def build(self, config, arch):
        """Return the program: Block: threads of 8 words."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.on_chip_program import build_lop3

        parameters = (*pointers("seed", "out"), *sizes("threads", "steps"))
        return Program(build_lop3(config), parameters, config.num_threads, config.blocks_per_sm)

    def launch(self, config, problem, gpu):
        """Return the threads."""
        blocks = ceil_div(problem.threads, config.num_threads)
        return Launch((blocks, 1, 1), {"threads": problem.threads, "steps": problem.steps})
