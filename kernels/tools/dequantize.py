"""A weight in Marlin's layout as a plain matrix: int4 codes to fp16 or bf16.

    out[k, n] = round((code[k, n] - zero[k // group_size, n]) * scale[k // group_size, n])

    packed       [Kp/16, 2*Np] int32       gmem, read once, 64 bytes in a row a warp
    scales       [G, Np] fp16 or bf16      gmem, permuted, read for every tile of 16 rows; L1, L2
    zero_points  [G, Np/8] int32           gmem, likewise, where there are some; else 8
    out          [K, N] row-major          gmem, written once, 16 bytes a lane

A warp takes a tile of 16 rows and 64 columns. Lane (t, j, block) reads the words j that the threads
t of all eight columns g of a GEMM's warp load. They hold rows 2t, 2t + 1, 2t + 8, 2t + 9 of the 8
columns from 16j + 8*block on, 16 bytes of four results, so no lane needs what another has read; the
codes of the other block are the neighbour's, which reads the same words.

A code OR-ed into the mantissa of 1024 (fp16) or 128 (bf16) is that number and the code; less the
same number and the zero point it is their difference, exactly, and the product is rounded once.

Bound by gmem bandwidth, four fifths of it writes.
Limits: K % 8 == 0, N % 8 == 0, group_size % 16 == 0 or -1.
"""

from dataclasses import dataclass, replace

import numpy as np

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div, round_up
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES, refuse_dtype
from ferrum_numba.reference.dequantize import dequantize
from ferrum_numba.reference.marlin_layout import TILE_K, TILE_N, pack_zero_points, permute_scales
from ferrum_numba.space import space

WORD_ROWS = 8
MOST = 1 << 20
# lop3: (a & b) | c
AND_OR = 0xEA
# pairs of 1024 in fp16 and of 128 in bf16: the last place of their mantissa is 1
MAGIC = {"fp16": 0x64006400, "bf16": 0x43004300}
CODES = 0x000F000F
ZERO_POINT = 0x00080008
# prmt: byte 0 of the first word, and byte 0 of the second 16 bits higher
BYTES_0 = 0x0400
PARAMETERS = (
    *pointers("packed", "scales", "zero_points", "out"),
    *sizes("k", "n", "n_tiles", "group_tiles"),
)


@dataclass(frozen=True)
class DequantizeProblem:
    """A packed weight.

    K, N:            rows and columns without padding
    group_size:      rows that share a scale, a multiple of 16; -1 for all of them
    has_zero_points: the weight has zero points; without, they are 8
    dtype:           "fp16" or "bf16", of scales and result
    K_padded:        rows of the packed weight, a multiple of 16; 0 for K
    N_padded:        columns of the packed weight, a multiple of 64; 0 for N
    """

    K: int
    N: int
    group_size: int = 128
    has_zero_points: bool = False
    dtype: str = "fp16"
    K_padded: int = 0
    N_padded: int = 0

    def __post_init__(self):
        for name, size, padded, unit in (
            ("K", self.K, self.packed_k, TILE_K), ("N", self.N, self.packed_n, TILE_N),
        ):  # fmt: skip
            if not 1 <= size <= MOST or size % WORD_ROWS:
                raise ProblemError(
                    f"{name} must be a multiple of {WORD_ROWS} up to {MOST}; got {size}"
                )
            if padded % unit or padded < size:
                raise ProblemError(
                    f"Marlin's layout needs {name} padded to a multiple of {unit}; got "
                    f"{name} = {size}, {name}_padded = {padded}, the nearest is "
                    f"{round_up(size, unit)}"
                )
        if self.group_size != -1 and (self.group_size < 1 or self.group_size % TILE_K):
            raise ProblemError(
                f"group_size must be -1 or a multiple of {TILE_K}, the rows of a tile; "
                f"got {self.group_size}"
            )
        refuse_dtype(self.dtype, ProblemError)

    @property
    def packed_k(self):
        """Rows of the packed weight."""
        return self.K_padded or self.K

    @property
    def packed_n(self):
        """Columns of the packed weight."""
        return self.N_padded or self.N

    @property
    def group_rows(self):
        """Rows that share a scale."""
        return self.packed_k if self.group_size == -1 else self.group_size

    @property
    def num_groups(self):
        """Rows of scales."""
        return ceil_div(self.K, self.group_rows)


