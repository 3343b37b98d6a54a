"""W4A16 GEMM for few tokens, near the speed of memory: weights are the A operand, tokens are n8.

    out[m, n] = half(sum_g scale[g, n] * sum_{k in g} x[m, k] * (code[k, n] - zero[g, n]) + bias[n])

    x            [M, K] fp16 or bf16, row-major  gmem, read by every warp; cp.async, padded smem
    packed       [K/16, 2N] int32, Marlin tiles  gmem, streamed once, straight to registers
    scales       [G, N] as x, permuted           gmem, once a step
    zero_points  [G, N/8] int32, packed          gmem, once a step; not read in a symmetric weight
    bias         [N] as x, permuted              gmem, read once in the epilogue
    out          [M, N] as x, row-major          gmem, written once

A warp owns 64 columns and all tokens of its tile. A step is step_k rows of the weight, in two
halves: while one half's words are multiplied the other's are on their way, a step ahead. Codes
minus zero points are exact in fp16 and bf16, and the sums of a group are scaled in fp32: no weight
is rounded. Warps stand side by side along N and take turns along K, each with activations of its
own: nothing in the loop makes a warp wait for another.

The steps of all column slices are numbered K first and cut into equal stripes, one a block, so
every SM streams the same number of bytes, whatever the shape. A slice that several stripes share
is summed in fp32 by the block that arrives last, in the order of the stripes: the same bits in
every run, and no block waits for another. Or a cluster of blocks shares a slice and adds up
through its shared memory.

The first step's weights are on their way before the launch waits for the one before it
(programmatic dependent launch), and the next one may start when the last load of this one has
begun. So a weight must not be written by the launch just before.

Bound by gmem bandwidth and latency up to 8 tokens, by issue slots beyond (docs/facts.md).
Limits: K % 64 == 0, N % 64 == 0, group_size in {-1, 32, 64, 128}, no act-order.
From: the orientation of vLLM's and humming's kernels for few tokens; Marlin's layout and stripes
(Frantar et al., arXiv 2408.11743).
"""

from dataclasses import dataclass, replace

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.contract import Kernel, Launch, Program, pointers, sizes
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.w4a16 import OP
from ferrum_numba.ptx.asynchronous import cp_async_16_ca, cp_async_commit, cp_async_wait
from ferrum_numba.ptx.convert import (
    pack_bf16x2,
    pack_f16x2,
    splat_f32,
    unpack_bf16x2,
    unpack_f16x2,
)
from ferrum_numba.ptx.decode import (
    TILE_BYTES,
    add_slots,
    load_tiles,
    load_tokens,
    load_words,
    multiply_step,
    prefetch_l2,
    scale_sums,
    store_columns,
)
from ferrum_numba.ptx.memory import (
    atom_add_acq_rel_gpu,
    ld_global_nc_u32,
    ld_shared_u32,
    st_global_u32,
    st_global_v2,
    st_global_v4_f32,
    st_shared_u32,
    st_shared_v4,
    st_shared_v4_f32,
)
from ferrum_numba.ptx.special import block_id, cluster_ctarank, smem_base, thread_id
from ferrum_numba.ptx.sync import (
    bar_warp_sync,
    cluster_arrive,
    cluster_wait,
    griddepcontrol_launch_dependents,
    griddepcontrol_wait,
    ld_shared_cluster_v4,
    mapa,
)
from ferrum_numba.ptx.tile import add_tile
from ferrum_numba.reference.marlin_layout import pack_weight, pack_zero_points, permute_scales

GROUP_SIZES = (128, 64, 32, -1)
WORKSPACE_BYTES = 4 << 20
# sums of other blocks that a lane reads before it adds the first
SLOTS_AT_ONCE = 4
PARAMETERS = (
    *pointers("x", "packed", "scales", "zero_points", "bias", "out", "partials", "counters"),
    *sizes("m", "n", "k", "units_per_block", "has_bias"),
)


