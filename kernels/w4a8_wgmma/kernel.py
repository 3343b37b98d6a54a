"""W4A8 GEMM on Hopper: int4 weights become 8 bits in registers, the operand A of wgmma.

    w8[k, n] = f * (code[k, n] - zero[g, n]), exact in e4m3 and int8; f is a power of 2
    out[m, n] = round(sx[m] * sum_g scale[g, n] / f * sum_{k in g} x8[m, k] * w8[k, n] + bias[n])

    x8           [M, Kp] e4m3 or int8      gmem; tensor map, 128-byte swizzled smem, operand B
    sx           [H, Mp] float32           gmem, once a tile, smem; of groups with the stages
    packed       [Kp/16, 2Np] int32        gmem; bulk copies of whole rows, smem, registers: A
    scales       [G, Np], permuted         gmem, one row (or tile_k / group_size) a stage
    zero_points  [G, Np/8] int32           gmem, likewise, of an asymmetric weight; else zero is 8
    bias         [Np], permuted            gmem, read once in the epilogue
    out          [M, N] row-major          gmem, written once, 16 bytes a thread

scales, bias and out are fp16 or bf16; the weight's operands are those of kernels/shared/packed.py,
those of x8 of kernels/shared/packed_x8.py.

The tiles, the ring, who copies and how tiles are dealt out are those of `prefill`: two warpgroups
have half of a tile's columns each, and four warps copy ahead. A stage is 128 rows of the weight.
The tensor cores sum the products of a group, or of a stage where groups are longer, and the sums
are scaled in fp32: Hopper keeps 13 bits of a sum of fp8 (docs/designs/w4a8_wgmma.md#accumulation).
While one warpgroup scales, the other's products run.

Workspace: a tile of fp32 sums a block that has a stripe.

Bound by the tensor cores and their power, with few rows by the weight's bytes; see
docs/designs/w4a8_wgmma.md#bound.
Limits: Hopper; group_size in {-1, 32, 64, 128}; N of at least 128; K a multiple of 128 as packed.
"""

from dataclasses import dataclass

from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.division import ceil_div, round_up
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.prefill.tile import MOST_PART_ROWS, Tile
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.cut import cut
from ferrum_numba.kernels.shared.packed_x8 import TABLES_BYTES, PackedX8Kernel
from ferrum_numba.kernels.w4a8 import X_GROUPS
from ferrum_numba.layout import begin, regions
from ferrum_numba.reference.quantize_rows import X_TYPES

ARCH = "sm_90a"
# rows of a stage: 128 bytes of a row of x8, which is what the swizzle repeats in
STAGE_K = 128
# n and k are those of the packed weight, out has out_columns; x_columns: 16 bits, two of x8
PARAMETERS = (
    *pointers(
        "x8", "sx", "packed", "scales", "zero_points", "bias", "out", "partials", "counters", "maps"
    ),
    *sizes("m", "n", "k", "x_columns", "out_columns", "stripe_steps", "striped_tiles", "has_bias"),
)
# of a tensor map, as ptx/tensor_map.py has it
MAP_BYTES = 128
# registers of sums a thread: of the strips and of the chains that are not scaled yet
MOST_SUMS, MOST_SUMS_OF_TWO_SETS = 192, 144


