"""W4A16 GEMM for 9 to 32 tokens on Hopper: wgmma, with the weights as its operand in registers.

    out[m, n] = round(sum_g s[g, n] * sum_{k in g} x[m, k] * (code[k, n] - zero[g, n]) + bias[n])

    x            [M, K] row-major          gmem; cp.async, 128-byte swizzled smem, operand B
    packed       [Kp/16, 2Np] int32        gmem, streamed once; cp.async, smem, registers: operand A
    scales       [G, Np], permuted         gmem, once a stage
    zero_points  [G, Np/8] int32           gmem, once a stage, if asymmetric; else zero is 8
    bias         [Np], permuted            gmem, read once in the epilogue
    out          [M, N] row-major          gmem, written once

x, scales, bias and out are fp16 or bf16, whichever `dtype` is built for; the operands are those of
kernels/shared/packed.py.

A warpgroup owns 256 columns and all tokens of its tile: 64 columns a warp, whose 16 bytes a lane
of a 16 x 64 tile are the A operands of four products. One product serves all tokens, which cost no
registers. Each warpgroup has a ring of stages of its own, tile_k rows of the weight and of x. A
lane copies the words that it will read itself; only the tokens, the scales and the zero points need
a barrier, of the warpgroup. Warpgroups take turns along K, and none waits for another before a
slice ends. Codes minus zero points are exact in fp16 and bf16, and the sums of a group are scaled
in fp32: no weight is rounded.

The steps of all column slices are numbered K first and cut into equal stripes, one a block. The
block that has the first step of a slice adds the sums of the others in their order: the same bits
in every run. It waits for blocks that the GPU has started before it.

The first stages' weights are on their way before the launch waits for the one before it
(programmatic dependent launch), and the next one may start when the last load of this one has
begun. So a weight must not be written by the launch just before.

Bound by gmem bandwidth and issue slots with 16 tokens, by issue slots with 32; see
docs/designs/decode_wgmma.md#bound.
Limits: Hopper; group_size in {-1, 32, 64, 128}; no act-order (gather x first).
"""

from dataclasses import dataclass

from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.decode_wgmma import estimate
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.cut import cut
from ferrum_numba.kernels.shared.stage import Stage
from ferrum_numba.layout import begin, regions

ARCH = "sm_90a"
WORKSPACE_BYTES = 4 << 20
# n and k are those of the packed weight, x has x_columns and out out_columns
PARAMETERS = (
    *pointers("x", "packed", "scales", "zero_points", "bias", "out", "slots"),
    *sizes("m", "n", "k", "x_columns", "out_columns", "stripe_steps", "has_bias"),
)


