"""W4A16 GEMM on a GPTQ checkpoint's own tensors: int4 weights, 16-bit activations, fp32 sums.

    w[k, n] = round((code[k, n] - zero[g(k), n]) * scales[g(k), n])
    out[m, n] = round(sum_k x[m, k] * w[k, n] + bias[n])

    x        [M, K] row-major          gmem, read once a column of tiles; cp.async, swizzled smem
    qweight  [K/8, N] int32            gmem, streamed once a row of tiles; cp.async, swizzled smem
    scales   [G, N]                    gmem, a row for every `group_rows` rows of a stage
    qzeros   [G, N/8] int32            gmem, likewise; v1 words get zero_offset = 0x11111111 added
    g_idx    [K] int32                 gmem, read where group_rows is 1: g(k), else k // group_size
    bias     [N]                       gmem, read once in the epilogue where there is one
    out      [M, N] row-major          gmem, written once, 16 bytes a lane

x, scales, bias and out are fp16 or bf16, whichever `dtype` is built for.

The kernel for what the packed layouts refuse: any group size, any g_idx, any N and K of whole
words. A warp owns 32 columns and all rows of its tile; how it reads words without unpacking them
first is told in steps.py. Blocks that share a tile (split_k) leave fp32
partial sums in gmem, and the last to arrive adds them in order: the same bits in every run.

Bound by gmem bandwidth at small M, from M ~ 64 by shared memory: a warp reads 32 columns of
weight for 16 to 64 rows of x.
Limits: N % 8 == 0, K % 8 == 0.
From: the tensors of AutoGPTQ and GPTQModel; the pipeline of IST-DASLab/marlin (Apache-2.0).
"""

from dataclasses import dataclass, replace

import numpy as np

from ferrum_numba.contract import Kernel, Launch, Program, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.dtypes import DTYPES, refuse_dtype
from ferrum_numba.kernels.gptq import estimate
from ferrum_numba.kernels.w4a16 import OP
from ferrum_numba.layout import begin, regions
from ferrum_numba.reference.gptq import WORD_OFFSET, pack_codes, pack_zero_points
from ferrum_numba.space import space

# rows of one word: all of them lie in one group where the group size is a multiple
WORD_ROWS = 8
# columns and k of one step of a warp
WARP_N, STEP_K = 32, 32
# runs of rows that a kernel can be built for: a stage's, a step's, a word's, none
GROUP_ROWS = (128, 64, STEP_K, WORD_ROWS, 1)
SYMMETRIC_FORMAT = "gptq"

PARAMETERS = (
    *pointers("x", "qweight", "scales", "qzeros", "g_idx", "bias", "out", "partials", "counters"),
    *sizes("m", "n", "k", "group_size", "zero_offset", "has_bias"),
)


