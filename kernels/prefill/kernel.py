"""W4A16 GEMM for many rows on Hopper: dequantised weights as the register operand of wgmma.

    w[k, n] = round((code[k, n] - zero[g, n]) * scale[g, n]), g = k // group_size
    out[m, n] = round(sum_k x[m, k] * w[k, n] + bias[n])

    x            [M, K] row-major          gmem; tensor map, 128-byte swizzled smem, operand B
    packed       [Kp/16, 2Np] int32        gmem; bulk copies of whole rows, smem, registers: A
    scales       [G, Np], permuted         gmem, one row (or tile_k / group_size) a stage
    zero_points  [G, Np/8] int32           gmem, likewise, of an asymmetric weight; else zero is 8
    bias         [Np], permuted            gmem, read once in the epilogue
    out          [M, N] row-major          gmem, written once, 16 bytes a thread

x, scales, bias and out are fp16 or bf16, whichever `dtype` is built for; the operands are those of
kernels/shared/packed.py.

What is computed is out^T = W^T x^T: a word of the packed weight is one lane's share of a 16 x 16
tile of W^T. Two warpgroups have half of a tile's columns each and all of its rows of x; the other
warps copy ahead of them. A group of products runs while the weights of the next are dequantised.

A block of the grid takes whole output tiles in turn. What is left over of them, or all of them
where they are few, is numbered K first and cut into equal stripes, one a block, which every block
does first. The block that has the first k of a tile adds the sums of the others in their order: the
same bits in every run. It waits for blocks that the GPU has started before it.

Where rows are few, dequantising is the limit. Then the codes minus their zero points, which are
exact, are multiplied, and the sums of a group are scaled in fp32: no weight is rounded
(`scale_sums`).

Where tiles are fewer than half of the SMs, a cluster of two blocks may cut the K of each instead,
and add through its shared memory. Where power is the limit, a pair of blocks with tiles side by
side copies each half of the rows of x to both.

A launch may begin before the one before it has ended: it copies weights, and waits with x.

Workspace: a tile of fp32 sums a block that has a stripe, up to 26 MB on an H200.

Bound by the tensor cores and their power, with few rows by issue slots; see
docs/designs/prefill.md#bound.
Limits: Hopper; group_size in {-1, 32, 64, 128}; no act-order (gather x first); N of at least 128.
"""

from dataclasses import dataclass

from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.prefill.tile import MOST_PART_ROWS, PANEL_K, Tile
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.cut import cut
from ferrum_numba.layout import begin, regions

ARCH = "sm_90a"
# n and k are those of the packed weight, x has x_columns and out out_columns
PARAMETERS = (
    *pointers(
        "x", "packed", "scales", "zero_points", "bias", "out", "partials", "counters", "maps"
    ),
    *sizes("m", "n", "k", "x_columns", "out_columns", "stripe_steps", "striped_tiles", "has_bias"),
)
# of a tensor map, as ptx/tensor_map.py has it
MAP_BYTES = 128


