"""Grouped GEMM for few tokens an expert, near the speed of memory: one grid streams all experts.

    out[p, n] = half(w[p] * (sum_k x[row(p), k] * W[e(p), k, n] + bias[e(p), n]))

x             [T, K] or [pairs, K], row-major    gmem, rows gathered by cp.async, padded smem
packed        [E, K/16, 2N] int32, Marlin tiles  gmem, streamed once, straight to registers
scales        [E, G, N], permuted                gmem, once a step
zero_points   [E, G, N/8] int32, packed          gmem, once a step; not read in a symmetric weight
bias          [E, N], permuted                   gmem, read once in the epilogue
topk_weights  [T, top_k] fp32                    gmem, read once in the epilogue, where weighted
list          int32, see shared/work_list.py     gmem, read where a slice begins
out           [pairs, N] or [pairs, N/2]         gmem, a row a pair, written once

The arithmetic is that of decode. A slice is the columns of one block of
the work list: up to tile_m rows of one expert. The steps of all slices of all experts are numbered
and cut into equal stripes, one a block, on the device: only there it is known how many there are.
So every SM streams the same number of bytes, whatever the routing, no block is empty, and the
weights of the next expert are on their way before the sums of the last are written. A slice that
several stripes share is summed in fp32 in the order of the stripes.

Direct, there is no list: every pair is a block of one row, which costs weights read twice where
tokens share an expert, and saves sorting them.

Where a launch's list was written by the one before it, it waits before it reads it; else only the
activations are waited for, and the first weights are on their way before the launch before ends.

Bound by gmem bandwidth and latency up to 8 rows an expert, by issue slots beyond; see
docs/designs/grouped_decode.md#bound.
Limits: group_size in {-1, 32, 64, 128}, no act-order (gather x first); fewer than 2^32 steps of 8
rows, 64 columns and 64 of K.
"""

from dataclasses import dataclass

from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ConfigError
from ferrum_numba.gpu import is_hopper_or_later
from ferrum_numba.kernels.decode import kernel as decode
from ferrum_numba.kernels.grouped import (
    OPERANDS,
    SETTLED,
    SIZES,
    GroupedKernel,
    expected_hits,
)
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.work_list import max_blocks
from ferrum_numba.layout import begin, regions