@dataclass(frozen=True)
class Config:
    """One way to tile; a warp owns 32 columns and all rows of the tile."""

    tile_m: int = 16  # rows of x a block
    tile_n: int = 128  # columns a block
    tile_k: int = 64  # K a stage
    num_stages: int = 4  # stages of the cp.async ring
    split_k: int = 1  # blocks that share the K of a tile
    # rows that are sure to share a scale; 1 looks every row up in g_idx
    group_rows: int = 128
    dtype: str = "fp16"  # of x, scales, bias and out

    def __post_init__(self) -> None:
        if self.tile_m not in (16, 32, 64):
            raise ConfigError(f"tile_m must be 16, 32 or 64; got {self.tile_m}")
        if self.tile_n % WARP_N or not WARP_N <= self.tile_n <= 256:
            raise ConfigError(
                f"tile_n must be a multiple of {WARP_N}, the columns of a warp, up to 256; "
                f"got {self.tile_n}"
            )
        if self.tile_k not in (32, 64, 128):
            raise ConfigError(f"tile_k must be 32, 64 or 128; got {self.tile_k}")
        if self.num_stages < 2 or self.split_k < 1:
            raise ConfigError(
                "num_stages must be at least 2 and split_k at least 1; "
                f"got num_stages = {self.num_stages}, split_k = {self.split_k}"
            )
        if self.group_rows not in GROUP_ROWS:
            raise ConfigError(f"group_rows must be one of {GROUP_ROWS}; got {self.group_rows}")
        refuse_dtype(self.dtype)

    @property
    def num_threads(self) -> int:
        """Threads a block."""
        return self.tile_n

    @property
    def scale_row_bytes(self) -> int:
        """Bytes from one staged row of scales to the next."""
        # 32 more than the row: a quad's four rows then lie in different banks
        return 2 * self.tile_n + 32

    @property
    def scale_rows(self) -> int:
        """Rows of scales a stage holds."""
        return max(1, self.tile_k // self.group_rows)

    @property
    def stage_parts(self) -> tuple[int, int, int, int]:
        """Bytes of x, qweight, scales and qzeros in one stage of the ring."""
        rows = self.scale_rows
        return (
            2 * self.tile_m * self.tile_k,
            self.tile_k * self.tile_n // 2,
            rows * self.scale_row_bytes,
            rows * self.tile_n // 2,
        )

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory a block: the ring, and a flag."""
        return self.num_stages * sum(self.stage_parts) + 16

    @property
    def smem_map(self):
        """What lies where in it."""
        x, w, s, _ = self.stage_parts
        ring = self.smem_bytes - 16
        stage = regions(
            sum(self.stage_parts),
            begin("x", 0, "rows of x"),
            begin("words", x, "qweight as it is stored, swizzled"),
            begin("scales", x + w, "of the stage's groups"),
            begin("zero points", x + w + s, "of the stage's groups"),
        )
        return regions(
            self.smem_bytes,
            begin("ring", 0, "stages of the cp.async ring", self.num_stages, stage),
            begin("flag", ring, "whether this block adds up the others' sums"),
        )


CONFIGS = space(
    Config,
    tile_m=(16, 32, 64),
    tile_n=(128, 64, 256),
    tile_k=(64, 128, 32),
    num_stages=(4, 3),
    split_k=(1, 2, 4, 8),
    # a short stage needs a long ring, a long one has no room for it; four warps suit every tile
    where=lambda c: (
        c.num_stages == (3 if c.tile_k == 128 else 4) and (c.tile_n == 128 or c.tile_k == 128)
    ),
)


class W4A16Gptq(Kernel):
    """The general design: no packing, no limits but whole words."""

    name = "w4a16_gptq"
    op = OP
    config = Config
    summary = "GPTQ's own tensors, any group size, zero points, act-order; mma.m16n8k16, split-K"

    def configs(self, gpu):
        """Return the configs whose shared memory fits a block, the default first."""
        return tuple(c for c in CONFIGS if gpu.lacks_smem(c.smem_bytes) is None)

    def refuses(self, problem):
        """Return None: every problem of the Op is one of whole words."""
        return None

    def specialise(self, config, problem):
        """Return the config for the problem's groups and type."""
        return replace(config, group_rows=_group_rows(problem), dtype=problem.dtype)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem on this GPU, or None."""
        group_rows = _group_rows(problem)
        if config.dtype != problem.dtype:
            return f"compiled for {config.dtype}, not {problem.dtype}"
        if config.group_rows != group_rows:
            return (
                f"group_rows must be {group_rows} for group_size {problem.group_size}"
                f"{' in act-order' if problem.act_order else ''}; got {config.group_rows}"
            )
        if config.tile_m > 16 and config.tile_m >= 2 * problem.M:
            return f"half of tile_m = {config.tile_m} holds all of M = {problem.M}"
        if config.split_k > _k_steps(config, problem):
            return (
                f"K = {problem.K} has {_k_steps(config, problem)} tiles of {config.tile_k}; "
                f"split_k is {config.split_k}"
            )
        return gpu.lacks_smem(config.smem_bytes)

    def default(self, problem, gpu):
        """Return the tile that holds M, and as many shares of K as give every SM two blocks."""
        tile_m = next((size for size in (16, 32) if size >= problem.M), 64)
        # a scale a row fills the ring: half the rows a stage, so that it fits every GPU
        tile_k = 32 if _group_rows(problem) == 1 else 64
        config = self.specialise(Config(tile_m, tile_k=tile_k), problem)
        blocks = ceil_div(problem.M, tile_m) * ceil_div(problem.N, config.tile_n)
        most = min(2 * gpu.num_sms // blocks, _k_steps(config, problem))
        return replace(config, split_k=next((s for s in (8, 4, 2) if s <= most), 1))

    def corners(self):
        """Return problems on which stripes, rings and hand-overs are met."""
        from ferrum_numba.kernels.gptq.corners import CORNERS

        return CORNERS

    def estimate_us(self, config, problem, gpu):
        """Return what a launch is expected to take, modelled: for ranking configs."""
        return estimate.estimate_us(config, problem, self.launch(config, problem, gpu), gpu)

    def build(self, config, arch):
        """Return the program. Block: a warp for every 32 columns; smem: the ring."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.gptq.program import build

        return Program(build(config), PARAMETERS, config.num_threads, smem_bytes=config.smem_bytes)

    def prepare(self, problem, inputs):
        """Return the tensors of a checkpoint; a symmetric one stores its zero points too."""
        symmetric = np.full((problem.num_groups, problem.N), 8, np.uint8)
        zeros = inputs.get("zero_points", symmetric)
        return {
            "x": inputs["x"],
            "qweight": pack_codes(inputs["codes"]),
            "scales": inputs["scales"],
            "qzeros": pack_zero_points(zeros, _checkpoint_format(problem)),
            "g_idx": inputs.get("g_idx", problem.ordered_groups),
            "bias": inputs.get("bias", np.zeros(problem.N, DTYPES[problem.dtype])),
        }

    def launch(self, config, problem, gpu):
        """Return one block a tile and share of K; those that share a weight come together."""
        m_tiles, n_tiles = ceil_div(problem.M, config.tile_m), ceil_div(problem.N, config.tile_n)
        workspace = {"partials": 16, "counters": 16}
        if config.split_k > 1:
            tile_bytes = 4 * config.tile_m * config.tile_n
            workspace = {
                "partials": m_tiles * n_tiles * config.split_k * tile_bytes,
                "counters": 4 * m_tiles * n_tiles,
            }
        scalars = {
            "m": problem.M,
            "n": problem.N,
            "k": problem.K,
            "group_size": problem.group_rows,
            "zero_offset": int(WORD_OFFSET[_checkpoint_format(problem)]),
            "has_bias": int(problem.bias),
        }
        return Launch((m_tiles, n_tiles, config.split_k), scalars, workspace)


def _group_rows(problem):
    """Return the longest run of rows that is sure to lie in one group."""
    if problem.num_groups == 1:
        return GROUP_ROWS[0]
    if problem.act_order:
        return 1
    return next(rows for rows in GROUP_ROWS if problem.group_rows % rows == 0)


def _checkpoint_format(problem):
    return SYMMETRIC_FORMAT if problem.zero_points == "none" else problem.zero_points


def _k_steps(config, problem):
    return ceil_div(problem.K, config.tile_k)
