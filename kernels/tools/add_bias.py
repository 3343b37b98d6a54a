"""A bias added to a result that was rounded before: the second step of a two-step linear layer.

    out[m, n] = round(fp32(x[m, n]) + fp32(bias[n]))

    x     [M, N] fp16 or bf16, row-major     gmem, read once, 16 bytes a lane
    bias  [N], the type of x, plain order    gmem, read once for the rows of a thread
    out   [M, N], the type of x              gmem, written once, 16 bytes a lane; may be x itself

A thread reads what it will overwrite and nothing else, so in place is the usual call: x = out.

Bound by the time of a launch for few rows, by gmem bandwidth for many.
Limits: N % 8 == 0.
"""

from dataclasses import dataclass, replace

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES, refuse_dtype
from ferrum_numba.reference.add_bias import add_bias
from ferrum_numba.space import space

# columns of a thread: 16 bytes of 2
COLUMNS = 8
MOST_M, MOST_N = 65_536, 1 << 20
PARAMETERS = (*pointers("x", "bias", "out"), *sizes("m", "n"))


@dataclass(frozen=True)
class AddBiasProblem:
    """Rows and columns of x, and its type: "fp16" or "bf16"."""

    M: int
    N: int
    dtype: str = "fp16"

    def __post_init__(self):
        if not 1 <= self.M <= MOST_M:
            raise ProblemError(f"M must be 1 to {MOST_M}; got {self.M}")
        if not 1 <= self.N <= MOST_N or self.N % COLUMNS:
            raise ProblemError(f"N must be a multiple of {COLUMNS} up to {MOST_N}; got {self.N}")
        refuse_dtype(self.dtype, ProblemError)


@dataclass(frozen=True)
class AddBiasConfig:
    """How the columns and rows are dealt to threads."""

    num_threads: int = 64  # a small block: few rows have few columns to deal
    rows: int = 1  # rows of a thread, for one read of the bias
    dtype: str = "fp16"

    def __post_init__(self):
        if self.num_threads % 32 or not 32 <= self.num_threads <= 1024 or self.rows < 1:
            raise ConfigError(
                "num_threads must be a multiple of 32 up to 1024 and rows at least 1; "
                f"got num_threads = {self.num_threads}, rows = {self.rows}"
            )
        refuse_dtype(self.dtype)


CONFIGS = space(AddBiasConfig, num_threads=(64, 128, 256), rows=(1, 2, 4, 8))


def make_inputs(problem, rng):
    """Return results and a bias of the size that layers have."""
    dtype = DTYPES[problem.dtype]
    x = rng.standard_normal((problem.M, problem.N), "f4").astype(dtype)
    return {"x": x, "bias": rng.standard_normal(problem.N, "f4").astype(dtype)}


OP = Op(
    name="add_bias",
    formula="out[m, n] = round(fp32(x[m, n]) + fp32(bias[n]))",
    problem=AddBiasProblem,
    make_inputs=make_inputs,
    reference=lambda problem, inputs: add_bias(inputs["x"], inputs["bias"]),
    output=lambda problem: ((problem.M, problem.N), DTYPES[problem.dtype]),
    work=lambda problem: Work(
        flops=problem.M * problem.N, bytes=4 * problem.M * problem.N + 2 * problem.N
    ),
    tolerance=lambda problem: Tolerance(0.0, 0.0, "one fp32 sum, rounded once, to nearest even"),
    tests=(
        AddBiasProblem(1, 8),
        AddBiasProblem(3, 520, "bf16"),
        AddBiasProblem(9, 1032),
        AddBiasProblem(16, 2048, "bf16"),
        AddBiasProblem(17, 72),
    ),
    activations=frozenset({"x"}),
)


class AddBias(Kernel):
    """Eight columns a thread, a few rows for one read of the bias."""

    name = "add_bias"
    op = OP
    config = AddBiasConfig
    summary = "a bias added in fp32 to fp16 or bf16, in place; 16-byte loads and stores"

    def configs(self, gpu):
        """Return the space for both types."""
        return CONFIGS

    def refuses(self, problem):
        """Run every problem."""
        return None

    def specialise(self, config, problem):
        """Return the config for the problem's type."""
        return replace(config, dtype=problem.dtype)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        if config.dtype != problem.dtype:
            return f"compiled for {config.dtype}, not {problem.dtype}"
        if config.rows >= 2 * problem.M:
            return f"half of rows = {config.rows} holds all of M = {problem.M}"
        return None

    def default(self, problem, gpu):
        """Return one row a thread until every SM has threads enough, then up to 8."""
        threads = problem.M * (problem.N // COLUMNS)
        most = max(1, threads // (gpu.num_sms * gpu.max_threads_per_sm))
        rows = next((r for r in (8, 4, 2) if r <= most and r < 2 * problem.M), 1)
        return AddBiasConfig(256 if rows > 1 else 64, rows, problem.dtype)

    def build(self, config, arch):
        """Return the program. Grid: rows, columns; Block: 8 columns a thread."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.tools.add_bias_program import build

        return Program(build(config), PARAMETERS, config.num_threads)

    def prepare(self, problem, inputs):
        """Return both as they are."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return a thread for every 8 columns and `rows` rows."""
        blocks = ceil_div(problem.N, COLUMNS * config.num_threads)
        grid = (ceil_div(problem.M, config.rows), blocks, 1)
        return Launch(grid, {"m": problem.M, "n": problem.N})