@dataclass(frozen=True)
class Config(decode.Config):
    """One way to tile; tile_m is the block of the list that is read."""

    whole: bool = False  # stripes of whole slices: no block waits for another's sums
    buckets: bool = False  # stripes of each block of the list by themselves, for as many as can be
    direct: bool = False  # no list: every pair is a block of one row
    gated: bool = False  # the problem's: silu(gate) * up is written

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cluster != 1:
            raise ConfigError(f"experts are cut into stripes; got cluster = {self.cluster}")
        if self.direct and self.tile_m != 8:
            raise ConfigError(f"blocks of one row take tile_m = 8; got tile_m = {self.tile_m}")

    @property
    def own_offset(self) -> int:
        """Where each warp keeps the stripe, and the rows of x that it multiplies."""
        return self.bar_offset + 16

    @property
    def own_bytes(self) -> int:
        """Bytes of what a warp keeps."""
        return 8 + self.tile_m * 4

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory a block."""
        return self.own_offset + self.num_warps * self.own_bytes

    @property
    def smem_map(self):
        """What lies where in it."""
        return regions(
            self.smem_bytes,
            *super().smem_map,
            begin("rows", self.own_offset, "a warp's stripe and its rows of x", self.num_warps),
        )

    @property
    def list_name(self) -> str:
        """The parameter that says whose rows are multiplied."""
        return "ids" if self.direct else f"list_{self.tile_m}"


# ((warps_n, warps_k), step_k, blocks_per_sm) by rows of a block
_SHAPES = {
    8: (
        ((2, 2), 128, 4), ((2, 4), 128, 2), ((1, 4), 128, 4), ((4, 4), 128, 1), ((4, 2), 128, 2),
        ((4, 1), 128, 4), ((2, 1), 128, 8), ((8, 1), 128, 2), ((1, 2), 128, 8), ((1, 3), 128, 5),
        ((2, 3), 128, 2), ((1, 8), 128, 2), ((1, 8), 64, 2), ((2, 4), 64, 2), ((1, 4), 64, 1),
        ((1, 2), 64, 1),
    ),
    16: (
        ((2, 3), 128, 2), ((2, 2), 128, 3), ((4, 1), 128, 3), ((2, 1), 128, 6), ((4, 3), 128, 1),
        ((1, 6), 64, 2), ((1, 6), 128, 2), ((1, 4), 64, 3), ((1, 4), 64, 1), ((1, 2), 64, 1),
    ),
    32: (
        ((1, 4), 128, 2), ((1, 8), 128, 1), ((2, 4), 128, 1), ((1, 8), 64, 1), ((1, 4), 64, 1),
        ((1, 2), 64, 1),
    ),
}  # fmt: skip
# (whole, buckets, direct)
_GRIDS = (
    (False, False, False), (False, True, True), (True, True, True), (True, False, False),
    (False, False, True), (True, False, True),
)  # fmt: skip


def _grids(tile_m, shape):
    """Return the grids of a shape; of tall blocks the widest and the narrowest are whole too."""
    if tile_m == 8:
        return _GRIDS
    # bits that no other token changes, for experts with many rows
    ends = _SHAPES[tile_m][0], _SHAPES[tile_m][-1]
    return (_GRIDS[0], _GRIDS[3]) if shape in ends else _GRIDS[:1]


_CONFIGS = tuple(
    Config(
        tile_m, *warps, step_k, blocks_per_sm, 1, early,
        whole=whole, buckets=buckets, direct=direct,
    )
    for early in (True, False)
    for tile_m, rows in _SHAPES.items()
    for warps, step_k, blocks_per_sm in rows
    for whole, buckets, direct in _grids(tile_m, (warps, step_k, blocks_per_sm))
)  # fmt: skip
# (warps_n, warps_k, blocks_per_sm), the best first: where a slice has few steps, warps side by side
_SHORT = ((4, 1, 4), (2, 1, 8), (1, 2, 8), (2, 2, 4), (1, 4, 4), (1, 2, 1))
_LONG = ((4, 2, 2), (2, 2, 4), (1, 4, 4), (1, 3, 5), (1, 4, 1), (1, 2, 1))
SHORT_STEPS = 8
# one token's slices, where all of them find room: no block waits for another
_WHOLE = ((1, 8, 2), (1, 4, 4))
# pairs an expert up to which blocks of 8 or 16 rows take the least time; 32 take twice that of 16
FULL_ROWS = {8: 6, 16: 32}
# of all slices: they are numbered in 32 bits
MOST_STEPS = 2**32
# tokens up to which lists are worth doing without, and blocks of an expert's rows worth trying
MOST_DIRECT_TOKENS, MOST_BLOCKS = 16, 8


class GroupedDecode(GroupedKernel):
    """Weights as A, rows as n8; stripes over the slices of all experts, cut on the device."""

    name = "grouped_decode"
    config = Config
    blocks = (8, 16, 32)
    models_shapes = True
    summary = "experts, few tokens: weights to registers, as A of mma; stripes over all experts"

    def configs(self, gpu):
        """Return the configs that fit the GPU, the default first."""
        early = is_hopper_or_later(gpu.arch)
        return tuple(c for c in _CONFIGS if c.early == early and decode.unfit(c, gpu) is None)

    def refuses(self, problem):
        """Return why no config can run this problem, or None."""
        K, N = layout.stored_shape(problem.expert)
        most = max_blocks(problem.num_pairs, problem.num_experts, min(self.blocks))
        steps = most * (N // layout.N_MULTIPLE) * (K // layout.K_MULTIPLE)
        if steps >= MOST_STEPS:
            return (
                f"{self.name} needs fewer than {MOST_STEPS} steps of {min(self.blocks)} rows, "
                f"{layout.N_MULTIPLE} columns and {layout.K_MULTIPLE} of K; got up to {steps}, of "
                f"{problem.num_pairs} pairs"
            )
        return super().refuses(problem)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        if config != self.specialise(config, problem):
            return f"compiled for other weights than {problem}"
        K, N = layout.stored_shape(problem.expert)
        if N % config.tile_n or K % config.step_k:
            return (
                f"N must be a multiple of tile_n = {config.tile_n} and K of step_k = "
                f"{config.step_k}; got N = {N}, K = {K}, as they are stored"
            )
        if config.direct and problem.tokens > MOST_DIRECT_TOKENS:
            return (
                f"without a list weights are read once a pair; {problem.tokens} tokens share "
                "experts"
            )
        rows = problem.num_pairs / expected_hits(problem)
        if config.tile_m == 8 and rows > 8 * MOST_BLOCKS:
            return f"tile_m = {config.tile_m} for {rows:.0f} rows an expert reads weights too often"
        if config.tile_m > 8 and config.tile_m >= 2 * problem.tokens:
            return f"tile_m = {config.tile_m} for {problem.tokens} tokens only adds rows of zeros"
        return decode.unfit(config, gpu)

    def default(self, problem, gpu):
        """Return what was fastest for such problems on an H200, or the first that fits."""
        fitting = list(self.fitting(problem, gpu))
        # sorting one token's experts saves nothing
        direct = problem.tokens == 1
        whole = direct and self._finds_room(problem, gpu)
        tile_m = self._block(problem, {c.tile_m for c in fitting})
        fitting = [
            c
            for c in fitting
            if (c.direct, c.buckets, c.whole, c.tile_m) == (direct, direct, whole, tile_m)
        ]
        fitting.sort(key=lambda c: -c.step_k)
        shapes = {(c.warps_n, c.warps_k, c.blocks_per_sm): c for c in reversed(fitting)}
        steps = layout.stored_shape(problem.expert)[0] // fitting[0].step_k
        order = _WHOLE if whole else _SHORT if steps <= SHORT_STEPS else _LONG
        return next((shapes[shape] for shape in order if shape in shapes), fitting[0])

    def _block(self, problem, blocks):
        """Return the rows of a block that hold most experts' pairs."""
        rows = problem.num_pairs / expected_hits(problem)
        return next((b for b in sorted(blocks) if rows <= FULL_ROWS.get(b, rows)), max(blocks))

    def _finds_room(self, problem, gpu):
        """Return whether two blocks an SM are as many as one token's slices."""
        slices = layout.stored_shape(problem.expert)[1] // layout.N_MULTIPLE
        return problem.num_pairs * slices <= 2 * gpu.num_sms

    def reads(self, config):
        """Return the list that a config reads, or the ids themselves."""
        return config.list_name

    def is_invariant(self, config):
        """Return whether sums are cut alike for every routing: by slices, blocks or pairs."""
        return config.whole or config.buckets or config.direct

    def corners(self):
        """Return problems on which stripes, rings and hand-overs are met."""
        from ferrum_numba.kernels.grouped_decode.corners import CORNERS

        return CORNERS

    def build(self, config, arch):
        """Return the program: Grid: stripes; Block: warps_n * warps_k warps; smem: x + sums."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.grouped_decode.program import build

        early = config.early and is_hopper_or_later(arch)
        return Program(
            build(config, early),
            (
                *pointers(*OPERANDS, config.list_name, "slots"),
                *sizes(*SIZES, "stripe_units", "longer_stripes", "first_block"),
            ),
            config.num_threads,
            config.blocks_per_sm,
            config.smem_bytes,
        )

    def launch(self, config, problem, gpu):
        """Return a full GPU, or as many blocks as there can be steps."""
        blocks = problem.num_pairs
        if not config.direct:
            blocks = max_blocks(problem.num_pairs, problem.num_experts, config.tile_m)
        rows = blocks if config.buckets else 1
        stripes, units = self.cut(config, problem, gpu, rows)
        scalars = self.scalars(
            problem, config.tile_m, stripe_units=units // stripes, longer_stripes=units % stripes,
            first_block=0,
        )  # fmt: skip
        if not config.buckets:
            # never fewer than there are steps, of which the device knows
            stripes = min(gpu.num_sms * config.blocks_per_sm, blocks * stripes)
        return Launch(
            (stripes, rows, 1),
            scalars,
            # zero where nothing has arrived, and left so
            {"slots": stripes * rows * config.partial_bytes},
            programmatic=config.early,
            settled=SETTLED,
        )

    def cut(self, config, problem, gpu, rows):
        """Return the stripes of one block of the list, and what they are cut from.

        rows: of the grid, which share the GPU
        """
        K, N = layout.stored_shape(problem.expert)
        units = most = N // config.tile_n * (1 if config.whole else K // config.step_k)
        if not config.whole:
            most = ceil_div(units, config.warps_k)
        return min(max(1, gpu.num_sms * config.blocks_per_sm // rows), most), units
