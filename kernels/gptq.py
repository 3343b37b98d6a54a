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
first is told in ferrum_numba/ptx/gptq_tile.py. Blocks that share a tile (split_k) leave fp32
partial sums in gmem, and the last to arrive adds them in order: the same bits in every run.

Bound by gmem bandwidth at small M, from M ~ 64 by shared memory: a warp reads 32 columns of
weight for 16 to 64 rows of x.
Limits: N % 8 == 0, K % 8 == 0.
From: the tensors of AutoGPTQ and GPTQModel; the pipeline of IST-DASLab/marlin (Apache-2.0).
"""

from dataclasses import dataclass, replace

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.contract import Kernel, Launch, Program, pointers, sizes
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.w4a16 import DTYPES, OP
from ferrum_numba.ptx.asynchronous import (
    cp_async_4,
    cp_async_16_zfill,
    cp_async_commit,
    cp_async_wait,
)
from ferrum_numba.ptx.convert import splat_f32, unpack_bf16x2, unpack_f16x2
from ferrum_numba.ptx.gptq_tile import (
    dequantize_column,
    load_groups,
    load_rows,
    mma_rows,
    store_rows,
)
from ferrum_numba.ptx.memory import (
    atom_add_acq_rel_gpu,
    ld_global_nc_u32,
    ld_global_nc_v4,
    ld_shared_u32,
    ld_shared_v4,
    st_global_u32,
    st_shared_u32,
)
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import fence_acq_rel_gpu
from ferrum_numba.ptx.tile import add_tile, store_tile
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
class GptqConfig:
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
        if self.dtype not in DTYPES:
            raise ConfigError(f'dtype must be "fp16" or "bf16"; got "{self.dtype}"')

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


CONFIGS = space(
    GptqConfig,
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
    config = GptqConfig
    summary = "GPTQ's own tensors, any group size, zero points, act-order; mma.m16n8k16, split-K"

    def configs(self, gpu):
        """Return the configs whose shared memory fits a block, the default first."""
        return tuple(c for c in CONFIGS if c.smem_bytes <= gpu.smem_per_block)

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
        if config.split_k > _k_tiles(config, problem):
            return (
                f"K = {problem.K} has {_k_tiles(config, problem)} tiles of {config.tile_k}; "
                f"split_k is {config.split_k}"
            )
        if config.smem_bytes > gpu.smem_per_block:
            return (
                f"needs {config.smem_bytes} bytes of shared memory a block; "
                f"{gpu.name} has {gpu.smem_per_block}"
            )
        return None

    def default(self, problem, gpu):
        """Return the tile that holds M, and as many shares of K as give every SM two blocks."""
        tile_m = next((size for size in (16, 32) if size >= problem.M), 64)
        # a scale a row fills the ring: half the rows a stage, so that it fits every GPU
        tile_k = 32 if _group_rows(problem) == 1 else 64
        config = self.specialise(GptqConfig(tile_m, tile_k=tile_k), problem)
        blocks = -(-problem.M // tile_m) * -(-problem.N // config.tile_n)
        most = min(2 * gpu.num_sms // blocks, _k_tiles(config, problem))
        return replace(config, split_k=next((s for s in (8, 4, 2) if s <= most), 1))

    def build(self, config, arch):
        """Return the program. Block: a warp for every 32 columns; smem: the ring."""
        return Program(_build(config), PARAMETERS, config.num_threads, smem_bytes=config.smem_bytes)

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
        m_tiles, n_tiles = -(-problem.M // config.tile_m), -(-problem.N // config.tile_n)
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


def _k_tiles(config, problem):
    return -(-problem.K // config.tile_k)


def _build(config):
    tile_m, tile_n, tile_k = config.tile_m, config.tile_n, config.tile_k
    num_stages, num_threads = config.num_stages, config.num_threads
    half = {"fp16": "f16", "bf16": "bf16"}[config.dtype]
    unpack = {"fp16": unpack_f16x2, "bf16": unpack_bf16x2}[config.dtype]
    by_row = config.group_rows == 1
    steps, in_flight = tile_k // STEP_K, num_stages - 2
    steps_per_group = max(1, config.group_rows // STEP_K)

    # pieces of 16 bytes a stage, with 4 bytes of zero points to 16 of scales
    x_row, w_row, s_row = tile_k // 8, tile_n // 4, tile_n // 8
    pieces = (tile_m * x_row, tile_k // 8 * w_row, config.scale_rows * s_row)
    # a thread's share of them
    x_rounds, w_rounds, s_rounds = (-(-count // num_threads) for count in pieces)

    x_bytes, w_bytes, s_bytes, _ = config.stage_parts
    blocks = tile_m // 16
    acc_floats = 8 * blocks
    acc_size = 128 * acc_floats  # of a warp

    x_pieces, w_pieces, s_pieces = (uint32(count) for count in pieces)
    x_row_pieces, w_row_pieces, s_row_pieces = uint32(x_row), uint32(w_row), uint32(s_row)
    w_offset, s_offset = uint32(x_bytes), uint32(x_bytes + w_bytes)
    z_offset = uint32(x_bytes + w_bytes + s_bytes)
    stage_bytes = uint32(sum(config.stage_parts))
    ring_bytes = uint32(num_stages * sum(config.stage_parts))
    w_step_bytes = uint32(STEP_K * tile_n // 2)
    scale_row_bytes, zero_row_bytes = uint32(config.scale_row_bytes), uint32(tile_n // 2)
    rows_per_scale = uint32(config.group_rows)
    # staged rows of scales from one lane of a quad to the next
    quad_rows = uint32(WORD_ROWS // config.group_rows)
    # two neighbouring rows of x are read together: the odd one changes sides, unless they lie in
    # different banks anyway
    x_swizzle = uint32(4 if tile_k >= 64 else 0)
    warp_bytes, acc_bytes = uint32(2 * acc_size), uint64(acc_size)
    slot_bytes = uint64(2 * acc_size * (num_threads // 32))

    zeros = splat_f32(acc_floats)
    load_a = load_rows(blocks, 2 * tile_k)
    groups_of_word = WORD_ROWS if by_row else 1
    load_group = load_groups(groups_of_word, config.scale_row_bytes, tile_n // 2, half)
    dequantize_0, dequantize_1, dequantize_2, dequantize_3 = (
        dequantize_column(column, groups_of_word, half) for column in range(4)
    )
    mma = mma_rows(blocks, half)
    store_out = store_rows(blocks, half)
    store_partial = store_tile("global", acc_floats, 512)
    add_partial = add_tile("global", acc_floats, 512)

    @cuda.jit(device=True, inline="always")
    def copy_16(smem, gmem, inside):
        cp_async_16_zfill(uint32(smem), gmem, uint32(16) if inside else uint32(0))

    @cuda.jit(device=True, inline="always")
    def fetch_x(stage, x, row, k_first, m, k):
        for i in range(x_rounds):
            piece = uint32(cuda.threadIdx.x + i * num_threads)
            if piece < x_pieces:
                r, c = uint32(piece // x_row_pieces), uint32(piece % x_row_pieces)
                m_row, k_row = uint32(row + r), uint32(k_first + c * uint32(8))
                # beyond M and K: zeros, from an address that exists
                inside = m_row < m and k_row < k
                source = uint64(m_row) * uint64(k) + uint64(k_row) if inside else uint64(0)
                swizzled = r * x_row_pieces + (c ^ ((r & uint32(1)) * x_swizzle))
                copy_16(stage + swizzled * uint32(16), x + source * uint64(2), inside)

    @cuda.jit(device=True, inline="always")
    def fetch_weight(stage, qweight, column, k_first, n, k):
        for i in range(w_rounds):
            piece = uint32(cuda.threadIdx.x + i * num_threads)
            if piece < w_pieces:
                r, c = uint32(piece // w_row_pieces), uint32(piece % w_row_pieces)
                word_row = uint32(k_first // uint32(8) + r)
                n_column = uint32(column + c * uint32(4))
                inside = n_column < n and word_row < uint32(k // uint32(8))
                source = uint64(word_row) * uint64(n) + uint64(n_column) if inside else uint64(0)
                # a quad reads four rows at once, two neighbouring pieces of each
                swizzled = r * w_row_pieces + (c ^ ((r & uint32(3)) * uint32(2)))
                smem = stage + w_offset + swizzled * uint32(16)
                copy_16(smem, qweight + source * uint64(4), inside)

    @cuda.jit(device=True, inline="always")
    def fetch_groups(stage, scales, qzeros, g_idx, column, k_first, n, k, group_size):
        for i in range(s_rounds):
            piece = uint32(cuda.threadIdx.x + i * num_threads)
            if piece < s_pieces:
                r, c = uint32(piece // s_row_pieces), uint32(piece % s_row_pieces)
                k_row = uint32(k_first + r * rows_per_scale)
                n_column = uint32(column + c * uint32(8))
                # a scale of zero beyond K and N: the zero point there may be anything
                inside = n_column < n and k_row < k
                k_row = k_row if inside else uint32(0)
                n_column = n_column if inside else uint32(0)
                if by_row:
                    group = ld_global_nc_u32(g_idx + uint64(k_row) * uint64(4))
                else:
                    group = uint32(k_row // group_size)
                source = uint64(group) * uint64(n) + uint64(n_column)
                smem = stage + s_offset + r * scale_row_bytes + c * uint32(16)
                copy_16(smem, scales + source * uint64(2), inside)
                smem = stage + z_offset + piece * uint32(4)
                cp_async_4(uint32(smem), qzeros + source // uint64(2))

    @cuda.jit(device=True, inline="always")
    def fetch_to_shared(
        stage, k_tile, x, qweight, scales, qzeros, g_idx, row, column, m, n, k, group_size
    ):
        k_first = uint32(k_tile * uint32(tile_k))
        fetch_x(stage, x, row, k_first, m, k)
        fetch_weight(stage, qweight, column, k_first, n, k)
        fetch_groups(stage, scales, qzeros, g_idx, column, k_first, n, k, group_size)

    @cuda.jit(device=True, inline="always")
    def next_stage(stage, smem):
        stage = uint32(stage + stage_bytes)
        return smem if stage == uint32(smem + ring_bytes) else stage

    def w4a16_gptq(
        x, qweight, scales, qzeros, g_idx, bias, out, partials, counters,
        m, n, k, group_size, zero_offset, has_bias,
    ):  # fmt: skip
        # index: which tile, which share of K, which columns of the tile
        smem = smem_base()
        tid = uint32(cuda.threadIdx.x)
        lane_id, warp_id = uint32(tid & uint32(31)), uint32(tid >> uint32(5))
        g, t = uint32(lane_id >> uint32(2)), uint32(lane_id & uint32(3))
        row = uint32(cuda.blockIdx.x * tile_m)
        column = uint32(cuda.blockIdx.y * tile_n)
        split, shares = uint32(cuda.blockIdx.z), uint32(cuda.gridDim.z)
        k_tiles = uint32((k + uint32(tile_k - 1)) // uint32(tile_k))
        k_tile = uint32(k_tiles * split // shares)
        k_last = uint32(k_tiles * (split + uint32(1)) // shares)

        # where in a stage a lane reads
        x_lane = uint32(g * uint32(2 * tile_k))
        x_side = uint32((g & uint32(1)) * x_swizzle)
        w_piece = uint32((warp_id * uint32(8) + g) ^ (t * uint32(2)))
        w_lane = uint32(w_offset + (t * w_row_pieces + w_piece) * uint32(16))
        lane_column = uint32(warp_id * uint32(WARP_N) + g * uint32(4))
        lane_scale = uint32(s_offset + lane_column * uint32(2))
        lane_zero = uint32(z_offset + lane_column // uint32(8) * uint32(4))
        zero_shift = uint32((g & uint32(1)) * uint32(16))

        # prologue: the copies run num_stages - 1 tiles ahead of the mma
        fetch_tile, fetch_stage = k_tile, smem
        for _ in range(num_stages - 1):
            if fetch_tile < k_last:
                fetch_to_shared(
                    fetch_stage, fetch_tile, x, qweight, scales, qzeros, g_idx, row, column,
                    m, n, k, group_size,
                )  # fmt: skip
            cp_async_commit()
            fetch_tile = uint32(fetch_tile + uint32(1))
            fetch_stage = next_stage(fetch_stage, smem)

        acc01 = zeros(float32(0))
        acc23 = zeros(float32(0))
        stage = smem

        # main loop: one stage a turn
        while k_tile < k_last:
            cp_async_wait(in_flight)
            # also: every warp has left the stage that the next copies overwrite
            cuda.syncthreads()
            if fetch_tile < k_last:
                fetch_to_shared(
                    fetch_stage, fetch_tile, x, qweight, scales, qzeros, g_idx, row, column,
                    m, n, k, group_size,
                )  # fmt: skip
            cp_async_commit()
            fetch_tile = uint32(fetch_tile + uint32(1))
            fetch_stage = next_stage(fetch_stage, smem)

            for step in range(steps):
                x_piece = uint32((uint32(4 * step) + t) ^ x_side)
                a = load_a(uint32(stage + x_lane + x_piece * uint32(16)))
                word = ld_shared_v4(uint32(stage + w_lane + uint32(step) * w_step_bytes))
                if step % steps_per_group == 0:
                    scale_row = uint32(uint32(step * STEP_K) // rows_per_scale + t * quad_rows)
                    groups = load_group(
                        uint32(stage + lane_scale + scale_row * scale_row_bytes),
                        uint32(stage + lane_zero + scale_row * zero_row_bytes),
                        zero_shift,
                        zero_offset,
                    )
                acc01 = mma(a, dequantize_0(word[0], groups), dequantize_1(word[1], groups), acc01)
                acc23 = mma(a, dequantize_2(word[2], groups), dequantize_3(word[3], groups), acc23)

            stage = next_stage(stage, smem)
            k_tile = uint32(k_tile + uint32(1))

        # reduction over the blocks of the tile: the last to arrive adds all, in their order
        complete = uint32(1)
        if shares > uint32(1):
            tile = uint32(cuda.blockIdx.y * cuda.gridDim.x + cuda.blockIdx.x)
            first_slot = partials + uint64(tile * shares) * slot_bytes
            first_slot = first_slot + uint64(warp_id * warp_bytes + lane_id * uint32(16))
            slot = first_slot + uint64(split) * slot_bytes
            store_partial(slot, acc01)
            store_partial(slot + acc_bytes, acc23)
            counter = counters + uint64(tile) * uint64(4)
            flag = uint32(smem + ring_bytes)
            cuda.syncthreads()
            if tid == uint32(0):
                fence_acq_rel_gpu()
                st_shared_u32(flag, atom_add_acq_rel_gpu(counter, uint32(1)))
            cuda.syncthreads()
            complete = uint32(0)
            if ld_shared_u32(flag) + uint32(1) == shares:
                complete = uint32(1)
                fence_acq_rel_gpu()
                if tid == uint32(0):
                    # ready for the next launch
                    st_global_u32(counter, uint32(0))
                acc01 = zeros(float32(0))
                acc23 = zeros(float32(0))
                slot = first_slot
                while slot < first_slot + uint64(shares) * slot_bytes:
                    acc01 = add_partial(slot, acc01)
                    acc23 = add_partial(slot + acc_bytes, acc23)
                    slot = slot + slot_bytes

        # epilogue: bias, one rounding, registers -> gmem
        n_column = uint32(column + warp_id * uint32(WARP_N) + t * uint32(8))
        m_row = uint32(row + g)
        if complete == uint32(1) and n_column < n and m_row < m:
            b = (uint32(0), uint32(0), uint32(0), uint32(0))
            if has_bias > uint32(0):
                b = ld_global_nc_v4(bias + uint64(n_column) * uint64(2))
            b01, b23, b45, b67 = unpack(b[0]), unpack(b[1]), unpack(b[2]), unpack(b[3])
            place = out + (uint64(m_row) * uint64(n) + uint64(n_column)) * uint64(2)
            eight = (b01[0], b01[1], b23[0], b23[1], b45[0], b45[1], b67[0], b67[1])
            store_out(place, uint64(n) * uint64(2), uint32(m - m_row), acc01, acc23, eight)

    return w4a16_gptq