@dataclass(frozen=True)
class Config:
    """One way to tile.

    A warp owns 64 columns and all tokens of the tile; warps_k warps split K between them.
    """

    tile_m: int = 8  # tokens a block: 8, 16 or 32
    warps_n: int = 2  # warps side by side, 64 columns each
    warps_k: int = 4  # warps along K
    step_k: int = 128  # rows of the weight a warp takes at once: 128 or 64
    blocks_per_sm: int = 2  # blocks launched a SM
    cluster: int = 1  # blocks that split K of a slice and add up in shared memory; 1: stripes
    prefetch_steps: int = 0  # steps beyond the next one that are brought to L2
    early: bool = True  # loads weights before the launch before has ended (sm_90 on)
    # what the problem dictates: see `Decode.specialise`
    group_size: int = 128  # K a scale, -1: one scale a column
    has_zero_points: bool = False
    dtype: str = "fp16"  # of x, scales, bias and out: fp16 or bf16

    def __post_init__(self) -> None:
        if self.tile_m not in (8, 16, 32):
            raise ConfigError(f"tile_m must be 8, 16 or 32; got tile_m = {self.tile_m}")
        if self.warps_n not in (1, 2, 4, 8) or self.warps_k < 1:
            raise ConfigError(
                "warps_n must be 1, 2, 4 or 8 and warps_k at least 1; "
                f"got warps_n = {self.warps_n}, warps_k = {self.warps_k}"
            )
        if self.num_warps > 16:
            raise ConfigError(f"a block has at most 16 warps; got {self.num_warps}")
        if self.step_k not in (64, 128):
            raise ConfigError(f"step_k must be 64 or 128; got step_k = {self.step_k}")
        if self.cluster not in (1, 2, 4, 8):
            raise ConfigError(f"cluster must be 1, 2, 4 or 8; got cluster = {self.cluster}")
        if self.blocks_per_sm < 1:
            raise ConfigError(f"blocks_per_sm must be at least 1; got {self.blocks_per_sm}")
        if self.prefetch_steps < 0:
            raise ConfigError(f"prefetch_steps must not be negative; got {self.prefetch_steps}")
        if self.group_size not in GROUP_SIZES:
            raise ConfigError(f"group_size must be one of {GROUP_SIZES}; got {self.group_size}")
        if self.dtype not in ("fp16", "bf16"):
            raise ConfigError(f"dtype must be fp16 or bf16; got {self.dtype}")

    @property
    def num_warps(self) -> int:
        """Warps a block."""
        return self.warps_n * self.warps_k

    @property
    def num_threads(self) -> int:
        """Threads a block."""
        return 32 * self.num_warps

    @property
    def tile_n(self) -> int:
        """Columns a block."""
        return 64 * self.warps_n

    @property
    def half_tiles(self) -> int:
        """Tiles of half a step, one below the other."""
        return self.step_k // 32

    @property
    def two_scales(self) -> bool:
        """Whether the halves of a step lie in different groups."""
        return 0 < self.group_size < self.step_k

    @property
    def half_groups(self) -> int:
        """Rows of scales that half a step needs, 0 where there is one scale a column."""
        return 0 if self.group_size < 0 else max(1, self.step_k // 2 // self.group_size)

    @property
    def zero_rows(self) -> int:
        """Rows of zero points that half a step needs."""
        return max(1, self.half_groups) if self.has_zero_points else 0

    @property
    def x_row_bytes(self) -> int:
        """Bytes of a token's row of a step; 16 more, so that rows start four banks apart."""
        return self.step_k * 2 + 16

    @property
    def x_slot_bytes(self) -> int:
        """Bytes of a warp's activations of a step."""
        return self.tile_m * self.x_row_bytes

    @property
    def sums_row_bytes(self) -> int:
        """Bytes of a token's row of sums; 16 more, so that eight lanes' columns do not collide."""
        return self.tile_n * 4 + 16

    @property
    def partial_bytes(self) -> int:
        """Bytes of a block's sums of a slice, where other blocks read them."""
        return self.tile_m * self.tile_n * 4

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory a block: each warp's activations twice, its sums, a flag."""
        x_bytes = 2 * self.num_warps * self.x_slot_bytes
        block_bytes = self.partial_bytes if self.cluster > 1 else 0
        return x_bytes + self.warps_k * self.tile_m * self.sums_row_bytes + block_bytes + 16

    @property
    def registers(self) -> int:
        """Registers a thread needs, as the compiler was seen to."""
        least = {8: 128, 16: 168, 32: 248}[self.tile_m]
        if self.step_k == 64:
            return least
        group_size, zero_points = self.group_size, self.has_zero_points
        more = {
            8: zero_points and group_size == 128,
            16: group_size in (32, 64) or (zero_points and group_size > 0),
            32: group_size in (32, 64),
        }
        return least + 40 if more[self.tile_m] else least


# ((warps_n, warps_k), ...), step_k, blocks_per_sm, clusters by tokens a block. An SM has registers
# for 16 warps with 8 tokens, 12 with 16 and 8 with 32, or fewer where zero points need some
_SHAPES = {
    8: (
        (((2, 4), (1, 8), (4, 2)), 128, 2, (1, 2)),
        (((4, 4), (2, 8), (1, 16)), 128, 1, (1, 2)),
        (((2, 3), (1, 6)), 128, 2, (1, 2)),
        (((2, 4), (1, 8)), 128, 1, (1,)),
        (((2, 4), (1, 8)), 64, 2, (1,)),
        (((1, 4), (1, 2)), 64, 1, (1,)),
    ),
    16: (
        (((4, 3), (2, 6), (1, 12)), 128, 1, (1, 2)),
        (((1, 6), (2, 3)), 128, 2, (1, 2)),
        (((2, 4), (1, 8)), 128, 1, (1, 2)),
        (((2, 6), (1, 12), (1, 4), (1, 2)), 64, 1, (1,)),
    ),
    32: (
        (((1, 4),), 128, 2, (1, 2)),
        (((2, 4), (1, 8)), 128, 1, (1, 2)),
        (((2, 4), (1, 8), (1, 4), (1, 2)), 64, 1, (1,)),
    ),
}


def _space():
    """Return the whole space, the default for a few tokens and a wide weight first."""
    return tuple(
        # asking L2 beforehand gains where few warps hold the tile, and loses where many do
        Config(tile_m, *warps, step_k, blocks_per_sm, cluster, 0 if tile_m == 8 else 2, early)
        for early in (True, False)
        for tile_m, rows in _SHAPES.items()
        for shapes, step_k, blocks_per_sm, clusters in rows
        for warps in shapes
        for cluster in (clusters if early else (1,))
    )


_CONFIGS = _space()
# (warps_n, warps_k, blocks_per_sm, cluster) to run untuned, the best first: of wide weights, and of
# those with fewer 64-column strips than the GPU has SMs
_WIDE = {8: ((2, 4, 2, 1),), 16: ((4, 3, 1, 1), (2, 6, 1, 1)), 32: ((1, 4, 2, 1), (2, 4, 1, 1))}
_NARROW = {8: ((1, 8, 2, 1),), 16: ((1, 6, 2, 2), (1, 6, 2, 1)), 32: ((1, 8, 1, 1),)}


class Decode(Kernel):
    """Weights as A, tokens as n8; straight to registers, stripes over the SMs, early start."""

    name = "decode"
    op = OP
    config = Config
    summary = "packed layout, few tokens: weights to registers, as A of mma; stripes, early start"

    def configs(self, gpu):
        """Return the configs that fit the GPU, the default first."""
        return tuple(c for c in _CONFIGS if _unfit(c, gpu) is None)

    def refuses(self, problem):
        """Return why no config can run this problem, or None."""
        if problem.act_order:
            return "decode needs rows in group order; got act_order = True"
        if problem.K % 64 or problem.N % 64:
            near_k, near_n = (max(64, round(v / 64) * 64) for v in (problem.K, problem.N))
            return (
                "decode needs K and N to be multiples of 64; "
                f"got K = {problem.K}, N = {problem.N}, the nearest are {near_k} and {near_n}"
            )
        if _group_size(problem) not in GROUP_SIZES:
            nearest = min(GROUP_SIZES[:3], key=lambda size: abs(size - problem.group_size))
            return (
                f"decode needs group_size in {GROUP_SIZES}; got {problem.group_size}, "
                f"the nearest is {nearest}"
            )
        return None

    def specialise(self, config, problem):
        """Return the config for the problem's groups, zero points and type."""
        return replace(
            config,
            group_size=_group_size(problem),
            has_zero_points=problem.zero_points != "none",
            dtype=getattr(problem, "dtype", "fp16"),
        )

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        if config != self.specialise(config, problem):
            return f"compiled for other weights than {problem}"
        if problem.N % config.tile_n or problem.K % config.step_k:
            return (
                f"N must be a multiple of tile_n = {config.tile_n} and K of step_k = "
                f"{config.step_k}; got N = {problem.N}, K = {problem.K}"
            )
        # a tile twice as tall as the problem multiplies zeros for nothing
        if config.tile_m > 8 and config.tile_m >= 2 * problem.M:
            return f"tile_m = {config.tile_m} for M = {problem.M} only adds tokens of zeros"
        if config.cluster > 1:
            blocks = -(-problem.M // config.tile_m) * (problem.N // config.tile_n) * config.cluster
            most = gpu.num_sms * config.blocks_per_sm
            if blocks > most:
                return f"{blocks} blocks in clusters of {config.cluster}, one wave is {most}"
            if problem.K // config.step_k < config.cluster:
                return f"K = {problem.K} has fewer steps than a cluster of {config.cluster} blocks"
        return _unfit(config, gpu)

    def default(self, problem, gpu):
        """Return what was fastest for such a problem on an H200, or the first that fits."""
        strips = problem.N // 64
        narrow = strips < gpu.num_sms
        space = [self.specialise(c, problem) for c in self.configs(gpu)]
        fitting = [c for c in space if self.misfit(c, problem, gpu) is None]
        tile_m = max(c.tile_m for c in fitting)
        fitting = [c for c in fitting if c.tile_m == tile_m]
        for wanted in (_NARROW if narrow else _WIDE)[tile_m]:
            for c in fitting:
                if (c.warps_n, c.warps_k, c.blocks_per_sm, c.cluster) == wanted and c.early:
                    return c
        return fitting[0]

    def build(self, config, arch):
        """Return the program: Grid: stripes; Block: warps_n * warps_k warps; smem: x + sums."""
        early = config.early and _has_early(arch)
        return Program(
            _build(config, early),
            PARAMETERS,
            config.num_threads,
            config.blocks_per_sm,
            config.smem_bytes,
            (config.cluster, 1, 1),
        )

    def prepare(self, problem, inputs):
        """Return x as it is, the packed weight, and the rest in the order in which it is read."""
        operands = {
            "x": inputs["x"],
            "packed": pack_weight(inputs["codes"]),
            "scales": permute_scales(inputs["scales"], _group_size(problem) != -1),
            "zero_points": np.zeros(8, np.int32),
            "bias": np.zeros(8, inputs["scales"].dtype),
        }
        if "zero_points" in inputs:
            operands["zero_points"] = pack_zero_points(inputs["zero_points"])
        if "bias" in inputs:
            operands["bias"] = permute_scales(inputs["bias"][None], False)[0]
        return operands

    def launch(self, config, problem, gpu):
        """Return the stripes: as few blocks as give every one the same number of steps."""
        m_tiles = -(-problem.M // config.tile_m)
        slices = problem.N // config.tile_n
        units = slices * (problem.K // config.step_k)
        # a block shares at most its first and its last slice
        most = WORKSPACE_BYTES // (2 * config.partial_bytes)
        stripes = max(1, min(gpu.num_sms * config.blocks_per_sm, most) // m_tiles)
        units_per_block = -(-units // stripes)
        stripes = -(-units // units_per_block)
        blocks = stripes * m_tiles
        partials = 2 * blocks * config.partial_bytes if stripes > 1 else 16
        counters = 4 * slices * m_tiles
        if config.cluster > 1:
            blocks, partials, counters = slices * m_tiles * config.cluster, 16, 16
        return Launch(
            (blocks, 1, 1),
            {
                "m": problem.M,
                "n": problem.N,
                "k": problem.K,
                "units_per_block": units_per_block,
                "has_bias": int(problem.bias),
            },
            {"partials": partials, "counters": counters},
            programmatic=config.early,
        )


def _group_size(problem):
    """Return the group size, with one group for the whole of K as -1."""
    return -1 if problem.group_size in (-1, problem.K) else problem.group_size


def _has_early(arch):
    """Return whether an architecture has clusters and programmatic dependent launches."""
    return int("".join(c for c in arch if c.isdigit())) >= 90


def _unfit(config, gpu):
    """Return why a config cannot run on a GPU, whatever the problem, or None."""
    if config.early and not _has_early(gpu.arch):
        return f"{gpu.name} has no programmatic dependent launch"
    if config.cluster > 1 and not _has_early(gpu.arch):
        return f"{gpu.name} has no clusters"
    # a SM gives its registers to warps by fours
    warps = -(-config.num_warps * config.blocks_per_sm // 4) * 4
    registers = min(255, 65536 // (32 * warps) // 8 * 8)
    # before sm_90 there are fewer uniform registers to keep addresses in
    needed = config.registers if _has_early(gpu.arch) else config.registers + 80
    if registers < needed:
        return f"needs {needed} registers a thread; {warps} warps leave {registers}"
    needed = (config.smem_bytes + gpu.smem_reserved) * config.blocks_per_sm
    if config.smem_bytes > gpu.smem_per_block or needed > gpu.smem_per_sm:
        return f"needs {needed} bytes of shared memory a SM; {gpu.name} has {gpu.smem_per_sm}"
    return None


def _build(config, early):
    tile_m, tile_n, step_k = config.tile_m, config.tile_n, config.step_k
    warps_n, warps_k, num_threads = config.warps_n, config.warps_k, config.num_threads
    half_tiles, n_tiles = config.half_tiles, config.tile_m // 8
    half_groups, zero_rows = config.half_groups, config.zero_rows
    has_groups, has_zeros = half_groups > 0, zero_rows > 0
    group_size = config.group_size if has_groups else 1
    two_scales = config.two_scales
    x_slot_bytes, x_row_bytes = config.x_slot_bytes, config.x_row_bytes
    sums_row_bytes, partial_bytes = config.sums_row_bytes, config.partial_bytes
    sums_offset = 2 * config.num_warps * x_slot_bytes
    warp_sums_bytes = tile_m * sums_row_bytes
    flag_offset = config.smem_bytes - 16
    block_offset = flag_offset - config.partial_bytes
    cluster, clustered = config.cluster, config.cluster > 1
    prefetch_steps = config.prefetch_steps
    prefetches = prefetch_steps > 0
    slots_at_once = SLOTS_AT_ONCE
    k_tiles, half_k = 2 * half_tiles, step_k // 2

    # a step's activations are copied in pieces of 16 bytes, some rows at once
    row_pieces = step_k // 8
    rows_at_once = 32 // row_pieces
    x_copies = tile_m // rows_at_once
    clear_rounds = -(-sums_offset // (16 * num_threads))
    # four columns of a token are an item of the epilogue
    row_items = tile_n // 4

    zeros = splat_f32(16 * n_tiles)
    load = load_tiles(half_tiles)
    load_scales = load_words(max(half_groups, 1), 4)
    load_zeros = load_words(max(zero_rows, 2), 1)
    load_x = load_tokens(half_tiles, n_tiles, x_row_bytes)
    half = "bf16" if config.dtype == "bf16" else "f16"
    # where both halves are of one group, the sums of a whole step are scaled at once
    carries = has_groups and not two_scales
    multiply = multiply_step(half_tiles, n_tiles, half, 0 if carries else half_groups, zero_rows)
    scale = scale_sums(n_tiles, half)
    one_zero_row = zero_rows == 1
    store_sums = store_columns(n_tiles, sums_row_bytes)
    add_sums = add_tile("shared", 4, 16)
    add_partials = add_slots(slots_at_once, partial_bytes)
    pack_pair = pack_bf16x2 if config.dtype == "bf16" else pack_f16x2
    unpack_pair = unpack_bf16x2 if config.dtype == "bf16" else unpack_f16x2

    @cuda.jit(device=True, inline="always")
    def locate(packed, n, k_step, slice_id):
        """Return the address of this lane's 16 bytes of the first tile of a step."""
        tid = thread_id()
        strip = uint32(slice_id * warps_n + uint32(tid >> 5) % uint32(warps_n))
        row = uint64(uint32(k_step * k_tiles)) * uint64(uint32(n * 8))
        return packed + row + uint64(uint32(strip * TILE_BYTES + (tid & 31) * 16))

    @cuda.jit(device=True, inline="always")
    def prefetch(tile, n, k_step, k_stop, steps):
        """Bring the step that comes `steps` after this one to L2: a lane a line of 128 bytes."""
        # eight lanes read a line of a tile: each brings it for another tile
        row = uint32(thread_id() & 7)
        if uint32(k_step + steps * warps_k) < k_stop and row < uint32(k_tiles):
            row = uint32(row + steps * (warps_k * k_tiles))
            prefetch_l2(tile + uint64(row) * uint64(uint32(n * 8)))

    @cuda.jit(device=True, inline="always")
    def fetch_scales(scales, n, k_step, slice_id, i):
        """Load the scales of half a step; the multiplication takes any words if there are none."""
        if not has_groups:
            return uint32(0), uint32(0), uint32(0), uint32(0)
        tid = thread_id()
        strip = uint32(slice_id * warps_n + uint32(tid >> 5) % uint32(warps_n))
        group = uint32(uint32(k_step * step_k + i * half_k) // uint32(group_size))
        row_bytes = uint64(uint32(n * 2))
        lane = uint64(uint32(strip * 128 + uint32(uint32(tid & 31) >> 2) * 16))
        return load_scales(scales + uint64(group) * row_bytes + lane, row_bytes)

    @cuda.jit(device=True, inline="always")
    def fetch_zeros(zero_points, n, k_step, slice_id, i):
        """Load the zero points of half a step, or nothing."""
        if not has_zeros:
            return (uint32(0),)
        tid = thread_id()
        strip = uint32(slice_id * warps_n + uint32(tid >> 5) % uint32(warps_n))
        group = uint32(uint32(k_step * step_k + i * half_k) // uint32(group_size))
        group = group if has_groups else uint32(0)
        row_bytes = uint64(uint32(n >> 1))
        lane = uint64(uint32(strip * 32 + uint32(uint32(tid & 31) >> 2) * 4))
        gmem = zero_points + uint64(group) * row_bytes + lane
        if one_zero_row:
            return (ld_global_nc_u32(gmem),)
        return load_zeros(gmem, row_bytes)

    @cuda.jit(device=True, inline="always")
    def fetch_x(x_lane, smem, rows, k, k_step):
        """Begin to copy a step's activations for this warp."""
        row = uint32(uint32(thread_id() & 31) // uint32(row_pieces))
        gmem = x_lane + uint64(k_step) * uint64(step_k * 2)
        for i in range(x_copies):
            if uint32(row + i * rows_at_once) < rows:
                cp_async_16_ca(smem + i * (rows_at_once * x_row_bytes), gmem)
            gmem = gmem + uint64(uint32(k * (2 * rows_at_once)))
        cp_async_commit()

    @cuda.jit(device=True, inline="always")
    def stripe_of(m, n, k, units_per_block):
        """Return this block's first step, the step after its last, and the steps of a slice."""
        # found again where it is needed: kept, it would cost the main loop its registers
        m_tiles = uint32(uint32(m + (tile_m - 1)) // uint32(tile_m))
        k_steps = uint32(k // uint32(step_k))
        if clustered:
            bid = block_id()
            rank = uint32(bid % uint32(cluster))
            begin = uint32(uint32(uint32(bid // uint32(cluster)) // m_tiles) * k_steps)
            first = uint32(begin + uint32(rank * k_steps) // uint32(cluster))
            return first, uint32(begin + uint32((rank + 1) * k_steps) // uint32(cluster)), k_steps
        first = uint32(uint32(block_id() // m_tiles) * units_per_block)
        end = uint32(uint32(n // uint32(tile_n)) * k_steps)
        if uint32(end - first) > units_per_block:
            end = uint32(first + units_per_block)
        return first, end, k_steps

    @cuda.jit(device=True, inline="always")
    def next_segment(slice_id, k_stop, end, k_steps):
        """Return the next slice of a stripe and the step after its last, 0 if none is left."""
        done = uint32(uint32(slice_id * k_steps) + k_stop)
        k_stop = uint32(0)
        if done < end:
            k_stop = uint32(end - done) if uint32(end - done) < k_steps else k_steps
        return uint32(slice_id + 1), k_stop

    @cuda.jit(device=True, inline="always")
    def settle(slice_id, k_step, k_stop, warp_k, end, k_steps):
        """Return this step or the warp's first of a later slice; k_stop is 0 if none is left."""
        while k_step >= k_stop and k_stop > uint32(0):
            slice_id, k_stop = next_segment(slice_id, k_stop, end, k_steps)
            k_step = warp_k
        return slice_id, k_step, k_stop

    @cuda.jit(device=True, inline="always")
    def write_columns(sums, out, scales, bias, row, column, n, has_bias):
        """Write four columns of a token: scaled if nobody did, with the bias, rounded once."""
        first, second, third, fourth = sums
        # where `permute_scales` of one group puts a pair of columns
        pair = uint64(uint32((column & uint32(0xFFFFFFE0)) + (column & 7) * 4)) * uint64(2)
        pair = pair + uint64(uint32((column >> 3) & 3) * 4)
        if not has_groups:
            low = unpack_pair(ld_global_nc_u32(scales + pair))
            high = unpack_pair(ld_global_nc_u32(scales + pair + uint64(16)))
            first = first * low[0]
            second = second * low[1]
            third = third * high[0]
            fourth = fourth * high[1]
        if has_bias > uint32(0):
            low = unpack_pair(ld_global_nc_u32(bias + pair))
            high = unpack_pair(ld_global_nc_u32(bias + pair + uint64(16)))
            first = first + low[0]
            second = second + low[1]
            third = third + high[0]
            fourth = fourth + high[1]
        to = out + ((uint64(row) * uint64(n) + uint64(column)) << 1)
        st_global_v2(to, (pack_pair(first, second), pack_pair(third, fourth)))

    @cuda.jit(device=True, inline="always")
    def finish(
        acc, slice_id, k_stop, scales, bias, out, partials, counters,
        m, n, k, units_per_block, has_bias,
    ):  # fmt: skip
        """Sum a slice over the warps along K and over the blocks that share it, and write it."""
        smem = smem_base()
        # indices are found again: kept, they would cost the main loop its registers
        tid = thread_id()
        bid = block_id()
        lane_id = uint32(tid & 31)
        warp_n = uint32(uint32(tid >> 5) % uint32(warps_n))
        warp_k = uint32(uint32(tid >> 5) // uint32(warps_n))
        # the sums of the slice before have been read
        cuda.syncthreads()
        store_sums(
            smem
            + sums_offset
            + warp_k * warp_sums_bytes
            + (lane_id & 3) * (2 * sums_row_bytes)
            + (warp_n * 256 + (lane_id >> 2) * 4),
            acc,
        )
        cuda.syncthreads()
        m_tiles = uint32(uint32(m + (tile_m - 1)) // uint32(tile_m))
        bid = uint32(bid // uint32(cluster))
        stripe = uint32(bid // m_tiles)
        m_tile = uint32(bid - uint32(stripe * m_tiles))
        first_row = uint32(m_tile * tile_m)
        rows = uint32(m - first_row) if uint32(m - first_row) < uint32(tile_m) else uint32(tile_m)
        items = uint32(rows * row_items)
        zero = float32(0)
        if clustered:
            # in-block sums, then every block adds its share of all blocks' sums, in their order
            block_sums = uint32(smem + block_offset)
            item = tid
            while item < items:
                r = uint32(item // uint32(row_items))
                c = uint32(item - uint32(r * row_items))
                total = (zero, zero, zero, zero)
                for i in range(warps_k):
                    at = uint32(smem + (sums_offset + i * warp_sums_bytes))
                    total = add_sums(at + r * sums_row_bytes + c * 16, total)
                st_shared_v4_f32(block_sums + item * 16, total)
                item = uint32(item + num_threads)
            cluster_arrive()
            cluster_wait()
            item = uint32(tid * cluster + cluster_ctarank())
            while item < items:
                r = uint32(item // uint32(row_items))
                c = uint32(item - uint32(r * row_items))
                total = (zero, zero, zero, zero)
                for i in range(cluster):
                    part = ld_shared_cluster_v4(mapa(block_sums + item * 16, uint32(i)))
                    total = (
                        total[0] + part[0],
                        total[1] + part[1],
                        total[2] + part[2],
                        total[3] + part[3],
                    )
                column = uint32(slice_id * tile_n + c * 4)
                write_columns(total, out, scales, bias, first_row + r, column, n, has_bias)
                item = uint32(item + cluster * num_threads)
            # nobody leaves while another reads its sums
            cluster_arrive()
            cluster_wait()
            return
        first, _, k_steps = stripe_of(m, n, k, units_per_block)
        begin = uint32(slice_id * k_steps)
        whole = begin >= first and k_stop == k_steps
        first_stripe = uint32(begin // units_per_block)
        # a slice's slots follow each other from the second one of the stripe that begins it
        slots = uint32(uint32(uint32(cuda.gridDim.x) // m_tiles) * m_tile + first_stripe)
        partial = partials + uint64(uint32(slots * 2 + 1)) * uint64(partial_bytes)
        own = partial + uint64(uint32(stripe - first_stripe)) * uint64(partial_bytes)
        item = tid
        while item < items:
            r = uint32(item // uint32(row_items))
            c = uint32(item - uint32(r * row_items))
            total = (zero, zero, zero, zero)
            for i in range(warps_k):
                at = uint32(smem + (sums_offset + i * warp_sums_bytes))
                total = add_sums(at + r * sums_row_bytes + c * 16, total)
            if whole:
                column = uint32(slice_id * tile_n + c * 4)
                write_columns(total, out, scales, bias, first_row + r, column, n, has_bias)
            else:
                st_global_v4_f32(own + uint64(item * 16), total)
            item = uint32(item + num_threads)

        # the last stripe to arrive adds all, in their order
        if not whole:
            counter = counters + (uint64(uint32(slice_id * m_tiles) + m_tile) << 2)
            last_stripe = uint32(uint32(begin + k_steps - 1) // units_per_block)
            count = uint32(uint32(last_stripe - first_stripe) + 1)
            cuda.syncthreads()
            if tid == uint32(0):
                # the barriers pass on what it releases and acquires
                st_shared_u32(smem + flag_offset, atom_add_acq_rel_gpu(counter, uint32(1)))
            cuda.syncthreads()
            if uint32(ld_shared_u32(smem + flag_offset) + 1) == count:
                if tid == uint32(0):
                    st_global_u32(counter, uint32(0))  # ready for the next launch
                item = tid
                while item < items:
                    r = uint32(item // uint32(row_items))
                    c = uint32(item - uint32(r * row_items))
                    total = (zero, zero, zero, zero)
                    i = uint32(0)
                    while i < count:
                        at = partial + uint64(i) * uint64(partial_bytes) + uint64(item * 16)
                        total = add_partials(at, uint32(count - i), total)
                        i = uint32(i + slots_at_once)
                    column = uint32(slice_id * tile_n + c * 4)
                    write_columns(total, out, scales, bias, first_row + r, column, n, has_bias)
                    item = uint32(item + num_threads)

    def decode(
        x, packed, scales, zero_points, bias, out, partials, counters,
        m, n, k, units_per_block, has_bias,
    ):  # fmt: skip
        # index: which stripe, which tokens, which tile
        smem = smem_base()
        tid = thread_id()
        lane_id = uint32(tid & 31)
        warp_k = uint32(uint32(tid >> 5) // uint32(warps_n))
        m_tiles = uint32(uint32(m + (tile_m - 1)) // uint32(tile_m))
        stripe = uint32(uint32(cuda.blockIdx.x) // uint32(cluster))
        first_row = uint32(uint32(stripe % m_tiles) * tile_m)
        rows = uint32(m - first_row)
        unit, end, k_steps = stripe_of(m, n, k, units_per_block)
        slice_id = uint32(unit // k_steps)
        k_step = uint32(unit - uint32(slice_id * k_steps))
        k_stop = uint32(k_step + uint32(end - unit))
        if k_stop > k_steps:
            k_stop = k_steps
        x_slot = uint32(smem + uint32(tid >> 5) * (2 * x_slot_bytes))
        x_both = uint32(x_slot + x_slot + x_slot_bytes)
        # where this lane's 16 bytes of a step's first rows go, and where they come from
        piece = uint32(lane_id % uint32(row_pieces))
        piece_row = uint32(lane_id // uint32(row_pieces))
        x_to = uint32(piece_row * x_row_bytes + piece * 16)
        x_lane = x + (
            uint64(uint32(first_row + piece_row)) * uint64(uint32(k * 2)) + uint64(piece * 16)
        )
        # each lane addresses a token's row of one of the four matrices of two tiles
        token_lane = uint32((lane_id & 7) * x_row_bytes + (lane_id >> 3) * 16)
        tile_stride = uint64(uint32(n * 8))

        # prologue: load weights; then, when the launch before has ended, the tokens
        step = uint32(k_step + warp_k)
        next_slice, next_step, next_stop = settle(slice_id, step, k_stop, warp_k, end, k_steps)
        # a warp without a step loads another's
        first_slice, first_step = slice_id, k_step
        if next_stop > uint32(0):
            first_slice, first_step = next_slice, next_step
        tile = locate(packed, n, first_step, first_slice)
        first = load(tile, tile_stride)
        first_scale = fetch_scales(scales, n, first_step, first_slice, 0)
        first_zero = fetch_zeros(zero_points, n, first_step, first_slice, 0)
        second = load(tile + tile_stride * uint64(half_tiles), tile_stride)
        second_scale = first_scale
        second_zero = first_zero
        if two_scales:
            second_scale = fetch_scales(scales, n, first_step, first_slice, 1)
            second_zero = fetch_zeros(zero_points, n, first_step, first_slice, 1)
        for i in range(clear_rounds):
            at = uint32(uint32(tid + i * num_threads) * 16)
            if at < uint32(sums_offset):
                # rows past M are read, and must be numbers
                st_shared_v4(smem + at, (uint32(0), uint32(0), uint32(0), uint32(0)))
        cuda.syncthreads()
        next_slice, next_step, next_stop = settle(
            next_slice, uint32(next_step + warps_k), next_stop, warp_k, end, k_steps
        )
        tile = locate(packed, n, next_step, next_slice)
        for i in range(prefetch_steps):
            prefetch(tile, n, next_step, next_stop, i)
        if early:
            if next_stop == uint32(0):
                griddepcontrol_launch_dependents()
            griddepcontrol_wait()
        fetch_x(x_lane, x_slot + x_to, rows, k, first_step)
        while k_stop > uint32(0):
            acc = zeros(float32(0))

            # main loop: one step a turn; the loads run a step ahead, across slices
            while step < k_stop:
                cp_async_wait(0)
                bar_warp_sync()
                more = next_stop > uint32(0)
                if more:
                    fetch_x(x_lane, uint32(x_both - x_slot) + x_to, rows, k, next_step)
                    if prefetches:
                        prefetch(tile, n, next_step, next_stop, prefetch_steps)
                token = load_x(x_slot + token_lane)
                if carries:
                    total = multiply(first, token, first_scale, first_zero, zeros(float32(0)))
                else:
                    acc = multiply(first, token, first_scale, first_zero, acc)
                if more:
                    first = load(tile, tile_stride)
                    if two_scales:
                        first_scale = fetch_scales(scales, n, next_step, next_slice, 0)
                        first_zero = fetch_zeros(zero_points, n, next_step, next_slice, 0)
                token = load_x(x_slot + token_lane + step_k)
                if carries:
                    total = multiply(second, token, first_scale, first_zero, total)
                    acc = scale(total, first_scale, acc)
                elif two_scales:
                    acc = multiply(second, token, second_scale, second_zero, acc)
                else:
                    acc = multiply(second, token, first_scale, first_zero, acc)
                if more:
                    second = load(tile + tile_stride * uint64(half_tiles), tile_stride)
                    if two_scales:
                        second_scale = fetch_scales(scales, n, next_step, next_slice, 1)
                        second_zero = fetch_zeros(zero_points, n, next_step, next_slice, 1)
                    else:
                        first_scale = fetch_scales(scales, n, next_step, next_slice, 0)
                        first_zero = fetch_zeros(zero_points, n, next_step, next_slice, 0)
                next_step = uint32(next_step + warps_k)
                tile = tile + tile_stride * uint64(warps_k * k_tiles)
                if more and next_step >= next_stop:
                    _, end, k_steps = stripe_of(m, n, k, units_per_block)
                    next_slice, next_step, next_stop = settle(
                        next_slice, next_step, next_stop, warp_k, end, k_steps
                    )
                    tile = locate(packed, n, next_step, next_slice)
                    for i in range(prefetch_steps):
                        prefetch(tile, n, next_step, next_stop, i)
                    if early and next_stop == uint32(0):
                        griddepcontrol_launch_dependents()
                x_slot = uint32(x_both - x_slot)
                step = uint32(step + warps_k)

            finish(
                acc, slice_id, k_stop, scales, bias, out, partials, counters,
                m, n, k, units_per_block, has_bias,
            )  # fmt: skip
            _, end, k_steps = stripe_of(m, n, k, units_per_block)
            slice_id, k_stop = next_segment(slice_id, k_stop, end, k_steps)
            step = warp_k

    return decode
