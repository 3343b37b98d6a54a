"""W4A16 GEMM on Marlin's packed weights: int4 weights, 16-bit activations, fp32 accumulation.

    w[k, n] = round((code[k, n] - zero[g, n]) * scale[g, n]), g = k // group_size
    out[m, n] = round(sum_k x[m, perm[k]] * w[k, n] + bias[n])

    x            [M, K] row-major          gmem, read once a column slice; cp.async, swizzled smem
    packed       [Kp/16, 2Np] int32        gmem, streamed once a row slice; cp.async, as it lies
    scales       [G, Np], permuted         gmem, one row (or tile_k / group_size) a stage
    zero_points  [G, Np/8] int32           gmem, likewise, of an asymmetric weight; else zero is 8
    bias         [Np], permuted            gmem, read once in the epilogue
    perm         [K] int32                 gmem, of a weight in act-order: x is gathered by it
    out          [M, N] row-major          gmem, written once, 16 bytes a thread

x, scales, bias and out are fp16 or bf16, whichever `dtype` is built for; kernels/packed.py has the
operands.

The tiles of all output slices are numbered K first and cut into equal stripes, one a block, so
every SM streams the same number of bytes, whatever the shape. With 3 x 3 tiles and 5 blocks:

    slice 0: 0 0 1    slice 1: 1 2 2    slice 2: 3 3 4

The copies of a block run ahead across its slices. A slice that several blocks share is summed in
fp32 by the block that arrives last, in the order of the blocks: the same bits in every run, and no
block waits for another.

Bound by gmem bandwidth and latency for few rows of x, by mma.sync for many: on an H200 that gives
three quarters of wgmma's rate (docs/facts.md).
Limits: group_size in {-1, 32, 64, 128}; of other K and N than multiples of 64 a padded weight.
From: Marlin, Frantar et al., arXiv 2408.11743; github.com/IST-DASLab/marlin (Apache-2.0).
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.contract import Kernel, Launch, Program, pointers, sizes
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels import packed as layout
from ferrum_numba.kernels.w4a16 import DTYPES, OP
from ferrum_numba.ptx.asynchronous import (
    cp_async_16,
    cp_async_16_zfill,
    cp_async_commit,
    cp_async_wait,
)
from ferrum_numba.ptx.convert import splat_f32, unpack_bf16x2, unpack_f16x2
from ferrum_numba.ptx.dequantize import dequantize as make_dequantize
from ferrum_numba.ptx.memory import (
    atom_add_acq_rel_gpu,
    gather_8x16,
    ld_global_nc_u32,
    ld_global_nc_v2,
    ld_global_nc_v4,
    ld_shared_u32,
    ld_shared_v4,
    st_global_u32,
    st_global_v4,
    st_shared_u32,
    st_shared_v4,
)
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import fence_acq_rel_gpu
from ferrum_numba.ptx.tile import add_tile, ldmatrix_tile, mma_tile, store_tile, store_tile_rounded

GROUP_SIZES = layout.GROUP_SIZES
# n and k are those of the packed weight, x has x_columns and out out_columns
PARAMETERS = (
    *pointers("x", "packed", "scales", "zero_points", "bias", "perm", "out"),
    *pointers("partials", "counters"),
    *sizes("m", "n", "k", "x_columns", "out_columns", "tiles_per_block", "has_bias"),
)


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
    has_zeros: bool = False  # the weight is asymmetric
    act_order: bool = False  # x is gathered

    def __post_init__(self) -> None:
        if self.tile_n not in (64, 128, 256) or self.warps_k not in (2, 4):
            raise ConfigError(
                "tile_n must be 64, 128 or 256, and num_warps 2 or 4 times its 64-column strips; "
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
        if self.group_size not in GROUP_SIZES:
            raise ConfigError(f"group_size must be one of {GROUP_SIZES}; got {self.group_size}")
        if self.dtype not in DTYPES:
            raise ConfigError(f'dtype must be "fp16" or "bf16"; got "{self.dtype}"')

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
        return self.scale_rows * self.tile_n // 2 if self.has_zeros else 0

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


class Marlin(Kernel):
    """Marlin's design: mma.sync, a cp.async ring, equal stripes over the SMs."""

    name = "marlin"
    op = OP
    config = Config
    summary = "packed layout, mma.m16n8k16, cp.async ring, stripes over the SMs, ordered fp32 sum"

    def configs(self, gpu):
        """Return the configs whose shared memory fits the GPU, the default first."""
        return tuple(c for c in _CONFIGS if _fits(c, gpu))

    def refuses(self, problem):
        """Return why no config can run this problem, or None."""
        return layout.refuses(self.name, problem)

    def specialise(self, config, problem):
        """Return the config for the problem's groups, type, zero points and order."""
        return replace(
            config,
            group_size=layout.group_size_of(problem),
            dtype=problem.dtype,
            has_zeros=problem.zero_points != "none",
            act_order=problem.act_order,
        )

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
        # a tile with more 16-row blocks than the problem multiplies zeros for nothing
        if config.tile_m - 16 >= problem.M:
            return f"tile_m = {config.tile_m} for M = {problem.M} only adds rows of zeros"
        if not _fits(config, gpu):
            return (
                f"needs {config.smem_bytes * config.blocks_per_sm} bytes of shared memory a SM; "
                f"{gpu.name} has {gpu.smem_per_sm}"
            )
        return None

    def default(self, problem, gpu):
        """Return the tile that was fastest for such an M on an H200, where it fits."""
        tile_m = min(64, 16 * -(-problem.M // 16))
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

    def build(self, config, arch):
        """Return the program: Grid: stripes; Block: num_warps; smem: ring + exchange."""
        return Program(_build(config), PARAMETERS, config.num_threads, smem_bytes=config.smem_bytes)

    def prepare(self, problem, inputs):
        """Return x as it is and the packed weight; a pointer that is never read gets a word."""
        operands = layout.pack_operands(problem, inputs)
        absent = dict.fromkeys(("zero_points", "bias", "perm"), np.zeros(4, np.int32))
        return {"x": inputs["x"], **absent, **operands}

    def launch(self, config, problem, gpu):
        """Return the stripes: as few blocks as give every one the same number of tiles."""
        K, N = layout.stored_shape(problem)
        slices = -(-problem.M // config.tile_m) * (N // config.tile_n)
        tiles = slices * (K // config.tile_k)
        tiles_per_block = -(-tiles // (gpu.num_sms * config.blocks_per_sm))
        grid = -(-tiles // tiles_per_block)
        return Launch(
            (grid, 1, 1),
            {
                "m": problem.M,
                "n": N,
                "k": K,
                "x_columns": problem.K,
                "out_columns": problem.N,
                "tiles_per_block": tiles_per_block,
                "has_bias": int(problem.bias),
            },
            # a block shares at most its first and its last slice
            {"partials": 2 * grid * config.tile_m * config.tile_n * 4, "counters": 4 * slices},
        )


def _fits(config, gpu):
    reserved = gpu.smem_reserved
    return config.smem_bytes <= gpu.smem_per_block and (
        (config.smem_bytes + reserved) * config.blocks_per_sm <= gpu.smem_per_sm
    )


def _build(config):
    tile_m, tile_n, tile_k = config.tile_m, config.tile_n, config.tile_k
    num_threads, num_stages, warps_k = config.num_threads, config.num_stages, config.warps_k
    group_size, per_channel = config.group_size, config.group_size < 0
    has_zeros, act_order = config.has_zeros, config.act_order
    half = {"fp16": "f16", "bf16": "bf16"}[config.dtype]
    unpack = {"fp16": unpack_f16x2, "bf16": unpack_bf16x2}[config.dtype]
    warps_n, m_blocks = tile_n // 64, tile_m // 16
    steps = tile_k // 16 // warps_k  # mma steps of one warp in a stage
    groups_in_stage = config.scale_rows > 1

    # a stage is copied in pieces of 16 bytes; a thread copies the same columns of every row it has
    a_row_pieces, b_row_pieces, s_row_pieces = tile_k // 8, tile_n // 2, tile_n // 8
    a_rows, b_rows = num_threads // a_row_pieces, num_threads // b_row_pieces
    s_pieces = config.scale_rows * s_row_pieces
    z_pieces, z_row_pieces = config.z_stage_bytes // 16, tile_n // 32
    a_rounds, b_rounds = -(-tile_m // a_rows), -(-(tile_k // 16) // b_rows)
    s_rounds = -(-s_pieces // num_threads)
    a_ragged = tile_m % a_rows != 0

    b_offset = config.a_stage_bytes
    s_offset = b_offset + config.b_stage_bytes
    z_offset = s_offset + config.s_stage_bytes
    stage_bytes = config.stage_bytes
    ring_bytes = num_stages * stage_bytes
    sums_bytes = config.sums_bytes
    flag_offset = config.smem_bytes - 16
    in_flight = num_stages - 2

    # a warp's sums are four accumulators of a 16-column strip each, in 16-byte pieces of all lanes;
    # after the reduction a warp owns `strips` of them
    acc_floats = 8 * m_blocks
    acc_bytes = acc_floats * 128
    warp_bytes = 4 * acc_bytes
    slot_bytes = tile_m * tile_n * 4
    strips = 4 // warps_k
    own_floats = strips * acc_floats
    out_row_bytes = tile_n * 2 + 16  # 16: rows start four banks apart
    out_row_pieces = tile_n // 8

    zeros = splat_f32(acc_floats)
    load_a = ldmatrix_tile(m_blocks, 16 * tile_k * 2)
    mma = mma_tile(m_blocks, half)
    convert = make_dequantize(half, zeros=has_zeros, scaled=not per_channel)
    zeros_own = splat_f32(own_floats)
    ones_own = splat_f32(4 * strips)
    store_sums = store_tile("shared", acc_floats, 512)
    add_sums = add_tile("shared", own_floats, 512)
    store_partial = store_tile("global", own_floats, 512)
    add_partial = add_tile("global", own_floats, 512)
    store_out = store_tile_rounded(m_blocks, strips, out_row_bytes, half)

    @cuda.jit(device=True, inline="always")
    def fetch_x(smem, gmem, perm, x_columns, k_first, rows_left):
        """Copy this thread's 16 bytes of every row; what lies past M or K becomes zeros."""
        inside = k_first < x_columns
        if act_order:
            # no asynchronous copy picks its columns
            places = perm + (uint64(k_first if inside else uint32(0)) << 2)
            low = ld_global_nc_v4(places)
            high = ld_global_nc_v4(places + uint64(16))
        for i in range(a_rounds):
            r = uint32(uint32(cuda.threadIdx.x) // uint32(a_row_pieces))
            if not a_ragged or uint32(r + i * a_rows) < uint32(tile_m):
                present = inside and uint32(i * a_rows) < rows_left
                if act_order:
                    piece = (uint32(0), uint32(0), uint32(0), uint32(0))
                    if present:
                        piece = gather_8x16(gmem, low, high)
                    st_shared_v4(smem + i * (a_rows * tile_k * 2), piece)
                else:
                    size = uint32(16) if present else uint32(0)
                    cp_async_16_zfill(smem + i * (a_rows * tile_k * 2), gmem, size)
                gmem = gmem + uint64(x_columns) * uint64(a_rows * 2)

    @cuda.jit(device=True, inline="always")
    def fetch_to_shared(stage, place, perm, n, x_columns, k_tile):
        a_gmem, b_gmem, s_gmem, z_gmem, rows_left = place
        tid = uint32(cuda.threadIdx.x)
        r = uint32(tid // uint32(a_row_pieces))
        c = uint32(tid % uint32(a_row_pieces))
        smem = uint32(stage + r * (tile_k * 2) + (c ^ (r & 7)) * 16)
        k_first = uint32(k_tile * tile_k + c * 8)
        # in act-order a row's columns are all over it
        gmem = a_gmem if act_order else a_gmem + uint64(k_tile) * uint64(tile_k * 2)
        fetch_x(smem, gmem, perm, x_columns, k_first, rows_left)
        smem = uint32(stage + b_offset + tid * 16)
        gmem = b_gmem + uint64(k_tile) * uint64(uint32(n * (tile_k // 2)))
        for i in range(b_rounds):
            cp_async_16(smem + i * (num_threads * 16), gmem)
            gmem = gmem + uint64(n) * uint64(b_rows * 8)
        for i in range(s_rounds):
            p = uint32(tid + i * num_threads)
            if p < uint32(s_pieces):
                r = uint32(p // uint32(s_row_pieces))
                c = uint32(p % uint32(s_row_pieces))
                group = uint32(uint32(k_tile * tile_k) // uint32(group_size) + r)
                gmem = s_gmem + uint64(group) * uint64(uint32(n * 2)) + uint64(c * 16)
                cp_async_16(stage + s_offset + p * 16, gmem)
        if tid < uint32(z_pieces):
            r = uint32(tid // uint32(z_row_pieces))
            c = uint32(tid % uint32(z_row_pieces))
            group = uint32(uint32(k_tile * tile_k) // uint32(group_size) + r)
            gmem = z_gmem + uint64(group) * uint64(n >> 1) + uint64(c * 16)
            cp_async_16(stage + z_offset + tid * 16, gmem)

    @cuda.jit(device=True, inline="always")
    def corner(slice_id, m_tiles):
        tile_column = uint32(slice_id // m_tiles)
        return uint32((slice_id - uint32(tile_column * m_tiles)) * tile_m), uint32(
            tile_column * tile_n
        )

    @cuda.jit(device=True, inline="always")
    def locate(sources, m, n, x_columns, slice_id, m_tiles):
        """Return where this thread copies a slice from, at K = 0, and how many rows are left."""
        x, packed, scales, zero_points, _ = sources
        tid = uint32(cuda.threadIdx.x)
        row, column = corner(slice_id, m_tiles)
        r = uint32(tid // uint32(a_row_pieces))
        c = uint32(0) if act_order else uint32(tid % uint32(a_row_pieces))
        a_gmem = x + ((uint64(uint32(row + r)) * x_columns + uint32(c * 8)) << 1)
        rows_left = uint32(m - uint32(row + r)) if uint32(row + r) < m else uint32(0)
        r = uint32(tid // uint32(b_row_pieces))
        c = uint32(tid % uint32(b_row_pieces))
        b_gmem = packed + ((uint64(r) * n + uint32(column + c * 2)) << 3)
        s_gmem, z_gmem = scales + (uint64(column) << 1), zero_points + (uint64(column) >> 1)
        return a_gmem, b_gmem, s_gmem, z_gmem, rows_left

    @cuda.jit(device=True, inline="always")
    def fetch_next(fetch, place, end, smem, sources, m, n, k, x_columns, m_tiles):
        """Begin the copies of one tile, if there is one left, and return what comes next."""
        slice_id, k_tile, tile, stage = fetch
        if tile < end:
            fetch_to_shared(stage, place, sources[4], n, x_columns, k_tile)
        cp_async_commit()
        k_tile = uint32(k_tile + 1)
        if k_tile == uint32(k // uint32(tile_k)):
            k_tile = uint32(0)
            slice_id = uint32(slice_id + 1)
            place = locate(sources, m, n, x_columns, slice_id, m_tiles)
        stage = uint32(stage + stage_bytes)
        if stage == uint32(smem + ring_bytes):
            stage = smem
        return (slice_id, k_tile, uint32(tile + 1), stage), place

    @cuda.jit(device=True, inline="always")
    def fetch_groups(stage, s_lane, z_lane, step):
        """Return the scales of a lane's eight columns, and their zero points in one word."""
        group = uint32(0)
        if groups_in_stage:
            group = uint32(uint32(step * 16) // uint32(group_size))
        zero = uint32(0)
        if has_zeros:
            zero = ld_shared_u32(stage + z_lane + group * (tile_n // 2))
        return ld_shared_v4(stage + s_lane + group * (tile_n * 2)), zero

    @cuda.jit(device=True, inline="always")
    def fetch_to_registers(stage, a_lane, a_swizzle, b_lane, step):
        word = ld_shared_v4(stage + b_lane + step * (b_row_pieces * 16))
        return word, load_a(stage + a_lane + ((step * 32) ^ a_swizzle))

    @cuda.jit(device=True, inline="always")
    def dequantize(word, scale, zero, strip):
        """Return the B operands of a strip of 16 columns."""
        # of columns 0..7 in the lower half, of 8..15 in the upper
        pair = uint32((zero >> (4 * strip)) & 0x000F000F)
        if has_zeros and per_channel:
            return convert(word, pair)
        if has_zeros:
            return convert(word, pair, scale)
        return convert(word) if per_channel else convert(word, scale)

    @cuda.jit(device=True, inline="always")
    def multiply(a, word, scale, zero, acc):
        acc0, acc1, acc2, acc3 = acc
        acc0 = mma(a, dequantize(word[0], scale[0], zero, 0), acc0)
        acc1 = mma(a, dequantize(word[1], scale[1], zero, 1), acc1)
        acc2 = mma(a, dequantize(word[2], scale[2], zero, 2), acc2)
        acc3 = mma(a, dequantize(word[3], scale[3], zero, 3), acc3)
        return acc0, acc1, acc2, acc3

    @cuda.jit(device=True, inline="always")
    def unpack_pairs(first, second):
        low = unpack(first)
        high = unpack(second)
        return low[0], low[1], high[0], high[1]

    @cuda.jit(device=True, inline="always")
    def load_columns(gmem):
        """Return the fp32 values of the columns a lane owns in the epilogue, in fragment order."""
        if strips == 1:
            pairs = ld_global_nc_v2(gmem)
            return unpack_pairs(pairs[0], pairs[1])
        pairs = ld_global_nc_v4(gmem)
        return unpack_pairs(pairs[0], pairs[1]) + unpack_pairs(pairs[2], pairs[3])

    def marlin(
        x, packed, scales, zero_points, bias, perm, out, partials, counters,
        m, n, k, x_columns, out_columns, tiles_per_block, has_bias,
    ):  # fmt: skip
        # index: which stripe, which slice, which fragment
        smem = smem_base()
        ring_end = uint32(smem + ring_bytes)
        tile_out = uint32(ring_end + sums_bytes)
        tid = uint32(cuda.threadIdx.x)
        bid = uint32(cuda.blockIdx.x)
        lane_id = uint32(tid & 31)
        warp_id = uint32(tid >> 5)
        warp_n = uint32(warp_id % uint32(warps_n))
        warp_k = uint32(warp_id // uint32(warps_n))
        sums = uint32(ring_end + lane_id * 16)
        own_offset = uint32(warp_k * (warp_bytes // warps_k))
        k_tiles = uint32(k // uint32(tile_k))
        m_tiles = uint32(uint32(m + (tile_m - 1)) // uint32(tile_m))
        tile = uint32(bid * tiles_per_block)
        end = uint32(uint32(uint32(n // uint32(tile_n)) * m_tiles) * k_tiles)
        if uint32(tile + tiles_per_block) < end:
            end = uint32(tile + tiles_per_block)
        slice_id = uint32(tile // k_tiles)
        k_tile = uint32(tile - uint32(slice_id * k_tiles))
        a_lane = uint32((lane_id & 15) * (tile_k * 2))
        # the 16-byte piece of the lane in its row: lane / 16, swizzled by the row
        a_swizzle = uint32(((lane_id >> 4) ^ (lane_id & 7)) * 16)
        b_lane = uint32(warp_n * 512 + lane_id * 16 + b_offset)
        s_lane = uint32(warp_n * 128 + (lane_id >> 2) * 16 + s_offset)
        z_lane = uint32(warp_n * 32 + (lane_id >> 2) * 4 + z_offset)
        one = float32(1)
        nothing = float32(0)

        stage = smem
        sources = (x, packed, scales, zero_points, perm)
        fetch = (slice_id, k_tile, tile, smem)
        place = locate(sources, m, n, x_columns, slice_id, m_tiles)
        # prologue: the copies run num_stages - 1 tiles ahead of the mma, across slices
        for _ in range(num_stages - 1):
            fetch, place = fetch_next(fetch, place, end, smem, sources, m, n, k, x_columns, m_tiles)
        while tile < end:
            acc = (zeros(nothing), zeros(nothing), zeros(nothing), zeros(nothing))
            row, column = corner(slice_id, m_tiles)
            zero = uint32(0)
            if has_zeros and per_channel:
                word = uint32((column >> 1) + warp_n * 32 + (lane_id >> 2) * 4)
                zero = ld_global_nc_u32(zero_points + uint64(word))
            k_first = k_tile
            k_last = uint32(k_tile + uint32(end - tile))
            if k_last > k_tiles:
                k_last = k_tiles

            # main loop: one stage a turn
            while k_tile < k_last:
                # this stage has arrived, and every warp has left the one to overwrite next
                cp_async_wait(in_flight)
                cuda.syncthreads()
                step = uint32(warp_k * steps)
                word, a = fetch_to_registers(stage, a_lane, a_swizzle, b_lane, step)
                scale = word
                if not per_channel:
                    scale, zero = fetch_groups(stage, s_lane, z_lane, step)
                fetch, place = fetch_next(
                    fetch, place, end, smem, sources, m, n, k, x_columns, m_tiles
                )
                for _ in range(steps - 1):
                    step = uint32(step + 1)
                    next_word, next_a = fetch_to_registers(stage, a_lane, a_swizzle, b_lane, step)
                    next_scale, next_zero = scale, zero
                    if groups_in_stage:
                        next_scale, next_zero = fetch_groups(stage, s_lane, z_lane, step)
                    acc = multiply(a, word, scale, zero, acc)
                    word, a, scale, zero = next_word, next_a, next_scale, next_zero
                acc = multiply(a, word, scale, zero, acc)

                stage = uint32(stage + stage_bytes)
                if stage == ring_end:
                    stage = smem
                k_tile = uint32(k_tile + 1)
                tile = uint32(tile + 1)

            # reduction over the warps along K: each sums its share of the strip, in their order
            store_sums(sums + warp_id * warp_bytes, acc[0])
            store_sums(sums + warp_id * warp_bytes + acc_bytes, acc[1])
            store_sums(sums + warp_id * warp_bytes + 2 * acc_bytes, acc[2])
            store_sums(sums + warp_id * warp_bytes + 3 * acc_bytes, acc[3])
            cuda.syncthreads()
            own = zeros_own(nothing)
            for i in range(warps_k):
                own = add_sums(sums + (warp_n + i * warps_n) * warp_bytes + own_offset, own)

            # reduction over the blocks of the slice: the last to arrive adds all, in their order
            complete = True
            if k_first > uint32(0) or k_last < k_tiles:
                begin = uint32(slice_id * k_tiles)
                first_block = uint32(begin // tiles_per_block)
                last_block = uint32(uint32(begin + k_tiles - 1) // tiles_per_block)
                counter = counters + (uint64(slice_id) << 2)
                own_partial = partials + uint64(warp_n * warp_bytes + own_offset + lane_id * 16)
                # a block keeps the slice it begins in its second slot, others in the first
                slot = uint32(bid * 2 + 1) if k_first == uint32(0) else uint32(bid * 2)
                store_partial(own_partial + uint64(slot) * uint64(slot_bytes), own)
                cuda.syncthreads()
                if tid == uint32(0):
                    fence_acq_rel_gpu()
                    st_shared_u32(smem + flag_offset, atom_add_acq_rel_gpu(counter, uint32(1)))
                cuda.syncthreads()
                arrived = ld_shared_u32(smem + flag_offset)
                complete = arrived == uint32(last_block - first_block)
                if complete:
                    fence_acq_rel_gpu()
                    if tid == uint32(0):
                        st_global_u32(counter, uint32(0))  # ready for the next launch
                    own = zeros_own(nothing)
                    block = first_block
                    while block <= last_block:
                        begins = uint32(block * tiles_per_block) <= begin
                        slot = uint32(block * 2 + 1) if begins else uint32(block * 2)
                        own = add_partial(own_partial + uint64(slot) * uint64(slot_bytes), own)
                        block = uint32(block + 1)

            # epilogue: registers -> smem as fp16 rows -> gmem
            if complete:
                t = uint32(lane_id & 3)
                # where `permute_scales` of one group puts this lane's columns
                columns = uint32(column + warp_n * 64 + t * 8)
                if strips == 1:
                    columns = uint32(columns + (warp_k >> 1) * 32 + (warp_k & 1) * 4)
                else:
                    columns = uint32(columns + warp_k * 32)
                scale = ones_own(one)
                if per_channel:
                    scale = load_columns(scales + (uint64(columns) << 1))
                shift = ones_own(nothing)
                if has_bias > uint32(0):
                    shift = load_columns(bias + (uint64(columns) << 1))
                store_out(
                    tile_out
                    + (lane_id >> 2) * out_row_bytes
                    + (warp_n * 128 + warp_k * (32 * strips) + t * 4),
                    own,
                    scale,
                    shift,
                )
                cuda.syncthreads()
                piece = tid
                while piece < uint32(tile_m * out_row_pieces):
                    r = uint32(piece // uint32(out_row_pieces))
                    c = uint32(piece % uint32(out_row_pieces))
                    if uint32(row + r) < m and uint32(column + c * 8) < out_columns:
                        value = ld_shared_v4(tile_out + r * out_row_bytes + c * 16)
                        to = uint64(uint32(row + r)) * out_columns + uint32(column + c * 8)
                        st_global_v4(out + (to << 1), value)
                    piece = uint32(piece + num_threads)
            slice_id = uint32(slice_id + 1)
            k_tile = uint32(0)

    return marlin
