"""Columns in another order: what an act-order weight asks of its activations.

    out[m, j] = x[m, perm[j]]

    x     [M, K] 16-bit, row-major     gmem, 2 bytes a lane, from L1 and L2: a row is a few KB
    perm  [K] int32                    gmem, read once for the rows of a block, 16 bytes a lane
    out   [M, K] 16-bit, row-major     gmem, written once, 16 bytes a lane

Bits are moved, so fp16 and bf16 are alike. A thread owns 8 columns of a few rows. A programmatic
launch reads perm, which is part of the weight, while its predecessor still writes x.

Bound by the time of a launch for few rows, by L1 for many: a lane's 2 bytes are a line's.
Limits: K % 8 == 0.
"""

from dataclasses import dataclass

import numpy as np
from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.ptx.memory import ld_global_nc_v4, ld_global_u16, st_global_v4
from ferrum_numba.ptx.sync import griddepcontrol_launch_dependents, griddepcontrol_wait
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

    def __post_init__(self):
        if self.num_threads % 32 or not 32 <= self.num_threads <= 1024 or self.rows < 1:
            raise ConfigError(
                "num_threads must be a multiple of 32 up to 1024 and rows at least 1; "
                f"got num_threads = {self.num_threads}, rows = {self.rows}"
            )


CONFIGS = space(
    GatherConfig, num_threads=(64, 128, 256), rows=(1, 2, 4, 8), programmatic=(False, True)
)


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
        return tuple(c for c in CONFIGS if not c.programmatic or _is_programmatic(gpu.arch))

    def refuses(self, problem):
        """Run every problem."""
        return None

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem on this GPU, or None."""
        if config.programmatic and not _is_programmatic(gpu.arch):
            return f"a programmatic launch needs sm_90 or later; {gpu.name} is {gpu.arch}"
        if config.rows >= 2 * problem.M:
            return f"half of rows = {config.rows} holds all of M = {problem.M}"
        return None

    def default(self, problem, gpu):
        """Return one row a thread until every SM has threads enough, then up to 8."""
        threads = problem.M * (problem.K // COLUMNS)
        most = max(1, threads // (gpu.num_sms * gpu.max_threads_per_sm))
        rows = next((r for r in (8, 4, 2) if r <= most and r < 2 * problem.M), 1)
        return GatherConfig(256 if rows > 1 else 64, rows)

    def build(self, config, arch):
        """Return the program. Grid: rows, columns; Block: 8 columns a thread."""
        return Program(_build(config), PARAMETERS, config.num_threads)

    def prepare(self, problem, inputs):
        """Return both as they are."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return a thread for every 8 columns and `rows` rows."""
        blocks = -(-problem.K // (COLUMNS * config.num_threads))
        grid = (-(-problem.M // config.rows), blocks, 1)
        scalars = {"m": problem.M, "k": problem.K}
        return Launch(grid, scalars, programmatic=config.programmatic)


def _is_programmatic(arch):
    return int(arch.removeprefix("sm_").rstrip("af")) >= 90


def _build(config):
    num_threads, rows, programmatic = config.num_threads, config.rows, config.programmatic

    @cuda.jit(device=True, inline="always")
    def pair(line, first, second):
        low = uint32(ld_global_u16(line + uint64(first) * uint64(2)))
        high = uint32(ld_global_u16(line + uint64(second) * uint64(2)))
        return uint32(low | uint32(high << uint32(16)))

    def gather_columns(x, perm, out, m, k):
        thread = uint32(uint32(cuda.blockIdx.y) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        column = uint32(thread * uint32(COLUMNS))
        row = uint32(uint32(cuda.blockIdx.x) * uint32(rows))
        if programmatic:
            griddepcontrol_launch_dependents()
        if column < k:
            place = perm + uint64(column) * uint64(4)
            low = ld_global_nc_v4(place)
            high = ld_global_nc_v4(place + uint64(16))
            if programmatic:
                # x is the predecessor's
                griddepcontrol_wait()
            for _ in range(rows):
                if row < m:
                    line = x + uint64(row) * uint64(k) * uint64(2)
                    words = (
                        pair(line, low[0], low[1]), pair(line, low[2], low[3]),
                        pair(line, high[0], high[1]), pair(line, high[2], high[3]),
                    )  # fmt: skip
                    target = out + (uint64(row) * uint64(k) + uint64(column)) * uint64(2)
                    st_global_v4(target, words)
                row = uint32(row + uint32(1))

    return gather_columns
