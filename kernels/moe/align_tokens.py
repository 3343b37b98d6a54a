"""Pairs of token and expert sorted by expert, in blocks of rows: the work list of a grouped GEMM.

    list = pairs by expert, then by number, each expert's padded to whole blocks

    ids         [T, top_k] int32              gmem, read to be counted, and again to be sorted
    expert_map  [E_global] int32              gmem, read where an id is; absent: ids are of experts
    out         int32, shared/work_list.py    gmem, written once, its unused rest too

Every warp has a run of pairs, and a row of counts in smem. It counts its run (atomics add, and
decide no order); thread e sums the counts of expert e over the warps, which then know where their
pairs of each expert begin; and goes through its run again, 32 pairs at once: a ballot for each bit
of an id says which lanes have the same expert, and how many of them come before. So the order is
that of the pairs, whatever the GPU does first.

One block sorts few pairs. More are cut among the blocks of a cluster, which read each other's sums
from distributed shared memory. The same launch serves every routing of so many tokens.

Bound by latency for few pairs, for many by stores of 4 bytes, mostly each in a sector of its own.
Limits: E <= 1024, blocks of 8 to 256 rows.
"""

from dataclasses import dataclass, replace

import numpy as np

from ferrum_numba.contract import Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.gpu import is_hopper_or_later
from ferrum_numba.kernels.grouped import MOST_EXPERTS, MOST_TOP_K, ROUTINGS, make_routing
from ferrum_numba.kernels.moe.chained import ChainedKernel, chained_space, refuse_threads
from ferrum_numba.kernels.shared.work_list import list_dtype, max_blocks, refuse_block
from ferrum_numba.kernels.w4a16 import MOST_M
from ferrum_numba.layout import begin, regions
from ferrum_numba.reference.moe import align_tokens

PARAMETERS = (
    *pointers("ids", "expert_map", "out"),
    *sizes("num_pairs", "num_experts", "num_ids", "block", "max_blocks", "rounds", "has_map"),
)
# of all warps' rows of counts: a block has room for them on every GPU
COUNTS_BYTES = 64 << 10
# pairs a block, from which on a cluster shares them; judgement, as docs/designs/moe.md#constants
# says
PAIRS, MANY_PAIRS = 512, 16384


@dataclass(frozen=True)
class AlignProblem:
    """Sizes and kind of one work list.

    tokens:      T
    num_experts: E, those that are here, each with blocks of its own
    top_k:       ids of a token
    block:       rows of a block
    num_ids:     E_global, the ids that a map takes to experts; 0: no map, ids are of experts
    routing:     how tokens choose, as in `GroupedProblem`
    dropped:     some ids are of no expert: -1, or too large
    """

    tokens: int
    num_experts: int
    top_k: int
    block: int = 16
    num_ids: int = 0
    routing: str = "uniform"
    dropped: bool = False

    def __post_init__(self):
        if not 1 <= self.tokens <= MOST_M:
            raise ProblemError(f"tokens must be 1 to {MOST_M}; got {self.tokens}")
        if not 1 <= self.num_experts <= MOST_EXPERTS:
            raise ProblemError(f"num_experts must be 1 to {MOST_EXPERTS}; got {self.num_experts}")
        if self.num_ids and self.num_ids < self.num_experts:
            raise ProblemError(
                f"a map needs as many ids as experts or more; got num_ids = {self.num_ids}, "
                f"num_experts = {self.num_experts}"
            )
        if not 1 <= self.top_k <= min(self.most_ids, MOST_TOP_K):
            raise ProblemError(
                f"top_k must be 1 to {MOST_TOP_K}, and no more than the ids; got top_k = "
                f"{self.top_k}, of {self.most_ids} ids"
            )
        if self.routing not in ROUTINGS:
            raise ProblemError(f'routing must be "uniform" or "skewed"; got "{self.routing}"')
        refuse_block(self.block)

    @property
    def num_pairs(self):
        """Pairs of a token and an id."""
        return self.tokens * self.top_k

    @property
    def most_ids(self):
        """Ids that may stand for an expert."""
        return self.num_ids or self.num_experts


