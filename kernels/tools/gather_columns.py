"""Columns in another order: what an act-order weight asks of its activations.

    out[m, j] = x[m, perm[j]]

    x     [M, K] 16-bit, row-major     gmem, 2 bytes a lane, from L1 and L2: a row is a few KB;
                                       staged: read once into smem, 16 bytes a lane, cp.async
    perm  [K] int32                    gmem, read once for the rows of a block, 16 bytes a lane
    out   [M, K] 16-bit, row-major     gmem, written once, 16 bytes a lane

Bits are moved, so fp16 and bf16 are alike. A thread owns 8 columns of a few rows, or, staged, a
block all columns of a few rows. A programmatic launch reads perm, which is part of the weight,
while its predecessor still writes x.

Bound by the time of a launch for few rows; for many by gmem bandwidth where rows are staged, else
by L1, whose line of 128 bytes a lane reads for 2.
Limits: K % 8 == 0.
"""

from dataclasses import dataclass, replace

import numpy as np

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div, round_up
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.gpu import is_hopper_or_later
from ferrum_numba.layout import begin, regions
from ferrum_numba.reference.gather_columns import gather_columns
from ferrum_numba.space import space

# columns of a thread: 16 bytes of 2
COLUMNS = 8
MOST_M, MOST_K = 65_536, 1 << 20
PARAMETERS = (*pointers("x", "perm", "out"), *sizes("m", "k"))


@dataclass(frozen=True)
class GatherProblem:
    """Rows and columns of x."""

    M: int
    K: int

    def __post_init__(self):
        if not 1 <= self.M <= MOST_M:
            raise ProblemError(f"M must be 1 to {MOST_M}; got {self.M}")
        if not 1 <= self.K <= MOST_K or self.K % COLUMNS:
            raise ProblemError(f"K must be a multiple of {COLUMNS} up to {MOST_K}; got {self.K}")


@dataclass(frozen=True)
class GatherConfig:
    """How the columns and rows are dealt to threads."""

    num_threads: int = 64  # a small block: few rows have few columns to deal
    rows: int = 1  # rows of a thread, for one read of perm
    programmatic: bool = False  # starts before its predecessor ends; Hopper and later
    staged: bool = False  # rows pass through shared memory
    row_bytes: int = 0  # of a staged row: 2 * K, rounded up so that few programs serve all K

    def __post_init__(self):
        if self.num_threads % 32 or not 32 <= self.num_threads <= 1024 or self.rows < 1:
            raise ConfigError(
                "num_threads must be a multiple of 32 up to 1024 and rows at least 1; "
                f"got num_threads = {self.num_threads}, rows = {self.rows}"
            )

    @property
    def smem_bytes(self):
        """Dynamic shared memory a block."""
        return self.rows * self.row_bytes

    @property
    def smem_map(self):
        """What lies where in it."""
        return regions(self.smem_bytes, begin("rows", 0, "staged rows of x", self.rows))


CONFIGS = space(
    GatherConfig,
    staged=(False, True),
    num_threads=(64, 128, 256, 512),
    rows=(1, 2, 4, 8),
    programmatic=(False, True),
    # a staged row has one block's threads for all its columns
    where=lambda c: c.num_threads >= 256 if c.staged else c.num_threads <= 256,
)
# of a staged row's place
ROW_GRAIN_BYTES = 8192
# rows from which on they are staged, and from which on two of them to a block; see
# docs/designs/tools.md#staged-rows
STAGED_M, PAIRED_M = 32, 512


def make_inputs(problem, rng):
    """Return random bits, none of them the poison of an output, and a random permutation."""
    x = rng.integers(0, 0xFFFF, (problem.M, problem.K), np.uint16)
    return {"x": x, "perm": rng.permutation(problem.K).astype(np.int32)}


OP = Op(
    name="gather_columns",
    formula="out[m, j] = x[m, perm[j]]",
    problem=GatherProblem,
    make_inputs=make_inputs,
    reference=lambda problem, inputs: gather_columns(inputs["x"], inputs["perm"]),
    output=lambda problem: ((problem.M, problem.K), np.dtype(np.uint16)),
    work=lambda problem: Work(flops=0, bytes=4 * problem.M * problem.K + 4 * problem.K),
    tolerance=lambda problem: Tolerance(0.0, 0.0, "bits are moved"),
    tests=(
        GatherProblem(1, 8),
        GatherProblem(3, 520),
        GatherProblem(9, 1024),
        GatherProblem(16, 4096),
        GatherProblem(17, 72),
        GatherProblem(33, 5000),
    ),
    activations=frozenset({"x"}),
)


class GatherColumns(Kernel):
    """Eight columns a thread, a few rows for one read of perm."""

    name = "gather_columns"
    op = OP
    config = GatherConfig
    summary = "columns in another order; 16-byte stores, perm read once for several rows"

    def configs(self, gpu):
        """Return the space; programmatic launches where the GPU has them."""
        return tuple(c for c in CONFIGS if not c.programmatic or is_hopper_or_later(gpu.arch))

    def refuses(self, problem):
        """Run every problem."""
        return None

    def specialise(self, config, problem):
        """Return the config with room for a row of this length."""
        row_bytes = round_up(2 * problem.K, ROW_GRAIN_BYTES)
        return replace(config, row_bytes=row_bytes if config.staged else 0)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem on this GPU, or None."""
        if config.programmatic and not is_hopper_or_later(gpu.arch):
            return f"a programmatic launch needs sm_90 or later; {gpu.name} is {gpu.arch}"
        if config.rows >= 2 * problem.M:
            return f"half of rows = {config.rows} holds all of M = {problem.M}"
        if config.smem_bytes > gpu.smem_per_block:
            return (
                f"{config.rows} rows need {config.smem_bytes} bytes of shared memory a block; "
                f"{gpu.name} has {gpu.smem_per_block}"
            )
        if config != self.specialise(config, problem):
            return f"compiled for rows of {config.row_bytes} bytes; got K = {problem.K}"
        return None

    def default(self, problem, gpu):
        """Return staged rows for many, else one row of small blocks, so that all SMs have some."""
        rows = 2 if problem.M >= PAIRED_M else 1
        staged = self.specialise(GatherConfig(512, rows, staged=True), problem)
        if problem.M >= STAGED_M and self.misfit(staged, problem, gpu) is None:
            return staged
        return GatherConfig()

    def build(self, config, arch):
        """Return the program. Grid: rows, columns; Block: 8 columns a thread."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.tools.gather_columns_program import build, build_staged

        make = build_staged if config.staged else build
        return Program(make(config), PARAMETERS, config.num_threads, smem_bytes=config.smem_bytes)

    def prepare(self, problem, inputs):
        """Return both as they are."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return a thread for every 8 columns and `rows` rows, or staged a block for the rows."""
        blocks = 1 if config.staged else ceil_div(problem.K, COLUMNS * config.num_threads)
        grid = (ceil_div(problem.M, config.rows), blocks, 1)
        scalars = {"m": problem.M, "k": problem.K}
        return Launch(grid, scalars, programmatic=config.programmatic)