@dataclass(frozen=True)
class DequantizeConfig:
    """How large a block is, and what the weight is like."""

    num_threads: int = 256
    per_channel: bool = False  # one group: scales in the order of sums
    has_zero_points: bool = False
    dtype: str = "fp16"

    def __post_init__(self):
        if self.num_threads % 32 or not 32 <= self.num_threads <= 1024:
            raise ConfigError(
                f"num_threads must be a multiple of 32 up to 1024; got {self.num_threads}"
            )
        refuse_dtype(self.dtype)


CONFIGS = space(DequantizeConfig, num_threads=(256, 128, 512))


def make_inputs(problem, rng):
    """Return random words, scales as trained layers have, and random zero points."""
    K, N, G = problem.packed_k, problem.packed_n, problem.num_groups
    words = rng.integers(0, 2**32, (K // TILE_K, 2 * N), np.uint32)
    scales = rng.uniform(0.005, 0.015, (G, N)).astype(DTYPES[problem.dtype])
    inputs = {"packed": words.view(np.int32), "scales": permute_scales(scales, grouped=G > 1)}
    if problem.has_zero_points:
        inputs["zero_points"] = pack_zero_points(rng.integers(0, 16, (G, N), np.uint8))
    return inputs


def _work(problem):
    K, N, G = problem.K, problem.N, problem.num_groups
    zeros_bytes = G * N // 2 if problem.has_zero_points else 0
    return Work(flops=2 * K * N, bytes=K * N // 2 + 2 * G * N + zeros_bytes + 2 * K * N)


OP = Op(
    name="dequantize",
    formula="out[k, n] = round((codes[k, n] - zero[g(k), n]) * scales[g(k), n])",
    problem=DequantizeProblem,
    make_inputs=make_inputs,
    reference=lambda problem, inputs: dequantize(
        inputs["packed"], inputs["scales"], inputs.get("zero_points"), problem.group_rows,
        (problem.K, problem.N),
    ),
    output=lambda problem: ((problem.K, problem.N), DTYPES[problem.dtype]),
    work=_work,
    tolerance=lambda problem: Tolerance(
        0.0, 0.0, "the difference is exact and the product is rounded once, to nearest even"
    ),
    tests=(
        DequantizeProblem(16, 64, -1),
        DequantizeProblem(256, 192, 128),
        DequantizeProblem(128, 64, 32, True, "bf16"),
        DequantizeProblem(64, 128, 64, True),
        DequantizeProblem(48, 192, 16, dtype="bf16"),
        DequantizeProblem(104, 72, 48, True, K_padded=192, N_padded=128),
        DequantizeProblem(40, 136, -1, dtype="bf16", K_padded=64, N_padded=192),
        DequantizeProblem(80, 64, -1, True),
    ),
    activations=frozenset(),
)  # fmt: skip


class Dequantize(Kernel):
    """A warp a tile: eight words and four pieces of 16 bytes a lane."""

    name = "dequantize"
    op = OP
    config = DequantizeConfig
    summary = "Marlin's layout to a row-major matrix, rounded once; 16-byte stores"

    def configs(self, gpu):
        """Return sizes of a block for every kind of weight."""
        return CONFIGS

    def refuses(self, problem):
        """Run every problem."""
        return None

    def specialise(self, config, problem):
        """Return the config for the kind of weight."""
        return replace(config, **_kind(problem))

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        for name, need in _kind(problem).items():
            got = getattr(config, name)
            if got != need:
                return f"{name} must be {need} for this weight; got {got}"
        return None

    def build(self, config, arch):
        """Return the program. Grid: tiles; Block: a warp a tile."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.tools.dequantize_program import build

        return Program(build(config), PARAMETERS, config.num_threads)

    def prepare(self, problem, inputs):
        """Return the weight, and zero points that are not read where there are none."""
        return {"zero_points": np.zeros((1, 8), np.int32), **inputs}

    def launch(self, config, problem, gpu):
        """Return a warp for every tile that has a row of the result."""
        n_tiles = problem.packed_n // TILE_N
        scalars = {
            "k": problem.K,
            "n": problem.N,
            "n_tiles": n_tiles,
            "group_tiles": problem.group_rows // TILE_K,
        }
        warps = n_tiles * ceil_div(problem.K, TILE_K)
        return Launch((ceil_div(32 * warps, config.num_threads), 1, 1), scalars)


def _kind(problem):
    """Return the fields of a config that the problem decides."""
    return {
        "per_channel": problem.num_groups == 1,
        "has_zero_points": problem.has_zero_points,
        "dtype": problem.dtype,
    }
