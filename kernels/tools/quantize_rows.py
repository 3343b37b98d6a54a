"""Activations in 8 bits, as the W4A8 kernels read them: what stands before such a GEMM.

    sx[h, m] = max(peak of |x[m, k]| over the k of h, 2^-60) / largest
    x8[m, k] = round(x[m, perm[k]] * (largest / peak)), of a slot's k: see below

    x     [M, K] 16-bit, row-major    gmem, read twice, 32 bytes a lane; the second time from L1
    perm  [K] int32                   gmem, of a weight in act-order: x is gathered by it
    x8    [M, Kp] e4m3 or int8        gmem, written once, 16 bytes a lane
    sx    [H, Mp] fp32                gmem, written once, behind x8

Kp is K, or the next multiple of 128; what is past K is zero. Sixteen columns of x8 hold columns
0, 8, 1, 9, ... 7, 15 of x (`kernels/shared/int4_bytes.py`). H is 1, or Kp / 128 where every 128 of
a row have a scale; Mp is M, or the next multiple of 4. largest is 448 in e4m3, 127 in int8.
Quotients and products are rounded to fp32 once, and what is written is the reference's to the bit.

A block has a row: every lane keeps the largest of its elements, as bits without their sign, which
order as numbers do; then warps and block reduce. Where 128 columns have a scale, eight lanes do.

Bound by the time of a launch for few rows, for many by gmem bandwidth.
Limits: K % 8 == 0; e4m3 from sm_89 on.
"""

from dataclasses import dataclass, replace

import numpy as np

from ferrum_numba.contract import Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import round_up
from ferrum_numba.errors import ProblemError
from ferrum_numba.gpu import has_fp8
from ferrum_numba.kernels.dtypes import DTYPES, refuse_dtype
from ferrum_numba.kernels.moe.chained import ChainedKernel, chained_space, refuse_threads
from ferrum_numba.kernels.shared.packed_x8 import M_MULTIPLE, interleave
from ferrum_numba.kernels.w4a8 import X_GROUPS
from ferrum_numba.kernels.w4a16 import MOST, MOST_M
from ferrum_numba.layout import begin, regions
from ferrum_numba.reference.quantize_rows import X_GROUP, X_TYPES, quantize_rows

# columns of a lane at once
COLUMNS = 16
PARAMETERS = (*pointers("x", "perm", "out"), *sizes("m", "k", "columns"))


@dataclass(frozen=True)
class QuantizeProblem:
    """Sizes and kind of one quantisation.

    M, K:    rows and columns of x
    x_dtype: of x8: "fp8" (e4m3) or "int8"
    x_group: columns that share a scale: -1 for the whole row, or 128
    dtype:   of x: "fp16" or "bf16"
    gathers: columns are gathered by a permutation
    """

    M: int
    K: int
    x_dtype: str = "fp8"
    x_group: int = -1
    dtype: str = "fp16"
    gathers: bool = False

    def __post_init__(self):
        if not 1 <= self.M <= MOST_M:
            raise ProblemError(f"M must be 1 to {MOST_M}; got {self.M}")
        if not 8 <= self.K <= MOST or self.K % 8:
            raise ProblemError(f"K must be a multiple of 8 up to {MOST}; got {self.K}")
        if self.x_dtype not in X_TYPES:
            raise ProblemError(f'x_dtype must be "fp8" or "int8"; got "{self.x_dtype}"')
        if self.x_group not in X_GROUPS:
            raise ProblemError(f"x_group must be -1 or {X_GROUP}; got {self.x_group}")
        refuse_dtype(self.dtype, ProblemError)

    @property
    def columns(self):
        """Columns of x8, Kp."""
        return round_up(self.K, X_GROUP)

    @property
    def scales_shape(self):
        """Shape of sx, [H, Mp]."""
        return 1 if self.x_group < 0 else self.columns // X_GROUP, round_up(self.M, M_MULTIPLE)


@dataclass(frozen=True)
class QuantizeConfig:
    """How a row is dealt to threads."""

    num_threads: int = 256  # a block, which has a row
    programmatic: bool = False  # starts before its predecessor ends; Hopper and later
    # what the problem dictates: see `QuantizeRows.specialise`
    x_dtype: str = "fp8"
    x_group: int = -1
    dtype: str = "fp16"
    gathers: bool = False

    def __post_init__(self):
        refuse_threads(self.num_threads)

    @property
    def smem_bytes(self):
        """Dynamic shared memory a block: the largest of each warp."""
        return 4 * 32

    @property
    def smem_map(self):
        """What lies where in it."""
        return regions(self.smem_bytes, begin("peaks", 0, "the largest of each warp", 32))


