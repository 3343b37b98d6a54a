"""What a kernel costs before its first byte and between its phases: ramp, and grid barrier.

    kernel_ramp   out[b] = sum of the first 32 words of row b, by one block a row
    grid_barrier  out[b] = token of block b + 1, left before the last of `rounds` barriers

    data   [blocks, 1024] uint32    gmem, rows of 4 KB: each block's first bytes are its own
    left   [blocks] uint32          workspace; the tokens
    count  [2] uint32               workspace; how many have arrived, and how many have left

A ramp is a launch whose blocks wait once for memory: what it takes beyond an empty launch is the
time to the first byte and to the last store. Of the barrier, `us` is the time of all rounds.

Bound by latency: that is what they measure.
"""

from dataclasses import dataclass

import numpy as np

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.kernels.ceilings.memory import ROW_BYTES
from ferrum_numba.kernels.ceilings.rates import Rate
from ferrum_numba.space import space

EXACT = Tolerance(0.0, 0.0, "sums and copies of integers are exact")
# rounds of the ceiling: so many that a launch counts little
ROUNDS = 64


@dataclass(frozen=True)
class Ramp:
    """How many blocks there are, each of which reads a line of its own."""

    blocks: int


@dataclass(frozen=True)
class Barrier:
    """How many blocks meet, and how often."""

    blocks: int
    rounds: int


@dataclass(frozen=True)
class ThreadsConfig:
    """How large blocks are."""

    num_threads: int = 128


THREADS_CONFIGS = space(ThreadsConfig, num_threads=(128, 32, 512))

RAMP = Op(
    name="kernel_ramp",
    formula="out[b] = sum_l data[b, l] mod 2^32, l < 32",
    problem=Ramp,
    make_inputs=lambda problem, rng: {
        "data": rng.integers(0, 2**32, (problem.blocks, ROW_BYTES // 4), np.uint32)
    },
    reference=lambda problem, inputs: inputs["data"][:, :32].sum(axis=1, dtype=np.uint32),
    output=lambda problem: ((problem.blocks,), np.dtype(np.uint32)),
    # the bytes are too few to count
    work=lambda problem: Work(flops=0, bytes=0),
    tolerance=lambda problem: EXACT,
    tests=(Ramp(1), Ramp(5), Ramp(132)),
    activations=frozenset(),
)
BARRIER = Op(
    name="grid_barrier",
    formula="out[b] = token[(b + 1) mod blocks]",
    problem=Barrier,
    make_inputs=lambda problem, rng: {"token": rng.integers(0, 2**32, problem.blocks, np.uint32)},
    reference=lambda problem, inputs: np.roll(inputs["token"], -1),
    output=lambda problem: ((problem.blocks,), np.dtype(np.uint32)),
    work=lambda problem: Work(flops=0, bytes=0),
    tolerance=lambda problem: EXACT,
    tests=(Barrier(1, 1), Barrier(3, 4), Barrier(132, ROUNDS)),
    activations=frozenset({"token"}),
)


class KernelRamp(Kernel):
    """Starts, waits for its first bytes, and ends."""

    name = "kernel_ramp"
    op = RAMP
    config = ThreadsConfig
    summary = "a launch whose blocks each read one line: first byte and last store"
    rate = Rate("latency", "us")

    def configs(self, gpu):
        """Return how large blocks are."""
        return THREADS_CONFIGS

    def refuses(self, problem):
        """Run every problem."""
        return None

    def build(self, config, arch):
        """Return the program: Grid: rows; Block: its first warp reads."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.waiting_program import kernel_ramp

        return Program(kernel_ramp, pointers("data", "out"), config.num_threads)

    def prepare(self, problem, inputs):
        """Return the inputs as they are."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return a block a row."""
        return Launch((problem.blocks, 1, 1), {})


class GridBarrier(KernelRamp):
    """All blocks wait for each other, again and again."""

    name = "grid_barrier"
    op = BARRIER
    summary = "a barrier of all blocks: red.release to one counter, then ld.acquire until all came"
    rate = Rate("latency", "us", per=ROUNDS)

    def build(self, config, arch):
        """Return the program: Grid: blocks that are all there at once."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.waiting_program import grid_barrier

        parameters = (*pointers("token", "out", "left", "count"), *sizes("rounds"))
        return Program(grid_barrier, parameters, config.num_threads)

    def launch(self, config, problem, gpu):
        """Return all blocks at once."""
        workspace = {"left": 4 * problem.blocks, "count": 8}
        scalars = {"rounds": problem.rounds}
        return Launch((problem.blocks, 1, 1), scalars, workspace, co_resident=True)
