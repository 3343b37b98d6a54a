"""W4A16 GEMM on Marlin's packed weights: int4 weights, 16-bit activations, fp32 accumulation.

    w[k, n] = round((code[k, n] - zero[g, n]) * scale[g, n]), g = k // group_size
    out[m, n] = round(sum_k x[m, k] * w[k, n] + bias[n])

    x            [M, K] row-major          gmem, read once a column slice; cp.async, swizzled smem
    packed       [Kp/16, 2Np] int32        gmem, streamed once a row slice; cp.async, as it lies
    scales       [G, Np], permuted         gmem, one row (or tile_k / group_size) a stage
    zero_points  [G, Np/8] int32           gmem, likewise, of an asymmetric weight; else zero is 8
    bias         [Np], permuted            gmem, read once in the epilogue
    out          [M, N] row-major          gmem, written once, 16 bytes a thread

x, scales, bias and out are fp16 or bf16, whichever `dtype` is built for; the operands are those of
kernels/shared/packed.py. The rows of a weight in act-order are packed by group, and x's columns are
brought into that order before (kernels/tools/gather_columns.py): gathered by the lanes that copy x,
they cost more, from the first row on (docs/designs/tools.md#gather-before).

The steps of all output slices are numbered K first and cut into equal stripes, one a block, so
every SM streams the same number of bytes, whatever the shape: see kernels/shared/stripes.py.

The copies of a block run ahead across its slices. A slice that several blocks share is summed in
fp32 by the block that arrives last, in the order of the blocks: the same bits in every run, and no
block waits for another.

Before Hopper and after it (sm_80, sm_89, sm_120) this is the kernel for many rows too: its tiles of
64 rows and 128 or 256 columns are those of a multi-stage mma.sync GEMM. None of it was measured
there.

Bound by gmem bandwidth and latency for few rows of x, by mma.sync for many: on an H200 that gives
three quarters of wgmma's rate (docs/designs/marlin.md#bound).
Limits: group_size in {-1, 32, 64, 128}; of other K and N than multiples of 64 a padded weight.
From: Marlin, Frantar et al., arXiv 2408.11743; github.com/IST-DASLab/marlin (Apache-2.0).
"""

from dataclasses import dataclass
from itertools import product

from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.division import ceil_div, round_up
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.marlin import estimate
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.cut import cut
from ferrum_numba.layout import begin, regions

# n and k are those of the packed weight, x has x_columns and out out_columns
PARAMETERS = (
    *pointers("x", "packed", "scales", "zero_points", "bias", "out", "partials", "counters"),
    *sizes("m", "n", "k", "x_columns", "out_columns", "stripe_steps", "has_bias"),
)


# they are numbered in 32 bits, and the end of a stripe may lie beyond the last
MOST_STEPS = 2**31


