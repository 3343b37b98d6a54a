"""How fast a GPU reads its memory by bulk copies, which no thread carries.

    out[t] = sum of the words of row t

    data  [rows, 1024] uint32     gmem; a row of 4 KB is one cp.async.bulk to smem
    ring  [warps, stages, 4 KB]   smem, each warp its own
    out   [rows] uint32           gmem

A warp sums its oldest row while the next ones are on their way. The same Op as `dram_read`.

Bound by gmem bandwidth.
"""

from dataclasses import dataclass

from ferrum_numba.contract import Launch, Program, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.ceilings.memory import READ, ROW_BYTES, Read
from ferrum_numba.kernels.ceilings.rates import Rate
from ferrum_numba.space import space

# an mbarrier a stage, behind the rows
BAR_BYTES = 8
ARCHS = ("sm_90a", "sm_100a", "sm_103a", "sm_120a", "sm_121a")


@dataclass(frozen=True)
class BulkConfig:
    """How many rows are on their way."""

    num_warps: int = 8
    num_stages: int = 4
    blocks_per_sm: int = 1

    def __post_init__(self):
        if self.num_stages & (self.num_stages - 1):
            raise ConfigError(f"num_stages must be a power of two; got {self.num_stages}")

    @property
    def smem_bytes(self):
        """Shared memory a block: the rings and their mbarriers."""
        return self.num_warps * self.num_stages * (ROW_BYTES + BAR_BYTES)


BULK_CONFIGS = space(
    BulkConfig,
    num_warps=(8, 4, 12),
    num_stages=(4, 2),
    # what is on its way at once, beyond bandwidth times latency
    where=lambda c: 64 <= c.smem_bytes // 1024 <= 200,
)


class ReadBulk(Read):
    """Streams all of the data through shared memory."""

    name = "dram_read_bulk"
    op = READ
    config: type = BulkConfig
    summary = "cp.async.bulk of 4 KB rows to shared memory, a ring a warp; Hopper and later"
    rate = Rate("DRAM", "GB/s")

    def configs(self, gpu):
        """Return how many rows are on their way; none where there are no bulk copies."""
        return BULK_CONFIGS if gpu.arch in ARCHS else ()

    def misfit(self, config, problem, gpu):
        """Return why the rings do not fit a SM, or None."""
        return gpu.lacks_smem(config.smem_bytes, config.blocks_per_sm)

    def build(self, config, arch):
        """Return the program: Block: warps, each with a ring in smem."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.bulk_program import build

        return Program(
            build(config), (*pointers("data", "out"), *sizes("num_rows")), 32 * config.num_warps,
            config.blocks_per_sm, config.smem_bytes,
        )  # fmt: skip

    def launch(self, config, problem, gpu):
        """Return a block or two a SM, whose warps take every so manieth row."""
        num_rows = problem.size_bytes // ROW_BYTES
        needed = ceil_div(num_rows, config.num_warps)
        blocks = min(needed, gpu.num_sms * config.blocks_per_sm)
        return Launch((blocks, 1, 1), {"num_rows": num_rows})