@dataclass(frozen=True)
class Config(Tile):
    """One way to tile."""

    tile_m: int = 128  # rows of x a block, a multiple of 16
    tile_n: int = 256  # columns a block: 64 or 128 a warpgroup
    num_stages: int = 6  # stages of the ring
    stripes: bool = True  # the tiles left over are cut into stripes
    cluster: int = 1  # blocks that share every tile, K cut between them
    pair: bool = False  # two blocks with tiles side by side copy x for each other
    scale_sums: bool = False  # by the scales of their groups, not the weights; stages of 128 of k
    group_size: int = 128  # K a scale, -1: one scale a column
    dtype: str = "fp16"  # of x, scales, bias and out
    has_zero_points: bool = False  # the weight is asymmetric

    def __post_init__(self) -> None:
        self.refuse()
        if self.cluster not in (1, 2, 4) or self.tile_m % (16 * self.cluster):
            raise ConfigError(
                "cluster must be 1, 2 or 4, and tile_m a multiple of 16 a block of it; "
                f"got cluster = {self.cluster}, tile_m = {self.tile_m}"
            )
        most = MOST_PART_ROWS * self.cluster
        if self.cluster > 1 and (self.stripes or self.pair or self.tile_m > most):
            raise ConfigError(
                f"a cluster of {self.cluster} takes no stripes, no pairs, no more than {most} rows;"
                f" got stripes = {self.stripes}, pair = {self.pair}, tile_m = {self.tile_m}"
            )

    @property
    def unit_blocks(self) -> int:
        """Blocks that go from tile to tile together."""
        return 2 if self.pair else 1

    @property
    def part_rows(self) -> int:
        """Rows of a tile that leave it at once."""
        return min(self.tile_m // self.cluster, MOST_PART_ROWS)

    @property
    def sums_offset(self) -> int:
        """Where the sums of the cluster's other blocks come in."""
        return self.out_offset + 2 * self.part_bytes

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory a block: ring, barriers, what is on its way out or comes in."""
        others = self.tile_m // self.cluster * self.tile_n * 4 * (self.cluster - 1)
        return self.sums_offset + others

    @property
    def smem_map(self):
        """What lies where in it."""
        return regions(
            self.smem_bytes,
            *self.ring_map,
            begin("out", self.out_offset, "rounded rows on their way out, of each warpgroup", 2),
            begin("sums", self.sums_offset, "sums of the cluster's other block"),
        )


# (tile_m, tile_n, num_stages): what wins somewhere on an H200, the default first; see
# docs/designs/prefill.md#tiles
_TILES = ((256, 128, 5), (128, 256, 6), (192, 256, 5), (128, 128, 8), (64, 256, 8), (64, 128, 8))
_CONFIGS = (
    *(Config(*tile, stripes=split) for tile in _TILES for split in (True, False)),
    # K cut in two: few tiles
    *(Config(*tile, stripes=False, cluster=2) for tile in ((128, 128, 7), (64, 128, 8))),
    # shared rows of x: less power, where that is the limit
    *(Config(*tile, pair=True) for tile in ((256, 128, 5), (192, 256, 5), (128, 256, 6))),
    # two thirds of the work of 128 rows for 65 to 96, of wide weights and of narrow ones
    Config(96, 256, 7),
    Config(96, 128, 8),
    # few rows: where weights have groups, it is cheaper to scale the sums
    Config(64, 256, 4, scale_sums=True),
    Config(48, 256, 5, scale_sums=True),
    Config(32, 256, 6, scale_sums=True),
    Config(16, 256, 7, scale_sums=True),
    Config(48, 256, 10),
    Config(32, 256, 12),
)

# what a block takes, in cycles (docs/designs/prefill.md#model): a stage of 64 of k, and a word
# of it in every warp. The product of a word with n rows keeps the tensor cores for n / 2 cycles, in
# fact a tenth more, and other instructions from being issued for some of them
STAGE_CYCLES, WORD_CYCLES, TENSOR_ROW_CYCLES = 60, 6, 0.55
WEIGHT_CYCLES, WEIGHT_ROW_CYCLES = 30, 0.22
SUM_CYCLES, SUM_ROW_CYCLES = 18.5, 0.35
# to round and write a sum; to hand a sum to another block, or take it, and once
RESULT_CYCLES, HANDOFF_CYCLES, HANDOFF_LATENCY = 0.09, 0.1, 1500
# rows from which the power limits, and what pairs then take of what blocks alone take
MANY_ROWS, PAIR_SHARE = 2048, 0.97
# of a call, beside its blocks' cycles; and how much longer these are where the clock falls
CALL_US, HOT_ROWS, HOT_SHARE = 1.2, 256, 1.25


class Prefill(layout.PackedKernel):
    """Warp-specialised wgmma with A from registers, persistent over tiles and stripes."""

    name = "prefill"
    config = Config
    models_shapes = True
    summary = "packed layout, wgmma with dequantised A in registers, mbarrier ring; Hopper only"

    def configs(self, gpu):
        """Return the tiles whose shared memory fits the GPU, the default first; Hopper only."""
        if gpu.arch != ARCH:
            return ()
        return tuple(c for c in _CONFIGS if gpu.lacks_smem(c.smem_bytes) is None)

    def refuses(self, problem):
        """Return why no config can run this problem, or None."""
        N = layout.stored_shape(problem)[1]
        if N < 128:
            return f"{self.name} needs N of at least 128; got N = {problem.N} ({N} as packed)"
        return super().refuses(problem)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        if gpu.arch != ARCH:
            return f"wgmma needs {ARCH}; {gpu.name} is {gpu.arch}"
        if config != self.specialise(config, problem):
            return f"compiled for other weights or types than {problem}"
        K, N = layout.stored_shape(problem)
        if config.scale_sums and (config.group_size < 0 or K % config.tile_k):
            return (
                f"sums are scaled by groups, in stages of {config.tile_k} of K; got group_size = "
                f"{config.group_size}, K = {K} (as packed)"
            )
        if config.unit_blocks > gpu.num_sms:
            return f"a pair of blocks needs two SMs; {gpu.name} has {gpu.num_sms}"
        if config.unit_n > N:
            return f"N must be at least {config.unit_n} (pairs of tiles count); got {N} (as packed)"
        # a tile with more 64-row blocks than the problem multiplies zeros for nothing
        if config.tile_m - 64 >= problem.M:
            return f"tile_m = {config.tile_m} for M = {problem.M} only adds rows of zeros"
        if config.cluster > 1:
            blocks = config.cluster * _num_tiles(config, problem)
            if blocks > gpu.num_sms or K // config.tile_k < config.cluster:
                return (
                    f"a cluster of {config.cluster} for every tile needs {blocks} of "
                    f"{gpu.num_sms} SMs, and K of at least {config.tile_k} a block; "
                    f"got K = {problem.K}"
                )
        return gpu.lacks_smem(config.smem_bytes)

    def default(self, problem, gpu):
        """Return the config that takes the fewest cycles by the model of `_cycles`."""
        fitting = self.fitting(problem, gpu)
        return min(fitting, key=lambda config: self._cycles(config, problem, gpu))

    def _cycles(self, config, problem, gpu):
        """Return what a problem takes as modelled from what the parts of a block took."""
        k_steps = layout.stored_shape(problem)[0] // config.tile_k
        tiles = _num_tiles(config, problem)
        sums = config.tile_m * config.tile_n
        stage = stage_cycles(config, config.tile_m)
        if config.cluster > 1:
            handed = HANDOFF_LATENCY + sums * HANDOFF_CYCLES
            return k_steps * stage / config.cluster + handed + sums * RESULT_CYCLES
        scalars = self.launch(config, problem, gpu).scalars
        stripe_steps, striped_tiles = scalars["stripe_steps"], scalars["striped_tiles"]
        units = gpu.num_sms // config.unit_blocks
        cycles = ceil_div(tiles - striped_tiles, units) * (k_steps * stage + sums * RESULT_CYCLES)
        if striped_tiles:
            cycles += stripe_steps * stage + (1 + stripe_steps // k_steps) * sums * RESULT_CYCLES
            cycles += HANDOFF_LATENCY + (1 + k_steps // stripe_steps) * sums * HANDOFF_CYCLES
        many = config.pair and problem.M >= MANY_ROWS
        return cycles * (PAIR_SHARE if many else 1)

    def corners(self):
        """Return problems on which stripes, rings and hand-overs are met."""
        from ferrum_numba.kernels.prefill.corners import CORNERS

        return CORNERS

    def estimate_us(self, config, problem, gpu):
        """Return what a launch is expected to take, modelled: for ranking configs."""
        us = CALL_US + self._cycles(config, problem, gpu) / gpu.clock_mhz
        return us * (HOT_SHARE if problem.M >= HOT_ROWS else 1)

    def build(self, config, arch):
        """Return the program: Grid: a block a SM; Block: two warpgroups and those that copy."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.prefill.program import build

        return Program(
            build(config),
            PARAMETERS,
            config.num_threads,
            smem_bytes=config.smem_bytes,
            cluster=(max(config.cluster, config.unit_blocks), 1, 1),
            lto=True,
        )

    def launch(self, config, problem, gpu):
        """Return a full GPU; with `stripes` one to two tiles a block are dealt out as stripes."""
        k_steps = layout.stored_shape(problem)[0] // config.tile_k
        tiles = _num_tiles(config, problem)
        blocks = gpu.num_sms // config.unit_blocks
        grid = min(tiles, blocks)
        striped_tiles = stripe_steps = 0
        if config.cluster > 1:
            grid = tiles * config.cluster
        elif config.stripes and tiles % blocks:
            waves = tiles // blocks
            striped_tiles = tiles - max(0, waves - 1) * blocks
            stripes, stripe_steps = cut(striped_tiles * k_steps, blocks)
            grid = blocks if waves else stripes
        grid *= config.unit_blocks
        return Launch(
            (grid, 1, 1),
            self.scalars(problem, stripe_steps=stripe_steps, striped_tiles=striped_tiles),
            # of a block's stripe only the first tile can begin before it
            {
                "partials": (grid if striped_tiles else 1) * config.tile_m * config.tile_n * 4,
                "counters": 8 * config.unit_blocks * max(striped_tiles, 1),
                "maps": grid * 2 * MAP_BYTES,
            },
            programmatic=True,
        )


def _num_tiles(config, problem):
    N = layout.stored_shape(problem)[1]
    return ceil_div(problem.M, config.tile_m) * ceil_div(N, config.unit_n)


def stage_cycles(config, rows):
    """Return what a stage takes as modelled, of which so many rows are multiplied.

    Both warpgroups' warps share four schedulers.
    """
    fixed, a_row = WEIGHT_CYCLES, WEIGHT_ROW_CYCLES
    if config.scale_sums:
        fixed, a_row = SUM_CYCLES, SUM_ROW_CYCLES
    word = max(TENSOR_ROW_CYCLES * rows, fixed + a_row * rows) + WORD_CYCLES
    return config.tile_k // PANEL_K * (STAGE_CYCLES + config.tile_n // 16 * word)
