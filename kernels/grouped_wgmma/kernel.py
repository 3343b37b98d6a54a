"""W4A16 GEMM of a layer of experts on Hopper, for many rows an expert: prefill's tiles on a list.

    out[p, n] = round(w[p] * (sum_k x[row(p), k] * weight[e(p), k, n] + bias[e(p), n]))

    x             [T or P, K] row-major      gmem; gathered by cp.async, 128-byte swizzled smem, B
    packed        [E, Kp/16, 2Np] int32      gmem; bulk copies of whole rows, smem, registers: A
    scales        [E, G, Np], permuted       gmem, one row (or tile_k / group_size) a stage
    zero_points   [E, G, Np/8] int32         gmem, likewise, of an asymmetric weight; else zero is 8
    bias          [E, Np], permuted          gmem, read once in the epilogue
    topk_weights  [P] float32                gmem, read once a tile, smem
    list_{tile_m} int32                      gmem: see kernels/shared/work_list.py
    out           [P, N or N/2] row-major    gmem, rows of pairs, written once, 16 bytes a thread

x, scales, bias and out are fp16 or bf16, whichever `dtype` is built for; the operands are those of
kernels/shared/packed.py, an expert after the other.

A tile is a block of the list times tile_n columns of its expert. The grid is as many blocks as the
GPU holds; each reads from the list how many tiles there are, and deals them out as prefill does on
the host: whole tiles in turn, what is left over in equal stripes along K. Products, stripes and
their hand-over are prefill's own; see kernels/prefill/kernel.py.

Four warps gather the rows of a tile's pairs, 16 bytes a lane, into the swizzle that wgmma reads,
and say at the stage's barrier when they are there; what a row without a pair is multiplied with is
nobody's. One lane of each copies packed words, the first one's scales and zero points too. Of
stages of 128 of k (`scale_sums`) two warps gather, and the two others copy words. All of them run
ahead of the products, into the next tile and its expert, as far as the ring is long. Who gathers
leaves a tile's pairs and their weights where the epilogue finds them, the first one its expert too.

With `short_m` a block of no more pairs is multiplied by a loop of its own, whose products have so
many rows; the same of its sums are handed over and written. Those blocks are taken last, so that
tiles that run at the same time take the same time.

The epilogue adds the bias, makes silu(gate) * up of the columns where the problem is gated, times
the pair's weight, rounds once, and writes each row where its pair says.

A launch may begin before the one before it has ended: it reads the list, unless that is new, and
deals out the tiles; it waits before it copies anything.

Without `stripes` a pair's row has the same bits whatever else is in the batch; with them, K may be
cut at other places.

Workspace: with `stripes` a tile of fp32 sums a block, up to 26 MB on an H200.

Bound by the tensor cores and their power, with few rows an expert by issue slots; see
docs/designs/grouped_wgmma.md#bound.
Limits: Hopper; group_size in {-1, 32, 64, 128}; no act-order (gather x first); N of at least 128.
"""

import math
from dataclasses import dataclass

from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.division import ceil_div, round_up
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.grouped import OPERANDS, SETTLED, SIZES, GroupedKernel
from ferrum_numba.kernels.prefill.kernel import RESULT_CYCLES, stage_cycles
from ferrum_numba.kernels.prefill.tile import (
    CONSUMER_REGISTERS,
    PANEL_K,
    PRODUCER_REGISTERS,
    PRODUCER_WARPS,
    Tile,
)
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.shared.work_list import max_blocks
from ferrum_numba.layout import begin, regions

ARCH = "sm_90a"
# tiles that have a place for their pairs: the one that ends, and one that is copied ahead
NUM_SLOTS = 2
# of x: where a row begins is kept in units of 16 bytes, in 32 bits
MOST_ELEMENTS = 8 * (2**32 - 1)
# blocks of a list that are put in order, where some of them are short
MOST_ORDERED = 1024
# what memory brings in a cycle, for each block of the grid
CYCLE_BYTES = 17
# what scaled sums take longer for the second loop, where there is one
SHORT_SUMS = 1.035