@dataclass(frozen=True)
class Config:
    """One way to tile.

    A warp owns 64 columns and all rows of the tile; warps beyond tile_n / 64 split K.
    """

    tile_m: int = 16  # rows of x a block, a multiple of 16
    tile_n: int = 128  # columns a block, a multiple of 64
    tile_k: int = 128  # K a stage
    num_stages: int = 4  # stages of the cp.async ring
    num_warps: int = 8
    blocks_per_sm: int = 1  # blocks launched a SM
    group_size: int = 128  # K a scale, -1: one scale a column
    dtype: str = "fp16"  # of x, scales, bias and out
    has_zero_points: bool = False  # the weight is asymmetric

    def __post_init__(self) -> None:
        if self.tile_n not in (64, 128, 256) or self.warps_k not in (2, 4):
            raise ConfigError(
                "tile_n must be 64, 128 or 256, and num_warps 2 or 4 times tile_n / 64; "
                f"got tile_n = {self.tile_n}, num_warps = {self.num_warps}"
            )
        if self.tile_k % (16 * self.warps_k):
            raise ConfigError(
                f"tile_k must give each of the {self.warps_k} warps along K whole steps of 16; "
                f"got tile_k = {self.tile_k}"
            )
        if self.tile_m not in (16, 32, 48, 64) or self.num_stages < 2:
            raise ConfigError(
                "tile_m must be 16, 32, 48 or 64 and num_stages at least 2; "
                f"got tile_m = {self.tile_m}, num_stages = {self.num_stages}"
            )
        if self.blocks_per_sm < 1:
            raise ConfigError(f"blocks_per_sm must be at least 1; got {self.blocks_per_sm}")
        if self.tile_k not in (64, 128):
            raise ConfigError(f"tile_k must be 64 or 128; got {self.tile_k}")
        layout.refuse_kind(self.group_size, self.dtype)

    @property
    def warps_k(self) -> int:
        """Warps that split a tile's K between them."""
        return self.num_warps * 64 // self.tile_n

    @property
    def num_threads(self) -> int:
        """Threads a block."""
        return 32 * self.num_warps

    @property
    def scale_rows(self) -> int:
        """Rows of scales a stage holds."""
        return 0 if self.group_size < 0 else max(1, self.tile_k // self.group_size)

    @property
    def a_stage_bytes(self) -> int:
        """Bytes of x a stage."""
        return self.tile_m * self.tile_k * 2

    @property
    def b_stage_bytes(self) -> int:
        """Bytes of packed weights a stage."""
        return self.tile_k * self.tile_n // 2

    @property
    def s_stage_bytes(self) -> int:
        """Bytes of scales a stage."""
        return self.scale_rows * self.tile_n * 2

    @property
    def z_stage_bytes(self) -> int:
        """Bytes of zero points a stage."""
        return self.scale_rows * self.tile_n // 2 if self.has_zero_points else 0

    @property
    def stage_bytes(self) -> int:
        """Bytes of one stage of the ring."""
        return self.a_stage_bytes + self.b_stage_bytes + self.s_stage_bytes + self.z_stage_bytes

    @property
    def sums_bytes(self) -> int:
        """Bytes for the sums of all warps along K."""
        return self.warps_k * self.tile_m * self.tile_n * 4

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory a block: ring, sums, fp16 tile on its way out, flag."""
        out_bytes = self.tile_m * (self.tile_n * 2 + 16)
        return self.num_stages * self.stage_bytes + self.sums_bytes + out_bytes + 16

    @property
    def smem_map(self):
        """What lies where in it."""
        b = self.a_stage_bytes
        s = b + self.b_stage_bytes
        z = s + self.s_stage_bytes
        stage = regions(
            self.stage_bytes,
            begin("x", 0, "rows of x"),
            begin("words", b, "packed weights"),
            begin("scales", s, "of the stage's groups"),
            begin("zero points", z, "of the stage's groups"),
        )
        ring = self.num_stages * self.stage_bytes
        return regions(
            self.smem_bytes,
            begin("ring", 0, "stages of the cp.async ring", self.num_stages, stage),
            begin("sums", ring, "sums of the warps along K", self.warps_k),
            begin("out", ring + self.sums_bytes, "the rounded tile on its way out"),
            begin("flag", self.smem_bytes - 16, "whether this block adds up the others' sums"),
        )


# (tile_n, tile_k, num_warps) and the depths of the ring: up to 16 rows the ring hides the latency
# of memory, beyond them registers and shared memory run out first
_NARROW = (
    *product(((128, 128, 8), (256, 64, 8), (64, 128, 4), (128, 64, 4), (256, 128, 8)), (4, 6)),
    # the one tile that every shape divides into
    ((64, 64, 4), 4),
)
_WIDE = (*product(((256, 64, 8), (128, 128, 8), (128, 64, 4)), (3, 4)), ((64, 64, 4), 3))

# (tile_n, tile_k, num_stages, num_warps, blocks_per_sm) to run untuned, the best first
_FEW_ROWS = ((64, 128, 4, 4, 4), (64, 128, 4, 4, 2), (64, 128, 4, 4, 1), (64, 64, 4, 4, 1))
_MANY_ROWS = ((128, 128, 3, 8, 1), (256, 64, 3, 8, 1), (128, 64, 3, 4, 1), (64, 64, 3, 4, 1))


def _space():
    """Return the whole space, the default first: Marlin's own tile for up to 16 rows."""
    configs = [
        Config(tile_m, *shape, num_stages, num_warps, blocks_per_sm)
        for tile_m in (16, 32, 48, 64)
        for (*shape, num_warps), num_stages in (_NARROW if tile_m == 16 else _WIDE)
        for blocks_per_sm in (1, 2, 3, 4)
    ]
    fitting = [c for c in configs if c.blocks_per_sm == 1 or _residency(c) >= c.blocks_per_sm]
    default = Config()
    return (default, *(c for c in fitting if c != default))


def _residency(config):
    """Return how many blocks a SM can hold; the accumulators take most registers, the rest ~70."""
    registers = config.tile_m * config.tile_n // (32 * config.num_warps) * config.warps_k + 70
    return min(65536 // (registers * config.num_threads), 227 * 1024 // (config.smem_bytes + 1024))


_CONFIGS = _space()


class Marlin(layout.PackedKernel):
    """Marlin's design: mma.sync, a cp.async ring, equal stripes over the SMs."""

    name = "marlin"
    config = Config
    summary = "packed layout, mma.m16n8k16, cp.async ring, stripes over the SMs, ordered fp32 sum"

    def configs(self, gpu):
        """Return the configs whose shared memory fits the GPU, the default first."""
        return tuple(c for c in _CONFIGS if gpu.lacks_smem(c.smem_bytes, c.blocks_per_sm) is None)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        if config != self.specialise(config, problem):
            return f"compiled for other weights or types than {problem}"
        K, N = layout.stored_shape(problem)
        if N % config.tile_n or K % config.tile_k:
            return (
                f"N must be a multiple of tile_n = {config.tile_n} and K of tile_k = "
                f"{config.tile_k}; got N = {N}, K = {K} (as packed)"
            )
        steps = ceil_div(problem.M, config.tile_m) * (N // config.tile_n) * (K // config.tile_k)
        if steps >= MOST_STEPS:
            return (
                f"steps of {config.tile_m} rows, {config.tile_n} columns and {config.tile_k} of K "
                f"must be fewer than {MOST_STEPS}; got {steps}, of M = {problem.M}, N = {N}, "
                f"K = {K}"
            )
        # a tile with more 16-row blocks than the problem multiplies zeros for nothing
        if config.tile_m - 16 >= problem.M:
            return f"tile_m = {config.tile_m} for M = {problem.M} only adds rows of zeros"
        return gpu.lacks_smem(config.smem_bytes, config.blocks_per_sm)

    def default(self, problem, gpu):
        """Return the tile that was fastest for such an M on an H200, where it fits."""
        tile_m = min(64, round_up(problem.M, 16))
        wanted = [
            Config(tile_m, *shape, num_stages, num_warps, blocks_per_sm)
            for *shape, num_stages, num_warps, blocks_per_sm in (
                _FEW_ROWS if tile_m == 16 else _MANY_ROWS
            )
        ]
        space = self.configs(gpu)
        special = (self.specialise(c, problem) for c in wanted if c in space)
        fitting = (c for c in special if not self.misfit(c, problem, gpu))
        return next(fitting, None) or super().default(problem, gpu)

    def corners(self):
        """Return problems on which stripes, rings and hand-overs are met."""
        from ferrum_numba.kernels.marlin.corners import CORNERS

        return CORNERS

    def estimate_us(self, config, problem, gpu):
        """Return what a launch is expected to take, modelled: for ranking configs."""
        return estimate.estimate_us(config, problem, self.launch(config, problem, gpu), gpu)

    def build(self, config, arch):
        """Return the program: Grid: stripes; Block: num_warps; smem: ring + exchange."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.marlin.program import build

        return Program(build(config), PARAMETERS, config.num_threads, smem_bytes=config.smem_bytes)

    def launch(self, config, problem, gpu):
        """Return the stripes: as few blocks as give every one the same number of steps."""
        K, N = layout.stored_shape(problem)
        slices = ceil_div(problem.M, config.tile_m) * (N // config.tile_n)
        steps = slices * (K // config.tile_k)
        grid, stripe_steps = cut(steps, gpu.num_sms * config.blocks_per_sm)
        return Launch(
            (grid, 1, 1),
            self.scalars(problem, stripe_steps=stripe_steps),
            # a block shares at most its first and its last slice
            {"partials": 2 * grid * config.tile_m * config.tile_n * 4, "counters": 4 * slices},
        )
