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
from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div, round_up
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES, refuse_dtype
from ferrum_numba.ptx.arithmetic import (
    lop3,
    mul_bf16x2,
    mul_f16x2,
    prmt,
    sub_bf16x2,
    sub_f16x2,
)
from ferrum_numba.ptx.memory import (
    ld_global_nc_u32,
    ld_global_nc_u32_stream,
    ld_global_nc_v4,
    st_global_v4_if,
)
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
        return Program(_build(config), PARAMETERS, config.num_threads)

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


def _grouped_scales():
    """Return (row of a tile's scales, j, block) -> pairs of the lane's 8 columns."""

    @cuda.jit(device=True, forceinline=True)
    def load(row, j, block):
        # word 4g + j of the tile holds the scales of columns 16j + g and 16j + 8 + g
        place = row + uint64(j) * uint64(4)
        s0, s1 = ld_global_nc_u32(place), ld_global_nc_u32(place + uint64(16))
        s2, s3 = ld_global_nc_u32(place + uint64(32)), ld_global_nc_u32(place + uint64(48))
        s4, s5 = ld_global_nc_u32(place + uint64(64)), ld_global_nc_u32(place + uint64(80))
        s6, s7 = ld_global_nc_u32(place + uint64(96)), ld_global_nc_u32(place + uint64(112))
        half = uint32(0x5410) if block == 0 else uint32(0x7632)
        return prmt(s0, s1, half), prmt(s2, s3, half), prmt(s4, s5, half), prmt(s6, s7, half)

    return load


def _single_scales():
    """Return the same for one group, whose pairs of columns lie together."""

    @cuda.jit(device=True, forceinline=True)
    def load(row, j, block):
        # pair i of 8 columns is word 4i + the block's number in 32 columns
        inner = uint32((j & 1) * 2 + block)
        place = row + uint64(uint32((j >> 1) * 64 + inner * 4))
        return (
            ld_global_nc_u32(place), ld_global_nc_u32(place + uint64(16)),
            ld_global_nc_u32(place + uint64(32)), ld_global_nc_u32(place + uint64(48)),
        )  # fmt: skip

    return load


def _zeros(magic):
    """Return (row of a tile's zero points, j, block) -> pairs of magic number plus zero point."""

    @cuda.jit(device=True, forceinline=True)
    def pair(first, second, shift):
        both = prmt(uint32(first >> shift), uint32(second >> shift), uint32(BYTES_0))
        return lop3(both, uint32(CODES), uint32(magic), AND_OR)

    @cuda.jit(device=True, forceinline=True)
    def load(row, j, block):
        # nibbles j and j + 4 of word g are columns 16j + g and 16j + 8 + g
        low, high = ld_global_nc_v4(row), ld_global_nc_v4(row + uint64(16))
        shift = uint32(j * 4 + block * 16)
        return (
            pair(low[0], low[1], shift), pair(low[2], low[3], shift),
            pair(high[0], high[1], shift), pair(high[2], high[3], shift),
        )  # fmt: skip

    return load


def _weights(config):
    """Return (two columns' words, byte of both, 4 bits down, their scales, zeros) -> weights."""
    is_f16, magic = config.dtype == "fp16", MAGIC[config.dtype]
    sub = sub_f16x2 if is_f16 else sub_bf16x2
    mul = mul_f16x2 if is_f16 else mul_bf16x2

    @cuda.jit(device=True, forceinline=True)
    def weights(first, second, select, shift, scale, zero):
        codes = uint32(prmt(first, second, select) >> shift)
        return mul(sub(lop3(codes, uint32(CODES), uint32(magic), AND_OR), zero), scale)

    return weights


def _build(config):
    num_warps, has_zero_points = config.num_threads // 32, config.has_zero_points
    symmetric = MAGIC[config.dtype] | ZERO_POINT
    load_scales = _single_scales() if config.per_channel else _grouped_scales()
    load_zeros = _zeros(MAGIC[config.dtype])
    weights = _weights(config)

    @cuda.jit(device=True, forceinline=True)
    def store(place, words, select, shift, s, z, inside):
        row = (
            weights(words[0], words[1], select, shift, s[0], z[0]),
            weights(words[2], words[3], select, shift, s[1], z[1]),
            weights(words[4], words[5], select, shift, s[2], z[2]),
            weights(words[6], words[7], select, shift, s[3], z[3]),
        )
        st_global_v4_if(place, row, uint32(1) if inside else uint32(0))

    def dequantize(packed, scales, zero_points, out, k, n, n_tiles, group_tiles):
        # index: which tile of the warp, which rows and columns of the lane
        tid = uint32(cuda.threadIdx.x)
        lane_id = uint32(tid & 31)
        tile = uint32(uint32(cuda.blockIdx.x) * uint32(num_warps) + uint32(tid >> 5))
        k_tile = uint32(tile // n_tiles)
        n_tile = uint32(tile - k_tile * n_tiles)
        block = uint32(lane_id & 1)
        j, t = uint32(uint32(lane_id >> 1) & 3), uint32(lane_id >> 3)
        row = uint32(k_tile * TILE_K + t * 2)
        column = uint32(n_tile * TILE_N + j * 16 + block * 8)

        if k_tile * uint32(TILE_K) < k:
            source = packed + uint64(tile) * uint64(512) + uint64(uint32(t * 4 + j)) * uint64(4)
            words = (
                ld_global_nc_u32_stream(source), ld_global_nc_u32_stream(source + uint64(64)),
                ld_global_nc_u32_stream(source + uint64(128)),
                ld_global_nc_u32_stream(source + uint64(192)),
                ld_global_nc_u32_stream(source + uint64(256)),
                ld_global_nc_u32_stream(source + uint64(320)),
                ld_global_nc_u32_stream(source + uint64(384)),
                ld_global_nc_u32_stream(source + uint64(448)),
            )  # fmt: skip
            # of the tile's columns: 128 bytes of scales, 32 of zero points
            of_group = uint64(uint32(k_tile // group_tiles)) * uint64(n_tiles) + uint64(n_tile)
            s = load_scales(scales + of_group * uint64(128), j, block)
            if has_zero_points:
                z = load_zeros(zero_points + of_group * uint64(32), j, block)
            else:
                z = (uint32(symmetric), uint32(symmetric), uint32(symmetric), uint32(symmetric))

            # of both words, the byte with the codes of rows 2t and 2t + 8, then of the rows below
            select = uint32(BYTES_0 + block * 0x0101)
            below = uint32(select + 0x0202)
            line = uint64(n) * uint64(2)
            place = out + uint64(row) * line + uint64(column) * uint64(2)
            is_column = column < n
            store(place, words, select, 0, s, z, is_column and row < k)
            store(place + line, words, below, 0, s, z, is_column and row < k)
            row = uint32(row + 8)
            place = place + line * uint64(8)
            store(place, words, select, 4, s, z, is_column and row < k)
            store(place + line, words, below, 4, s, z, is_column and row < k)

    return dequantize