@dataclass(frozen=True)
class Config(Stage):
    """One way to tile."""

    tile_m: int = 16  # tokens a block: 16 or 32
    num_warpgroups: int = 3  # warpgroups a block, which split K: 256 columns each
    num_stages: int = 3  # stages of a warpgroup's ring
    tile_k: int = 64  # K a stage: 64 or 128
    in_flight: int = 1  # groups of products that run while the next weights are dequantised
    blocks_per_sm: int = 1  # blocks that share an SM: one begins while another ends
    early: bool = True  # loads weights before the launch before has ended
    # what the problem dictates: see `DecodeWgmma.specialise`
    group_size: int = 128  # K a scale, -1: one scale a column
    dtype: str = "fp16"  # of x, scales, bias and out
    has_zero_points: bool = False  # the weight is asymmetric

    def __post_init__(self) -> None:
        if self.tile_m not in (16, 32):
            raise ConfigError(f"tile_m must be 16 or 32; got tile_m = {self.tile_m}")
        if not 1 <= self.num_warpgroups <= 4:
            raise ConfigError(
                f"num_warpgroups must be 1 to 4; got num_warpgroups = {self.num_warpgroups}"
            )
        if self.num_stages < 2:
            raise ConfigError(f"num_stages must be at least 2; got {self.num_stages}")
        if not 1 <= self.in_flight <= 3:
            raise ConfigError(f"in_flight must be 1 to 3; got in_flight = {self.in_flight}")
        if self.tile_k not in (64, 128):
            raise ConfigError(f"tile_k must be 64 or 128; got tile_k = {self.tile_k}")
        layout.refuse_kind(self.group_size, self.dtype)

    @property
    def num_threads(self) -> int:
        """Threads a block."""
        return 128 * self.num_warpgroups

    @property
    def tile_n(self) -> int:
        """Columns a block: 64 a warp of a warpgroup."""
        return 256

    @property
    def zero_rows(self) -> int:
        """Rows of zero points a stage holds; those of one group too."""
        return max(1, self.scale_rows) if self.has_zero_points else 0

    @property
    def sums_offset(self) -> int:
        """Where the warpgroups' sums begin, and then what is on its way out."""
        return self.num_warpgroups * self.num_stages * self.stage_bytes

    @property
    def partial_bytes(self) -> int:
        """Bytes of a warpgroup's sums of a slice."""
        return self.tile_m * self.tile_n * 4

    @property
    def sums_row_bytes(self) -> int:
        """Bytes of a token's row of sums; 16 more, so that rows start four banks apart."""
        return self.tile_n * 4 + 16

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory a block: rings, sums."""
        return self.sums_offset + self.num_warpgroups * self.tile_m * self.sums_row_bytes

    @property
    def smem_map(self):
        """What lies where in it."""
        places = self.num_warpgroups * self.num_stages
        return regions(
            self.smem_bytes,
            begin("rings", 0, "stages, of each warpgroup after the other", places, self.stage_map),
            begin("sums", self.sums_offset, "sums of the warpgroups", self.num_warpgroups),
        )


# an SM has registers for three warpgroups with 16 tokens, for two with 32. Two groups of
# products in flight are this kernel's best with 32 tokens on wide weights, where prefill is faster
_CONFIGS = (
    Config(16, 3, 3),
    Config(16, 3, 4),
    Config(16, 2, 4, 128),
    Config(16, 2, 4, 128, in_flight=2),
    Config(16, 1, 4, 128, blocks_per_sm=2),
    Config(32, 2, 4),
    Config(32, 2, 5),
    Config(32, 2, 3, 128),
    Config(32, 2, 3, 128, in_flight=2),
    Config(16, 3, 3, early=False),
    Config(32, 2, 4, early=False),
    Config(32, 2, 3, 128, early=False),
)


class DecodeWgmma(layout.PackedKernel):
    """Weights as A of wgmma, a ring a warpgroup; stripes over the SMs, early start."""

    name = "decode_wgmma"
    config = Config
    models_shapes = True
    summary = (
        "packed layout, 9 to 32 tokens: wgmma with A in registers, a ring a warpgroup; Hopper only"
    )

    def configs(self, gpu):
        """Return the configs whose shared memory fits the GPU, the default first; Hopper only."""
        return tuple(c for c in _CONFIGS if _unfit(c, gpu) is None)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        if config != self.specialise(config, problem):
            return f"compiled for other weights than {problem}"
        if config.tile_k > 64 and 0 < config.group_size < config.tile_k:
            return f"tile_k = {config.tile_k} for groups of {config.group_size} needs registers"
        # a tile twice as tall as the problem multiplies zeros for nothing
        if config.tile_m > 16 and config.tile_m >= 2 * problem.M:
            return f"tile_m = {config.tile_m} for M = {problem.M} only adds tokens of zeros"
        return _unfit(config, gpu)

    def default(self, problem, gpu):
        """Return the first config whose tile holds all tokens, or as many as a tile can."""
        for config in self.fitting(problem, gpu):
            if config.tile_m >= min(problem.M, 32):
                return config
        return super().default(problem, gpu)

    def corners(self):
        """Return problems on which stripes, rings and hand-overs are met."""
        from ferrum_numba.kernels.decode_wgmma.corners import CORNERS

        return CORNERS

    def estimate_us(self, config, problem, gpu):
        """Return what a launch is expected to take, modelled: for ranking configs."""
        return estimate.estimate_us(config, problem, self.launch(config, problem, gpu), gpu)

    def build(self, config, arch):
        """Return the program: Grid: stripes; Block: warpgroups; smem: x + sums."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.decode_wgmma.program import build

        return Program(
            build(config),
            PARAMETERS,
            config.num_threads,
            min_blocks_per_sm=config.blocks_per_sm,
            smem_bytes=config.smem_bytes,
            lto=True,
        )

    def launch(self, config, problem, gpu):
        """Return the stripes: as few blocks as give every one the same number of steps."""
        K, N = layout.stored_shape(problem)
        m_tiles = ceil_div(problem.M, config.tile_m)
        slices = ceil_div(N, config.tile_n)
        # only the first slice of a stripe can begin before it
        most = WORKSPACE_BYTES // config.partial_bytes
        stripes = max(1, min(gpu.num_sms * config.blocks_per_sm, most) // m_tiles)
        stripes, stripe_steps = cut(slices * ceil_div(K, config.tile_k), stripes)
        return Launch(
            (stripes, m_tiles, 1),
            self.scalars(problem, stripe_steps=stripe_steps),
            # zero where nothing has arrived, and left so
            {"slots": stripes * m_tiles * config.partial_bytes if stripes > 1 else 16},
            programmatic=config.early,
        )


def _unfit(config, gpu):
    """Return why a config cannot run on a GPU, whatever the problem, or None."""
    if gpu.arch != ARCH:
        return f"wgmma needs {ARCH}; {gpu.name} is {gpu.arch}"
    return gpu.lacks_smem(config.smem_bytes, config.blocks_per_sm)
