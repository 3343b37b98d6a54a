"""The gate between an expert's two GEMMs, where the first has not applied it.

    out[r, j] = round(silu(gate[r, j]) * up[r, j]), silu(g) = g / (1 + exp(-g))

    x    [rows, 2 * columns] fp16 or bf16, row-major  gmem, read once, 16 bytes a lane, twice
         gate and up in runs of 8, or gate in the left half and up in the right
    out  [rows, columns], the type of x               gmem, written once, 16 bytes a lane

A thread owns 8 columns of a few rows: a run of gate, and of up. Products are in fp32, with the
approximations of kernels/shared/silu.py, and rounded once. Rows that nobody wrote give rows that
nobody reads.

Bound by the time of a launch for few rows, by gmem bandwidth for many.
Limits: columns % 8 == 0.
"""

from dataclasses import dataclass, replace

import numpy as np

from ferrum_numba.contract import Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES, refuse_dtype
from ferrum_numba.kernels.grouped import MOST_TOP_K
from ferrum_numba.kernels.moe.chained import (
    ChainedKernel,
    chained_space,
    even_threads,
    refuse_threads,
)
from ferrum_numba.kernels.w4a16 import MOST, MOST_M
from ferrum_numba.reference.moe import GATE_RUN, silu_mul

MOST_ROWS = MOST_M * MOST_TOP_K
# runs of all rows from which on a thread has two
MANY_RUNS = 1 << 17
PARAMETERS = (*pointers("x", "out"), *sizes("rows", "columns"))


@dataclass(frozen=True)
class SiluProblem:
    """Sizes and kind of one gate.

    rows:        of x: pairs of token and expert
    columns:     of out, half of x's
    interleaved: gate and up lie in runs of 8, else side by side
    dtype:       "fp16" or "bf16"
    """

    rows: int
    columns: int
    interleaved: bool = True
    dtype: str = "fp16"

    def __post_init__(self):
        if not 1 <= self.rows <= MOST_ROWS:
            raise ProblemError(f"rows must be 1 to {MOST_ROWS}; got {self.rows}")
        if not 1 <= self.columns <= MOST or self.columns % GATE_RUN:
            raise ProblemError(
                f"columns must be a multiple of {GATE_RUN} up to {MOST}; got {self.columns}"
            )
        refuse_dtype(self.dtype, ProblemError)


@dataclass(frozen=True)
class SiluConfig:
    """How the columns and rows are dealt to threads."""

    num_threads: int = 64  # a small block: few rows have few columns to deal
    rows: int = 1  # rows of a thread
    programmatic: bool = False  # starts before its predecessor ends; Hopper and later
    # what the problem dictates: see `SiluMul.specialise`
    interleaved: bool = True
    dtype: str = "fp16"

    def __post_init__(self):
        refuse_threads(self.num_threads)
        if self.rows < 1:
            raise ConfigError(f"rows must be at least 1; got rows = {self.rows}")
        refuse_dtype(self.dtype)


def make_inputs(problem, rng):
    """Return sums of the size that layers have."""
    x = rng.standard_normal((problem.rows, 2 * problem.columns), np.float32) * 2
    return {"x": x.astype(DTYPES[problem.dtype])}


def tolerance(problem):
    """Return bounds of one rounding that falls the other way, here and there."""
    last = 2.0**-10 if problem.dtype == "fp16" else 2.0**-7
    return Tolerance(
        last / 8, last, "approximations of 2^-19 at most move one rounding in some hundred"
    )


OP = Op(
    name="silu_mul",
    formula="out[r, j] = round(silu(gate[r, j]) * up[r, j])",
    problem=SiluProblem,
    make_inputs=make_inputs,
    reference=lambda problem, inputs: silu_mul(inputs["x"], problem.interleaved),
    output=lambda problem: ((problem.rows, problem.columns), DTYPES[problem.dtype]),
    work=lambda problem: Work(
        flops=2 * problem.rows * problem.columns, bytes=6 * problem.rows * problem.columns
    ),
    tolerance=tolerance,
    tests=(
        SiluProblem(1, 8),
        SiluProblem(3, 520, dtype="bf16"),
        SiluProblem(9, 1032, interleaved=False),
        SiluProblem(16, 768, interleaved=False, dtype="bf16"),
        SiluProblem(17, 72),
    ),
    activations=frozenset({"x"}),
)


class SiluMul(ChainedKernel):
    """Eight columns a thread, of a few rows."""

    name = "silu_mul"
    op = OP
    config = SiluConfig
    summary = "silu(gate) * up in fp32, gate and up in runs or side by side; 16-byte accesses"
    space = chained_space(SiluConfig, num_threads=(64, 128, 256), rows=(1, 2, 4, 8))

    def specialise(self, config, problem):
        """Return the config for where gate and up lie, and their type."""
        return replace(config, interleaved=problem.interleaved, dtype=problem.dtype)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem on this GPU, or None."""
        if config.rows >= 2 * problem.rows:
            return f"half of rows = {config.rows} holds all {problem.rows}"
        return super().misfit(config, problem, gpu)

    def default(self, problem, gpu):
        """Return one row a thread, or two where every SM has threads enough."""
        runs = problem.columns // GATE_RUN
        enough = problem.rows * runs >= MANY_RUNS and problem.rows > 1
        config = SiluConfig(even_threads(runs, 256), 2) if enough else None
        return self.fitted(config or SiluConfig(even_threads(runs, 128)), problem, gpu)

    def build(self, config, arch):
        """Return the program. Grid: rows, columns; Block: 8 columns a thread."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.moe.silu_mul_program import build

        return Program(build(config), PARAMETERS, config.num_threads)

    def prepare(self, problem, inputs):
        """Return x as it is."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return a thread for every 8 columns and `rows` rows."""
        blocks = ceil_div(problem.columns, GATE_RUN * config.num_threads)
        grid = (ceil_div(problem.rows, config.rows), blocks, 1)
        scalars = {"rows": problem.rows, "columns": problem.columns}
        return Launch(grid, scalars, programmatic=config.programmatic)