def output(problem):
    """Return the fields of the result: x8 as bytes, and its scales."""
    fields = [
        ("x8", np.uint8, (problem.M, problem.columns)),
        ("sx", np.float32, problem.scales_shape),
    ]
    return (), np.dtype(fields)


def make_inputs(problem, rng):
    """Return rows of different sizes, one of zeros, and a permutation if columns are gathered."""
    x = rng.standard_normal((problem.M, problem.K), np.float32)
    x *= np.exp2(rng.integers(-8, 9, (problem.M, 1))).astype(np.float32)
    if problem.M > 2:
        x[1] = 0
    inputs = {"x": x.astype(DTYPES[problem.dtype])}
    if problem.gathers:
        inputs["perm"] = rng.permutation(problem.K).astype(np.int32)
    return inputs


def reference(problem, inputs):
    """Return x8 and its scales as one structure, in the kernel's order."""
    out = np.zeros(*output(problem))
    x8, sx = quantize_rows(inputs["x"], problem.x_dtype, problem.x_group, inputs.get("perm"))
    padding = ((0, 0), (0, problem.columns - problem.K))
    out["x8"] = interleave(np.pad(x8.view(np.uint8), padding))
    out["sx"] = np.nan
    out["sx"][: sx.shape[1], : problem.M] = sx.T
    return out


def work(problem):
    """Return x read and the results written once."""
    scales = 4 * problem.scales_shape[0] * problem.M
    perm = 4 * problem.K if problem.gathers else 0
    return Work(flops=0, bytes=problem.M * (2 * problem.K + problem.columns) + scales + perm)


OP = Op(
    name="quantize_rows",
    formula="x8[m, k] = round(x[m, perm[k]] / sx[m]), sx[m] = peak of |x[m]| / largest",
    problem=QuantizeProblem,
    make_inputs=make_inputs,
    reference=reference,
    output=output,
    work=work,
    tolerance=lambda problem: Tolerance(0.0, 0.0, "the reference's roundings, one for one"),
    tests=(
        QuantizeProblem(1, 8),
        QuantizeProblem(3, 128, "int8"),
        QuantizeProblem(5, 200, dtype="bf16"),
        QuantizeProblem(4, 520, x_group=128),
        QuantizeProblem(7, 328, "int8", 128, "bf16"),
        QuantizeProblem(2, 1024, gathers=True),
        QuantizeProblem(3, 264, "int8", 128, gathers=True),
        QuantizeProblem(2, 4104),
    ),
    activations=frozenset({"x"}),
)


class QuantizeRows(ChainedKernel):
    """A row a block; the largest element by its bits."""

    name = "quantize_rows"
    op = OP
    config = QuantizeConfig
    summary = "rows in fp8 or int8 with their scales, in the order of the W4A8 kernels"
    space = chained_space(QuantizeConfig, num_threads=(256, 128, 512, 1024))

    def specialise(self, config, problem):
        """Return the config for the problem's types, groups and permutation."""
        return replace(
            config,
            x_dtype=problem.x_dtype,
            x_group=problem.x_group,
            dtype=problem.dtype,
            gathers=problem.gathers,
        )

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem on this GPU, or None."""
        if config.x_dtype == "fp8" and not has_fp8(gpu.arch):
            return f"fp8 needs sm_89 or later; {gpu.name} is {gpu.arch}"
        return super().misfit(config, problem, gpu)

    def default(self, problem, gpu):
        """Return as many threads as a row has pieces, within reason."""
        pieces = problem.columns // COLUMNS
        threads = min(512, max(64, round_up(pieces, 32)))
        return self.fitted(QuantizeConfig(threads), problem, gpu)

    def build(self, config, arch):
        """Return the program. Grid: rows; Block: threads that share one."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.tools.quantize_rows_program import build

        return Program(build(config), PARAMETERS, config.num_threads, smem_bytes=config.smem_bytes)

    def prepare(self, problem, inputs):
        """Return x and the permutation, or a few words where there is none."""
        return {"perm": np.zeros(4, np.int32), **inputs}

    def launch(self, config, problem, gpu):
        """Return a block for every row."""
        scalars = {"m": problem.M, "k": problem.K, "columns": problem.columns}
        return Launch((problem.M, 1, 1), scalars, programmatic=config.programmatic)