@dataclass(frozen=True)
class Config(Tile):
    """One way to tile."""

    tile_m: int = 128  # pairs a block, and a block of the list
    tile_n: int = 256  # columns a block: 64 or 128 a warpgroup
    num_stages: int = 6  # stages of the ring
    stripes: bool = True  # the tiles left over are cut into stripes
    scale_sums: bool = False  # by the scales of their groups, not the weights; stages of 128 of k
    short_m: int = (
        0  # only so many rows are multiplied of a block with no more pairs; 0: always all
    )
    # what the problem dictates: see `GroupedKernel.specialise`
    group_size: int = 128  # K a scale, -1: one scale a column
    dtype: str = "fp16"  # of x, scales, bias and out
    has_zero_points: bool = False  # the weight is asymmetric
    gated: bool = False  # columns are gate and up in runs of 8; silu(gate) * up is written

    row_multiple = 8

    def __post_init__(self) -> None:
        self.refuse()
        if self.short_m % 8 or not 0 <= self.short_m < self.tile_m:
            raise ConfigError(
                f"short_m must be a multiple of 8 below tile_m; got short_m = {self.short_m}, "
                f"tile_m = {self.tile_m}"
            )

    @property
    def num_slots(self) -> int:
        """Tiles that have a place for their pairs at once."""
        return NUM_SLOTS

    @property
    def strip_bytes(self) -> int:
        """Bytes of a row of a strip, on its way out."""
        return 16 if self.gated else 32

    @property
    def out_row_bytes(self) -> int:
        """Bytes from one row of a warpgroup's columns to the next, on their way out."""
        return 4 * self.strips * self.strip_bytes + 16  # 16: rows start in other banks

    @property
    def slots_offset(self) -> int:
        """Where the tiles' pairs, their weights, experts and numbers of pairs lie."""
        return self.out_offset + 2 * self.part_bytes

    @property
    def slot_bytes(self) -> int:
        """Bytes of those of a tile."""
        return 8 * self.tile_m + 16

    @property
    def expert_offset(self) -> int:
        """Where in that place the expert lies, after pairs and weights."""
        return 8 * self.tile_m

    @property
    def rows_offset(self) -> int:
        """Where in it lies how many pairs there are."""
        return self.expert_offset + 4

    @property
    def registers(self) -> tuple[int, int]:
        """Registers a thread of the warps that multiply, and of those that copy."""
        # of two panels there is more to copy, and tiles are small
        return (224, 56) if self.panels > 1 else (CONSUMER_REGISTERS, PRODUCER_REGISTERS)

    @property
    def panels(self) -> int:
        """Panels of 64 of k of a stage of x."""
        return self.tile_k // PANEL_K

    @property
    def chunk_step(self) -> int:
        """Chunks of 8 rows from one that a warp copies to its next; the panels are others'."""
        return self.x_warps // self.panels

    @property
    def x_warps(self) -> int:
        """Warps that gather x: all four share large tiles, of two panels two have one each."""
        return 2 if self.panels > 1 else PRODUCER_WARPS

    @property
    def word_warps(self) -> int:
        """Warps that copy words and scales, by one lane: those that do not gather, or all."""
        return PRODUCER_WARPS - self.x_warps or PRODUCER_WARPS

    @property
    def warp_chunks(self) -> int:
        """Chunks of 8 rows that a warp copies, at most."""
        return ceil_div(self.tile_m // 8, self.chunk_step)

    @property
    def table_bytes(self) -> int:
        """Bytes of where a warp's rows of x lie."""
        return self.warp_chunks * 8 * 4

    @property
    def tables_offset(self) -> int:
        """Where each warp that copies has its rows."""
        return self.slots_offset + self.num_slots * self.slot_bytes

    @property
    def slot_bars_offset(self) -> int:
        """Where the slots' barriers lie, two of 8 bytes each."""
        return round_up(self.tables_offset + PRODUCER_WARPS * self.table_bytes, 16)

    @property
    def deal_offset(self) -> int:
        """Where the four numbers lie that say how tiles are dealt."""
        return self.slot_bars_offset + 16 * self.num_slots

    @property
    def order_offset(self) -> int:
        """Where the order lies in which blocks of the list are taken, 4 bytes each."""
        return self.deal_offset + 16

    @property
    def most_ordered(self) -> int:
        """Blocks of the list that have a place in that order."""
        return MOST_ORDERED if self.short_m else 0

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory a block: ring, what is on its way out, pairs, barriers, order."""
        return self.order_offset + 4 * self.most_ordered

    @property
    def smem_map(self):
        """What lies where in it."""
        return regions(
            self.smem_bytes,
            *self.ring_map,
            begin("out", self.out_offset, "rounded rows on their way out, of each warpgroup", 2),
            begin("slots", self.slots_offset, "pairs of the tiles at work", self.num_slots),
            begin("tables", self.tables_offset, "where a copying warp's rows lie", PRODUCER_WARPS),
            begin("slot barriers", self.slot_bars_offset, "two mbarriers a slot", self.num_slots),
            begin("deal", self.deal_offset, "how tiles are dealt"),
            begin("order", self.order_offset, "in which blocks of the list are taken"),
        )


# (tile_m, tile_n, num_stages): those of prefill that win somewhere
_TILES = (
    (128, 256, 6), (64, 256, 8), (96, 256, 7), (192, 256, 5), (256, 128, 5), (128, 128, 8),
    (64, 128, 8), (96, 128, 8), (48, 256, 10), (32, 256, 12), (80, 256, 8), (112, 256, 7),
    (144, 256, 6), (160, 256, 5),
)  # fmt: skip
# few rows: where weights have groups, it is cheaper to scale the sums
_SCALED = ((64, 256, 4), (48, 256, 5), (40, 256, 5), (32, 256, 6), (24, 256, 6), (16, 256, 7))
# those whose short blocks have rows of their own, so many; of larger tiles the registers
# hold no second loop (docs/designs/grouped_wgmma.md#short)
_SHORT = (
    ((160, 256, 5), 80), ((144, 256, 6), 72), ((128, 256, 6), 64), ((112, 256, 7), 56),
    ((96, 256, 7), 48), ((80, 256, 8), 40),
)  # fmt: skip
_SHORT_SCALED = (((48, 256, 5), 24), ((40, 256, 5), 16), ((32, 256, 6), 16))
_CONFIGS = tuple(
    config
    for split in (True, False)
    for config in (
        *(Config(*tile, stripes=split) for tile in _TILES),
        *(Config(*tile, stripes=split, scale_sums=True) for tile in _SCALED),
        *(Config(*tile, stripes=split, short_m=short) for tile, short in _SHORT),
        *(
            Config(*tile, stripes=split, scale_sums=True, short_m=short)
            for tile, short in _SHORT_SCALED
        ),
    )
)


class GroupedWgmma(GroupedKernel):
    """Prefill's tiles on a work list: rows of x gathered, rows of out scattered."""

    name = "grouped_wgmma"
    config = Config
    blocks = tuple(sorted({config.tile_m for config in _CONFIGS}))
    models_shapes = True
    summary = (
        "packed layout, a work list, many rows an expert: wgmma with dequantised A in registers; "
        "Hopper only"
    )

    def configs(self, gpu):
        """Return the tiles whose shared memory fits the GPU, the default first; Hopper only."""
        if gpu.arch != ARCH:
            return ()
        return tuple(c for c in _CONFIGS if gpu.lacks_smem(c.smem_bytes) is None)

    def refuses(self, problem):
        """Return why no config can run this problem, or None."""
        N = layout.stored_shape(problem.expert)[1]
        if N < 128:
            return f"{self.name} needs N of at least 128; got N = {problem.N} ({N} as packed)"
        rows = problem.num_pairs if problem.per_pair else problem.tokens
        if rows * problem.K >= MOST_ELEMENTS:
            return (
                f"{self.name} needs an x of less than {MOST_ELEMENTS} elements; got {rows} rows of "
                f"K = {problem.K}"
            )
        return super().refuses(problem)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        if gpu.arch != ARCH:
            return f"wgmma needs {ARCH}; {gpu.name} is {gpu.arch}"
        if config != self.specialise(config, problem):
            return f"compiled for other weights or types than {problem}"
        K, N = layout.stored_shape(problem.expert)
        if config.scale_sums and (config.group_size < 0 or K % config.tile_k):
            return (
                f"sums are scaled by groups, in stages of {config.tile_k} of K; got group_size = "
                f"{config.group_size}, K = {K} (as packed)"
            )
        if config.tile_n > N:
            return f"N must be at least {config.tile_n}; got {N} (as packed)"
        # a tile with more 64-row blocks than an expert can have rows multiplies zeros for nothing
        if config.tile_m - 64 >= problem.num_pairs:
            return f"tile_m = {config.tile_m} for {problem.num_pairs} pairs only adds rows of zeros"
        return gpu.lacks_smem(config.smem_bytes)

    def default(self, problem, gpu):
        """Return the config that takes the fewest cycles by the model of `_cycles`."""
        fitting = self.fitting(problem, gpu)
        return min(fitting, key=lambda config: self._cycles(config, problem, gpu))

    def _cycles(self, config, problem, gpu):
        """Return what a problem takes as modelled, for experts that are hit alike."""
        K, N = layout.stored_shape(problem.expert)
        hit, full, short = expected_blocks(problem, config.tile_m, config.short_m)
        a_wave = gpu.num_sms / ceil_div(N, config.tile_n)
        waves, full_waves = (full + short) / a_wave, full / a_wave
        if not config.stripes:
            waves, full_waves = math.ceil(waves), math.ceil(full_waves)
        elif config.short_m:
            # one has both kinds of tiles
            full_waves = min(waves, full_waves + 0.5)
        compute = full_waves * _tile_cycles(config, config.tile_m, K)
        compute += (waves - full_waves) * _tile_cycles(config, config.short_m, K)
        if config.scale_sums and config.short_m:
            compute *= SHORT_SUMS
        memory = hit * K * N / 2 / (CYCLE_BYTES * gpu.num_sms)
        return max(compute, memory)

    def corners(self):
        """Return problems on which stripes, rings and hand-overs are met."""
        from ferrum_numba.kernels.grouped_wgmma.corners import CORNERS

        return CORNERS

    def estimate_us(self, config, problem, gpu):
        """Return what a launch is expected to take, modelled: for ranking configs."""
        return self._cycles(config, problem, gpu) / gpu.clock_mhz

    def build(self, config, arch):
        """Return the program: Grid: a block a SM; Block: two warpgroups and those that copy."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.grouped_wgmma.program import build

        return Program(
            build(config),
            (*pointers(*OPERANDS, f"list_{config.tile_m}", "partials", "counters"), *sizes(*SIZES)),
            config.num_threads,
            smem_bytes=config.smem_bytes,
            lto=True,
        )

    def launch(self, config, problem, gpu):
        """Return a full GPU, or as many blocks as the worst list has work for."""
        K, N = layout.stored_shape(problem.expert)
        most = max_blocks(problem.num_pairs, problem.num_experts, config.tile_m)
        work = most * ceil_div(N, config.tile_n) * (K // config.tile_k if config.stripes else 1)
        grid = min(work, gpu.num_sms)
        return Launch(
            (grid, 1, 1),
            self.scalars(problem, config.tile_m),
            # of a block's stripe only the first tile can begin before it; up to two waves less a
            # tile are striped, each with a counter for either warpgroup
            {
                "partials": (grid if config.stripes else 1) * config.tile_m * config.tile_n * 4,
                "counters": (2 * grid if config.stripes else 1) * 8,
            },
            programmatic=True,
            settled=SETTLED,
        )


def _tile_cycles(config, rows, K):
    """Return what a tile takes as modelled, of which so many rows are multiplied."""
    result = rows * config.tile_n * RESULT_CYCLES
    return K // config.tile_k * stage_cycles(config, rows) + result


def expected_blocks(problem, block, short_m=0):
    """Return how many experts are hit, and how many blocks of the list they fill, as expected.

    Blocks are those with more than short_m pairs, and the others.

    As if every pair chose its expert by itself, all experts alike: rows are Poisson's.
    """
    E = problem.num_experts
    rows = problem.num_pairs / E
    hit = E * (1 - math.exp(-rows))
    if rows > min(16 * block, 600):
        blocks, short = rows / block + 0.5, short_m / block
        return hit, E * (blocks - short), E * short
    blocks, short, below, chance = 0.0, 0.0, 0.0, math.exp(-rows)
    # blocks of an expert: one for each multiple of `block` that its rows exceed
    most = math.ceil(rows + 10 * math.sqrt(rows) + 10)
    for count in range(most):
        below += chance
        if count > 0 and (count - 1) % block < short_m:
            short += chance
        chance *= rows / (count + 1)
        if count % block == 0:
            blocks += max(0.0, 1 - below)
    return hit, E * (blocks - short), E * short
