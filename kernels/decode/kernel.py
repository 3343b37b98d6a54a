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
is summed in fp32 by the block that ends it, in the order of the stripes: the same bits in every
run. The others hand it their sums in words that are zero until they have arrived, and it takes
them when its own stripe is done. A block waits for blocks before it only, and a GPU starts blocks
in their order (CUB's scans rest on that too): so it needs no other block at the same time, and
none of the next launch starts before all of this one have. Or a cluster of blocks shares a slice,
and the others send their sums to the shared memory of its first block: that takes less time, but
leaves SMs idle where such blocks do not fill them.

The first step's weights are on their way before the launch waits for the one before it
(programmatic dependent launch), and the next one may start when the last load of this one has
begun. So a weight must not be written by the launch just before.

Bound by gmem bandwidth and latency up to 8 tokens, by issue slots beyond; see
docs/designs/decode.md#bound.
Limits: group_size in {-1, 32, 64, 128}, no act-order.
From: the orientation of vLLM's and humming's kernels for few tokens; Marlin's layout and stripes
(Frantar et al., arXiv 2408.11743).
"""

from dataclasses import dataclass

from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.division import ceil_div, round_up
from ferrum_numba.errors import ConfigError
from ferrum_numba.gpu import is_hopper_or_later
from ferrum_numba.kernels.decode import estimate
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.cut import cut
from ferrum_numba.layout import begin, regions

WORKSPACE_BYTES = 4 << 20
# more weights than this an SM streams while blocks wait for each other's sums; see
# docs/designs/decode.md#handoff-bytes
HANDOFF_BYTES = 16 << 10
# n and k are those of the packed weight, x has x_columns and out out_columns
PARAMETERS = (
    *pointers("x", "packed", "scales", "zero_points", "bias", "out", "slots"),
    *sizes("m", "n", "k", "x_columns", "out_columns", "stripe_steps", "has_bias"),
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
        if not 1 <= self.cluster <= 8:
            raise ConfigError(f"cluster must be 1 to 8; got cluster = {self.cluster}")
        if self.blocks_per_sm < 1:
            raise ConfigError(f"blocks_per_sm must be at least 1; got {self.blocks_per_sm}")
        layout.refuse_kind(self.group_size, self.dtype)

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
    def carries(self) -> bool:
        """Whether the sums of a whole step are scaled at once: its halves are of one group."""
        return self.half_groups > 0 and not self.two_scales

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
    def row_items(self) -> int:
        """Items of a token's row of sums: four columns each."""
        return self.tile_n // 4

    @property
    def sums_offset(self) -> int:
        """Where the warps' sums begin in shared memory: behind each warp's activations twice."""
        return 2 * self.num_warps * self.x_slot_bytes

    @property
    def block_offset(self) -> int:
        """Where the sums of blocks begin in shared memory."""
        return self.sums_offset + self.warps_k * self.tile_m * self.sums_row_bytes

    @property
    def bar_offset(self) -> int:
        """Where the mbarrier that counts other blocks' sums in lies in shared memory."""
        return self.block_offset + max(1, self.cluster - 1) * self.partial_bytes

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory a block."""
        return self.bar_offset + 16

    @property
    def smem_map(self):
        """What lies where in it."""
        return regions(
            self.bar_offset + 16,
            begin("x", 0, "a step's activations, twice for each warp", 2 * self.num_warps),
            begin("sums", self.sums_offset, "sums of the warps along K", self.warps_k),
            begin(
                "blocks", self.block_offset, "sums of the cluster's other blocks",
                max(1, self.cluster - 1),
            ),
            begin("barrier", self.bar_offset, "mbarrier that counts those sums in"),
        )  # fmt: skip

    @property
    def registers(self) -> int:
        """Registers a thread needs to spill none, as the compiler was seen to; 256 is too many."""
        zeros, stripes = self.has_zero_points, self.cluster == 1
        if self.tile_m == 8:
            more = stripes or (zeros and self.dtype == "bf16")
            return 168 if self.step_k == 128 and self.two_scales and more else 128
        if self.tile_m == 16:
            if self.step_k == 128:
                return 248 if self.two_scales else 168
            return 168 if zeros or (self.two_scales and stripes) else 128
        return 256 if self.two_scales and not (self.step_k == 64 and zeros) else 248


# ((warps_n, warps_k), step_k, blocks_per_sm, clusters) by tokens a block, what won most first. An
# SM has registers for 16 warps with 8 tokens, 12 with 16 (16 of half a step) and 8 with 32
_SHAPES = {
    8: (
        ((1, 8), 128, 2, (2, 1, 4)),
        ((2, 4), 128, 2, (1, 2)),
        ((1, 16), 128, 1, (2, 1)),
        ((1, 5), 128, 3, (4,)),
        ((1, 4), 128, 4, (4, 2, 1)),
        ((1, 8), 64, 2, (2, 1)),
        ((2, 4), 64, 2, (1,)),
        ((2, 8), 128, 1, (1, 2)),
        ((4, 4), 128, 1, (1,)),
        ((1, 4), 64, 1, (1,)),
        ((1, 2), 64, 1, (1,)),
    ),
    16: (
        ((1, 6), 64, 2, (2, 1, 3)),
        ((1, 4), 64, 3, (4,)),
        ((1, 3), 64, 4, (2,)),
        ((1, 6), 128, 2, (2, 1)),
        ((2, 3), 128, 2, (2, 1)),
        ((1, 12), 128, 1, (2, 1)),
        ((1, 8), 64, 2, (2, 1)),
        ((2, 6), 128, 1, (1,)),
        ((1, 4), 64, 1, (1,)),
        ((1, 2), 64, 1, (1,)),
    ),
    32: (
        ((1, 4), 128, 2, (2, 1)),
        ((1, 8), 128, 1, (2, 1)),
        ((2, 4), 128, 1, (1,)),
        ((1, 8), 64, 1, (1,)),
        ((1, 4), 64, 1, (1,)),
        ((1, 2), 64, 1, (1,)),
    ),
}
_CONFIGS = tuple(
    Config(tile_m, *warps, step_k, blocks_per_sm, cluster, early)
    for early in (True, False)
    for tile_m, rows in _SHAPES.items()
    for warps, step_k, blocks_per_sm, clusters in rows
    for cluster in clusters
)
# (warps_n, warps_k, blocks_per_sm) to run untuned: clusters of four, where the weight is small and
# they, but not pairs, leave few SMs idle; clusters of two, the best first, where they leave few SMs
# idle or the weight is small; else stripes, for weights of few columns and of many
_FOURS = {8: (1, 5, 3), 16: (1, 4, 3)}
_PAIRS = {
    8: ((1, 8, 2), (2, 4, 2), (1, 16, 1)),
    16: ((1, 6, 2), (1, 3, 4), (2, 3, 2), (1, 12, 1)),
    32: ((1, 4, 2),),
}
_STRIPES = {8: ((1, 8, 2), (2, 4, 2)), 16: ((1, 6, 2), (2, 3, 2)), 32: ((1, 8, 1), (1, 4, 2))}
# few idle SMs: this part of a wave is used. More than that of a wave in clusters of four does not
# find room at the same time: a GPC's SMs cannot all be filled with them
FULL, CROWDED = 0.8, 0.9
# a small weight: no more bytes a SM than this
SMALL_BYTES = 128 << 10


class Decode(layout.PackedKernel):
    """Weights as A, tokens as n8; straight to registers, stripes over the SMs, early start."""

    name = "decode"
    config = Config
    models_shapes = True
    summary = "packed layout, few tokens: weights to registers, as A of mma; stripes, early start"

    def configs(self, gpu):
        """Return the configs that fit the GPU, the default first."""
        # what may start early always gains by it
        early = is_hopper_or_later(gpu.arch)
        return tuple(c for c in _CONFIGS if c.early == early and unfit(c, gpu) is None)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        if config != self.specialise(config, problem):
            return f"compiled for other weights than {problem}"
        K, N = layout.stored_shape(problem)
        if N % config.tile_n or K % config.step_k:
            return (
                f"N must be a multiple of tile_n = {config.tile_n} and K of step_k = "
                f"{config.step_k}; got N = {N}, K = {K}, as they are stored"
            )
        # a tile twice as tall as the problem multiplies zeros for nothing
        if config.tile_m > 8 and config.tile_m >= 2 * problem.M:
            return f"tile_m = {config.tile_m} for M = {problem.M} only adds tokens of zeros"
        if config.cluster > 1:
            blocks = ceil_div(problem.M, config.tile_m) * (N // config.tile_n) * config.cluster
            most = gpu.num_sms * config.blocks_per_sm
            if blocks > most:
                return f"{blocks} blocks in clusters of {config.cluster}, one wave is {most}"
            if K // config.step_k < config.cluster:
                return f"K = {K} has fewer steps than a cluster of {config.cluster} blocks"
        return unfit(config, gpu)

    def default(self, problem, gpu):
        """Return what was fastest for such a problem on an H200, or the first that fits."""
        fitting = list(self.fitting(problem, gpu))
        tile_m = max(c.tile_m for c in fitting)
        fitting = [c for c in fitting if c.tile_m == tile_m]
        shapes = {(c.warps_n, c.warps_k, c.blocks_per_sm, c.cluster): c for c in reversed(fitting)}
        pairs = [shapes[*shape, 2] for shape in _PAIRS[tile_m] if (*shape, 2) in shapes]
        stripes = _STRIPES[tile_m][:: 1 if _narrow(problem, gpu) else -1]
        four = shapes.get((*_FOURS[tile_m], 4)) if tile_m in _FOURS else None
        small = _weight_bytes(problem) <= SMALL_BYTES * gpu.num_sms
        full = [c for c in pairs if self._wave(c, problem, gpu) >= FULL]
        if small and four and not full and FULL <= self._wave(four, problem, gpu) <= CROWDED:
            return four
        found = pairs if small else full
        found += [shapes[*shape, 1] for shape in stripes if (*shape, 1) in shapes]
        return next(iter(found), fitting[0])

    def _wave(self, config, problem, gpu):
        """Return which part of a wave a cluster's blocks are."""
        blocks = self.launch(config, problem, gpu).grid[0]
        return blocks / (gpu.num_sms * config.blocks_per_sm)

    def corners(self):
        """Return problems on which stripes, rings and hand-overs are met."""
        from ferrum_numba.kernels.decode.corners import CORNERS

        return CORNERS

    def estimate_us(self, config, problem, gpu):
        """Return what a launch is expected to take, modelled: for ranking configs."""
        return estimate.estimate_us(config, problem, self.launch(config, problem, gpu), gpu)

    def build(self, config, arch):
        """Return the program: Grid: stripes; Block: warps_n * warps_k warps; smem: x + sums."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.decode.program import build

        early = config.early and is_hopper_or_later(arch)
        return Program(
            build(config, early),
            PARAMETERS,
            config.num_threads,
            config.blocks_per_sm,
            config.smem_bytes,
            (config.cluster, 1, 1),
        )

    def launch(self, config, problem, gpu):
        """Return the stripes: as few blocks as give every one the same number of steps."""
        K, N = layout.stored_shape(problem)
        m_tiles = ceil_div(problem.M, config.tile_m)
        slices, k_steps = N // config.tile_n, K // config.step_k
        # a block hands over the sums of one slice at most
        most = WORKSPACE_BYTES // config.partial_bytes
        stripes = max(1, min(gpu.num_sms * config.blocks_per_sm, most) // m_tiles)
        stripe_steps = cut(slices * k_steps, stripes).stripe_steps
        # a stripe of whole slices needs nobody's sums
        more = -stripe_steps % k_steps
        if more * config.step_k * config.tile_n // 2 * config.blocks_per_sm <= HANDOFF_BYTES:
            stripe_steps += more
        blocks = ceil_div(slices * k_steps, stripe_steps)
        slots_bytes = blocks * m_tiles * config.partial_bytes if stripe_steps % k_steps else 16
        if config.cluster > 1:
            blocks, slots_bytes = slices * config.cluster, 16
        return Launch(
            (blocks, m_tiles, 1),
            self.scalars(problem, stripe_steps=stripe_steps),
            # zero where nothing has arrived, and left so
            {"slots": slots_bytes},
            programmatic=config.early,
        )


def _weight_bytes(problem):
    """Return the bytes of the packed weight's codes."""
    K, N = layout.stored_shape(problem)
    return K * N // 2


def _narrow(problem, gpu):
    """Return whether the weight has fewer tiles of 64 columns than the GPU has SMs."""
    return layout.stored_shape(problem)[1] // layout.N_MULTIPLE < gpu.num_sms


def unfit(config, gpu):
    """Return why a config cannot run on a GPU, whatever the problem, or None."""
    if config.early and not is_hopper_or_later(gpu.arch):
        return f"{gpu.name} has no programmatic dependent launch"
    if config.cluster > 1 and not is_hopper_or_later(gpu.arch):
        return f"{gpu.name} has no clusters"
    # a SM gives its registers to warps by fours
    warps = round_up(config.num_warps * config.blocks_per_sm, 4)
    registers = min(255, 65536 // (32 * warps) // 8 * 8)
    # before sm_90 there are fewer uniform registers to keep addresses in
    needed = config.registers if is_hopper_or_later(gpu.arch) else config.registers + 80
    if registers < needed:
        return f"needs {needed} registers a thread; {warps} warps leave {registers}"
    return gpu.lacks_smem(config.smem_bytes, config.blocks_per_sm)