@dataclass(frozen=True)
class AlignConfig:
    """Who counts and sorts."""

    num_threads: int = 256  # a block; no fewer than experts
    cluster: int = 1  # blocks
    programmatic: bool = False  # starts before its predecessor ends; Hopper and later
    # the problem's E, rounded up to a power of two of at least 32: see `AlignTokens.specialise`
    experts: int = 128

    def __post_init__(self):
        refuse_threads(self.num_threads)
        if self.cluster not in (1, 2, 4, 8):
            raise ConfigError(f"cluster must be 1, 2, 4 or 8; got cluster = {self.cluster}")

    @property
    def num_warps(self):
        """Warps a block."""
        return self.num_threads // 32

    @property
    def sorting_warps(self):
        """Warps of a block that count and sort: as many as have room for a row of counts."""
        return min(self.num_warps, COUNTS_BYTES // (4 * self.experts))

    @property
    def sums_offset(self):
        """Where the sums of a block's counts begin in shared memory: behind the counts."""
        return 4 * self.sorting_warps * self.experts

    @property
    def starts_offset(self):
        """Where the first places of a block's pairs begin."""
        return self.sums_offset + 4 * self.experts

    @property
    def warps_offset(self):
        """Where the warps' sums of blocks and pairs begin: 8 bytes each."""
        return self.starts_offset + 4 * self.experts

    @property
    def smem_bytes(self):
        """Dynamic shared memory a block."""
        return self.warps_offset + 8 * self.num_warps

    @property
    def smem_map(self):
        """What lies where in it."""
        return regions(
            self.smem_bytes,
            begin("counts", 0, "pairs of each expert, a row a warp", self.sorting_warps),
            begin("sums", self.sums_offset, "of a block's counts"),
            begin("starts", self.starts_offset, "first place of each expert's pairs"),
            begin("warps", self.warps_offset, "blocks and pairs before each warp", self.num_warps),
        )


def make_inputs(problem, rng):
    """Return ids, and a map that takes some of them to experts, in any order."""
    ids, _ = make_routing(replace(problem, num_experts=problem.most_ids, num_ids=0), rng)
    if problem.dropped:
        wrong = rng.choice([-1, -7, problem.most_ids, 1 << 30], ids.shape).astype(np.int32)
        ids = np.where(rng.random(ids.shape) < 0.2, wrong, ids)
    if not problem.num_ids:
        return {"ids": ids}
    here = np.full(problem.num_ids, -1, np.int32)
    chosen = rng.permutation(problem.num_ids)[: problem.num_experts]
    here[chosen] = np.arange(problem.num_experts)
    return {"ids": ids, "expert_map": here}


def work(problem):
    """Return the ids and the map read once, the list written once."""
    most = max_blocks(problem.num_pairs, problem.num_experts, problem.block)
    words = problem.num_pairs + problem.num_ids + 4 + most * (2 + problem.block)
    return Work(flops=0, bytes=4 * words)


OP = Op(
    name="align_tokens",
    formula="list = pairs by expert, then by number, each expert's padded to whole blocks",
    problem=AlignProblem,
    make_inputs=make_inputs,
    reference=lambda problem, inputs: align_tokens(
        inputs["ids"], problem.num_experts, problem.block, inputs.get("expert_map")
    ),
    output=lambda problem: (
        (), list_dtype(problem.num_pairs, problem.num_experts, problem.block),
    ),
    work=work,
    tolerance=lambda problem: Tolerance(0.0, 0.0, "integers"),
    tests=(
        AlignProblem(1, 1, 1, 8),
        AlignProblem(1, 8, 2),
        AlignProblem(7, 3, 3, 8, dropped=True),
        AlignProblem(33, 60, 4, 32, routing="skewed"),
        AlignProblem(40, 127, 8, 24),
        AlignProblem(65, 128, 8, num_ids=512),
        AlignProblem(150, 256, 5, 64, routing="skewed", dropped=True),
        AlignProblem(9, 16, 16, 256, num_ids=60, dropped=True),
        AlignProblem(3, 512, 1),
        AlignProblem(2, 1000, 9, 8),
    ),
    activations=frozenset({"ids"}),
)  # fmt: skip


class AlignTokens(ChainedKernel):
    """Counts a warp, sums an expert, ranks by ballots; a block, or a cluster of them."""

    name = "align_tokens"
    op = OP
    config = AlignConfig
    summary = "pairs sorted by expert into blocks, the same order in every run; one cluster"
    space = chained_space(AlignConfig, cluster=(1, 2, 4, 8), num_threads=(256, 512, 1024, 128))

    def configs(self, gpu):
        """Return the space; clusters, too, are for Hopper and later."""
        able = is_hopper_or_later(gpu.arch)
        return tuple(c for c in super().configs(gpu) if able or c.cluster == 1)

    def specialise(self, config, problem):
        """Return the config for no fewer experts than the problem has."""
        power = 1 << (problem.num_experts - 1).bit_length()
        return replace(config, experts=max(32, power))

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem on this GPU, or None."""
        if config.num_threads < problem.num_experts:
            return (
                f"a thread an expert: num_threads = {config.num_threads}, "
                f"num_experts = {problem.num_experts}"
            )
        if config.cluster > 1 and not is_hopper_or_later(gpu.arch):
            return f"a cluster needs sm_90 or later; {gpu.name} is {gpu.arch}"
        if config.smem_bytes > gpu.smem_per_block:
            return (
                f"{config.smem_bytes} bytes of shared memory a block; {gpu.name} has "
                f"{gpu.smem_per_block}"
            )
        return super().misfit(config, problem, gpu)

    def default(self, problem, gpu):
        """Return one block for few pairs, and a cluster of 8 for more."""
        many = problem.num_pairs > PAIRS and is_hopper_or_later(gpu.arch)
        threads = 512 if problem.num_pairs > MANY_PAIRS else 256
        num_threads = next(n for n in (256, 512, 1024) if n >= max(problem.num_experts, threads))
        return self.fitted(AlignConfig(num_threads, 8 if many else 1), problem, gpu)

    def build(self, config, arch):
        """Return the program. Grid: one cluster; Block: a thread an expert, or more; smem: counts.

        A warp has a run of pairs.
        """
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.moe.align_tokens_program import build

        return Program(
            build(config),
            PARAMETERS,
            config.num_threads,
            smem_bytes=config.smem_bytes,
            cluster=(config.cluster, 1, 1),
        )

    def prepare(self, problem, inputs):
        """Return the ids, and the map or nothing."""
        return {"expert_map": np.zeros(1, np.int32), **inputs}

    def launch(self, config, problem, gpu):
        """Return one cluster, and how often its warps take 32 pairs."""
        lanes = 32 * config.sorting_warps * config.cluster
        scalars = {
            "num_pairs": problem.num_pairs,
            "num_experts": problem.num_experts,
            "num_ids": problem.most_ids,
            "block": problem.block,
            "max_blocks": max_blocks(problem.num_pairs, problem.num_experts, problem.block),
            "rounds": ceil_div(problem.num_pairs, lanes),
            "has_map": int(problem.num_ids > 0),
        }
        return Launch((config.cluster, 1, 1), scalars, programmatic=config.programmatic)