@dataclass(frozen=True)
class Config(Tile):
    """One way to tile."""

    tile_m: int = 128  # rows of x8 a block, a multiple of 16
    tile_n: int = 256  # columns a block: 64 or 128 a warpgroup
    num_stages: int = 5  # stages of the ring
    stripes: bool = True  # the tiles left over are cut into stripes
    cluster: int = 1  # blocks that share every tile, K cut between them
    pair: bool = False  # two blocks with tiles side by side copy x8 for each other
    ahead: int = 4  # products whose weights are dequantised while those of a chain before run
    # what the problem dictates: see `PackedX8Kernel.specialise`
    group_size: int = 128  # K a scale, -1: one scale a column
    dtype: str = "fp16"  # of scales, bias and out
    has_zero_points: bool = False  # the weight is asymmetric
    x_dtype: str = "fp8"  # of x8
    x_group: int = -1  # k of x8 a scale

    x_bytes = 1
    scale_sums = True

    def __post_init__(self) -> None:
        if self.tile_n not in (128, 256):
            raise ConfigError(f"tile_n must be 128 or 256; got {self.tile_n}")
        if self.tile_m % 16 or not 16 <= self.tile_m <= 256:
            raise ConfigError(f"tile_m must be a multiple of 16 from 16 to 256; got {self.tile_m}")
        if self.sums(1) > MOST_SUMS:
            raise ConfigError(
                f"tile_m * (tile_n + 128) must be at most {256 * MOST_SUMS}; got "
                f"{self.tile_m} * ({self.tile_n} + 128)"
            )
        if self.num_stages < 2:
            raise ConfigError(f"num_stages must be at least 2; got {self.num_stages}")
        if not 1 <= self.ahead <= 4:
            raise ConfigError(f"ahead must be 1 to 4; got {self.ahead}")
        if self.cluster not in (1, 2) or self.tile_m % (16 * self.cluster):
            raise ConfigError(
                "cluster must be 1 or 2, and tile_m a multiple of 16 a block of it; "
                f"got cluster = {self.cluster}, tile_m = {self.tile_m}"
            )
        most = MOST_PART_ROWS * self.cluster
        if self.cluster > 1 and (self.stripes or self.pair or self.tile_m > most):
            raise ConfigError(
                f"a cluster of {self.cluster} takes no stripes, no pairs, no more than {most} rows;"
                f" got stripes = {self.stripes}, pair = {self.pair}, tile_m = {self.tile_m}"
            )
        layout.refuse_kind(self.group_size, self.dtype)
        if self.x_dtype not in X_TYPES or self.x_group not in X_GROUPS:
            raise ConfigError(
                f"x8 is {' or '.join(X_TYPES)}, with x_group in {X_GROUPS}; got {self.x_dtype}, "
                f"{self.x_group}"
            )

    def sums(self, sets: int) -> int:
        """Return the registers that sums take a thread, with so many sets of those of chains."""
        return (self.strips + sets) * self.tile_m // 2

    @property
    def sets(self) -> int:
        """Sets of sums of chains: with two of them one chain runs while the last is scaled."""
        return 2 if self.sums(2) <= MOST_SUMS_OF_TWO_SETS else 1

    @property
    def tile_k(self) -> int:
        """K a stage."""
        return STAGE_K

    @property
    def tokens_offset(self) -> int:
        """Where in a stage the scales of its rows of x8 lie, if they have one for every stage."""
        return round_up(super().end_offset, 16)

    @property
    def end_offset(self) -> int:
        """Where they end."""
        return self.tokens_offset + (4 * self.tile_m if self.x_group > 0 else 0)

    @property
    def copies_scales(self) -> bool:
        """Whether a stage has scales of any kind."""
        return self.group_size > 0 or self.x_group > 0

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
        """Where the sums of the cluster's other block come in."""
        return self.out_offset + 2 * self.part_bytes

    @property
    def own_offset(self) -> int:
        """Where each warpgroup keeps the scales of a tile's rows of x8."""
        others = self.tile_m // self.cluster * self.tile_n * 4 * (self.cluster - 1)
        return round_up(self.sums_offset + others, 16)

    @property
    def tables_offset(self) -> int:
        """Where the bytes of all zero points lie."""
        return self.own_offset + 8 * self.tile_m

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory a block: ring, barriers, what is on its way out or comes in."""
        return self.tables_offset + (TABLES_BYTES if self.has_zero_points else 0)

    @property
    def smem_map(self):
        """What lies where in it."""
        return regions(
            self.smem_bytes,
            *self.ring_map,
            begin("out", self.out_offset, "rounded rows on their way out, of each warpgroup", 2),
            begin("sums", self.sums_offset, "sums of the cluster's other block"),
            begin("token scales", self.own_offset, "of a tile's rows of x8, of each warpgroup", 2),
            begin("tables", self.tables_offset, "bytes of the codes, of all zero points"),
        )


# (tile_m, tile_n, num_stages, ahead), the default first. More than one ahead takes registers that
# the largest tile has not, so some lie in local memory beside its main loop
_TILES = (
    (128, 256, 5, 1), (128, 256, 5, 3), (112, 256, 6, 4), (192, 128, 5, 4), (128, 128, 7, 4),
    (64, 256, 7, 4), (96, 256, 6, 4), (96, 128, 8, 4),
)  # fmt: skip
_CONFIGS = (
    *(Config(*tile[:3], split, ahead=tile[3]) for tile in _TILES for split in (True, False)),
    # shared rows of x8: less traffic and power, where those are the limit
    *(Config(*tile[:3], split, pair=True, ahead=tile[3])
      for tile in (_TILES[1], _TILES[3], _TILES[4]) for split in (True, False)),
    # K cut in two: few tiles
    *(Config(*tile, False, 2) for tile in ((128, 128, 6), (64, 128, 8))),
    # few rows
    Config(64, 128, 10),
    Config(48, 256, 8),
    Config(32, 256, 8),
    Config(16, 256, 9),
    Config(32, 128, 12),
    Config(16, 128, 14),
)  # fmt: skip


class W4A8Wgmma(PackedX8Kernel):
    """Warp-specialised 8-bit wgmma with A from registers, persistent over tiles and stripes."""

    name = "w4a8_wgmma"
    config = Config
    summary = "packed layout, 8-bit wgmma with dequantised A in registers, scaled sums; Hopper only"

    def configs(self, gpu):
        """Return the tiles whose shared memory fits the GPU, the default first; Hopper only."""
        if gpu.arch != ARCH:
            return ()
        return tuple(c for c in _CONFIGS if gpu.lacks_smem(c.smem_bytes) is None)

    def refuses(self, problem):
        """Return why no config can run this problem, or None."""
        K, N = layout.stored_shape(problem.weight)
        if N < 128:
            return f"{self.name} needs N of at least 128; got N = {problem.N} ({N} as packed)"
        if K % STAGE_K:
            nearest = f"{K - K % STAGE_K or STAGE_K} and {round_up(K, STAGE_K)}"
            return (
                f"{self.name} needs K of a multiple of {STAGE_K} as packed; got K = {problem.K} "
                f"({K} as packed), the nearest are {nearest}"
            )
        return super().refuses(problem)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        if gpu.arch != ARCH:
            return f"wgmma needs {ARCH}; {gpu.name} is {gpu.arch}"
        if config != self.specialise(config, problem):
            return f"compiled for other weights or types than {problem}"
        K, N = layout.stored_shape(problem.weight)
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

    def corners(self):
        """Return problems on which stripes, rings and hand-overs are met."""
        from ferrum_numba.kernels.w4a8_wgmma.corners import CORNERS

        return CORNERS

    def build(self, config, arch):
        """Return the program: Grid: a block a SM; Block: two warpgroups and those that copy."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.w4a8_wgmma.program import build

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
        K = layout.stored_shape(problem.weight)[0]
        k_steps = K // config.tile_k
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
            self.scalars(
                problem, x_columns=K // 2, stripe_steps=stripe_steps, striped_tiles=striped_tiles
            ),
            # of a block's stripe only the first tile can begin before it
            {
                "partials": (grid if striped_tiles else 1) * config.tile_m * config.tile_n * 4,
                "counters": 8 * config.unit_blocks * max(striped_tiles, 1),
                "maps": grid * 2 * MAP_BYTES,
            },
            programmatic=True,
        )


def _num_tiles(config, problem):
    N = layout.stored_shape(problem.weight)[1]
    return ceil_div(problem.M, config.tile_m) * ceil_div(N, config.unit_n)
