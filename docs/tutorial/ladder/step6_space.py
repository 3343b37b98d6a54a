"""Step 6: what was a constant becomes a config, and the GPU says which is best."""

from dataclasses import dataclass

from numba import cuda, float32, uint32, uint64

from ferrum_numba import Launch, Program
from ferrum_numba.division import ceil_div
from ferrum_numba.errors import ConfigError
from ferrum_numba.kernels.gptq.steps import load_rows, mma_rows, store_rows
from ferrum_numba.layout import begin, regions
from ferrum_numba.ptx.asynchronous import (
    cp_async_8,
    cp_async_16,
    cp_async_16_zfill,
    cp_async_commit,
    cp_async_wait,
)
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.memory import ld_shared_v2, ld_shared_v4
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.space import space
from ladder.op import PARAMETERS, Step
from ladder.reference import GROUP, WORD_ROWS
from ladder.step2_vector import LANE_COLUMNS
from ladder.step4_mma import CORNERS, lane_weights

# K of a turn of step 4; columns of a warp
BLOCK_K, WARP_N = 32, 32
# bytes of a row of x in a block of K: eight lanes read two rows at once, which fill the 32 banks
ROW_BYTES = 2 * BLOCK_K


@dataclass(frozen=True)
class Config:
    """One way to cut the work."""

    tile_m: int = 16  # rows of x a block
    warps_n: int = 4  # side by side, of 32 columns each
    tile_k: int = 64  # K a stage
    num_stages: int = 4  # of the ring; all but one are on their way

    def __post_init__(self):
        if self.tile_m not in (16, 32, 64):
            raise ConfigError(f"tile_m must be 16, 32 or 64; got {self.tile_m}")
        if self.warps_n not in (1, 2, 4):
            raise ConfigError(f"warps_n must be 1, 2 or 4; got {self.warps_n}")
        # a stage has one row of scales
        if self.tile_k not in (32, 64, GROUP):
            raise ConfigError(f"tile_k must be 32, 64 or {GROUP}; got {self.tile_k}")
        if self.num_stages < 2:
            raise ConfigError(f"num_stages must be at least 2; got {self.num_stages}")

    @property
    def num_threads(self):
        """Threads a block."""
        return 32 * self.warps_n

    @property
    def stage_map(self):
        """What lies where in a stage. Of words and scales a thread copies what it will read."""
        words = 2 * self.tile_m * self.tile_k
        scales = words + 16 * self.num_threads * self.tile_k // BLOCK_K
        return regions(
            scales + 8 * self.num_threads,
            begin("x", 0, "[block of K, row, 32 of K]"),
            begin("words", words, "[block of K, thread, 4 columns]"),
            begin("scales", scales, "[thread, 4 columns]"),
        )

    @property
    def smem_bytes(self):
        """Dynamic shared memory a block."""
        return self.num_stages * sum(part.size_bytes for part in self.stage_map)

    @property
    def smem_map(self):
        """What lies where in it, for `explain`."""
        return regions(self.smem_bytes, begin("ring", 0, "stages", self.num_stages, self.stage_map))


# the first that fits is the default
CONFIGS = space(
    Config,
    tile_m=(16, 32, 64),
    warps_n=(4, 2, 1),
    tile_k=(64, 128),
    num_stages=(4, 2, 8),
)


def make_tile(config):
    """Return what computes a tile of out: rows first_m and up, below M, and a block's columns."""
    tile_m, tile_k, num_stages = config.tile_m, config.tile_k, config.num_stages
    num_threads = config.num_threads
    _, words_offset, scales_offset = (part.offset for part in config.stage_map)
    stage_bytes, in_flight = config.smem_bytes // num_stages, num_stages - 2
    k_blocks, tile_n = tile_k // BLOCK_K, WARP_N * config.warps_n
    x_pieces = tile_m * tile_k // 8
    x_rounds = ceil_div(x_pieces, num_threads)
    # what step 4 does, for as many tiles of 16 rows: a row of products is an instruction here
    m_tiles = tile_m // 16
    zeros, no_bias = splat_f32(8 * m_tiles), splat_f32(8)
    load_x, add_products = load_rows(m_tiles, ROW_BYTES), mma_rows(m_tiles)
    store = store_rows(m_tiles)

    @cuda.jit(device=True, forceinline=True)
    def fetch_x(place, x, stage, m, M, K):
        """Begin to copy a stage's x, 16 bytes a piece; zeros for rows that are not there."""
        for i in range(x_rounds):
            piece = uint32(uint32(cuda.threadIdx.x) + i * num_threads)
            if piece < x_pieces:
                row = uint32(m + (piece >> 2) % tile_m)
                k = uint32(stage * tile_k + (piece >> 2) // tile_m * BLOCK_K + (piece & 3) * 8)
                # of a row that is not there nothing is read, but the address must be one of x
                there = uint32(row < M)
                at = x + (uint64((row * K + k) * there) << 1)
                cp_async_16_zfill(uint32(place + piece * 16), at, uint32(there * 16))

    @cuda.jit(device=True, forceinline=True)
    def fetch_weight(place, qweight, scales, stage, t, n, N):
        """Begin to copy the words and the scales that this thread will read of a stage."""
        tid = uint32(cuda.threadIdx.x)
        for block in range(k_blocks):
            row = uint32((stage * k_blocks + block) * (BLOCK_K // WORD_ROWS) + t)
            to = uint32(place + words_offset + (block * num_threads + tid) * 16)
            cp_async_16(to, qweight + (uint64(row * N + n) << 2))
        group = uint32(stage * tile_k // GROUP)
        to = uint32(place + scales_offset + tid * 8)
        cp_async_8(to, scales + (uint64(group * N + n) << 1))

    @cuda.jit(device=True, forceinline=True)
    def multiply_tile(x, qweight, scales, out, first_m, M, N, K):
        # index: a warp has 32 columns
        smem = smem_base()
        tid = uint32(cuda.threadIdx.x)
        lane, warp = uint32(tid & 31), uint32(tid >> 5)
        g, t = uint32(lane >> 2), uint32(lane & 3)
        warp_n = uint32(uint32(cuda.blockIdx.x) * tile_n + warp * WARP_N)
        n = uint32(warp_n + g * LANE_COLUMNS)
        stages = uint32(K // tile_k)

        # prologue: all stages but one are on their way
        fetched = uint32(0)
        for _ in range(num_stages - 1):
            if fetched < stages:
                place = uint32(smem + fetched % num_stages * stage_bytes)
                fetch_x(place, x, fetched, first_m, M, K)
                fetch_weight(place, qweight, scales, fetched, t, n, N)
            cp_async_commit()
            fetched = uint32(fetched + 1)

        # main loop: a stage a turn
        total01, total23 = zeros(float32(0)), zeros(float32(0))
        stage = uint32(0)
        while stage < stages:
            cp_async_wait(in_flight)
            # what others copied is there; and all have done with the stage that is filled next
            cuda.syncthreads()
            if fetched < stages:
                place = uint32(smem + fetched % num_stages * stage_bytes)
                fetch_x(place, x, fetched, first_m, M, K)
                fetch_weight(place, qweight, scales, fetched, t, n, N)
            cp_async_commit()
            fetched = uint32(fetched + 1)

            place = uint32(smem + stage % num_stages * stage_bytes)
            pairs = ld_shared_v2(uint32(place + scales_offset + tid * 8))
            for block in range(k_blocks):
                words = ld_shared_v4(
                    uint32(place + words_offset + (block * num_threads + tid) * 16)
                )
                rows = load_x(uint32(place + (block * tile_m + g) * ROW_BYTES + t * 16))
                weights = lane_weights(words, pairs)
                total01 = add_products(rows, weights[0], weights[1], total01)
                total23 = add_products(rows, weights[2], weights[3], total23)
            stage = uint32(stage + 1)

        # epilogue: the products have added up the lanes that share a column
        m, column = uint32(first_m + g), uint32(warp_n + t * 8)
        if m < M:
            at = out + (uint64(m * N + column) << 1)
            store(at, uint64(N) << 1, uint32(M - m), total01, total23, no_bias(float32(0)))

    return multiply_tile


def build(config):
    tile_m, multiply_tile = config.tile_m, make_tile(config)

    def step6_space(x, qweight, scales, out, M, N, K):
        first_m = uint32(uint32(cuda.blockIdx.y) * tile_m)
        multiply_tile(x, qweight, scales, out, first_m, M, N, K)

    return step6_space


class Space(Step):
    """A ring of stages, cut as the config says."""

    name = "step6_space"
    config = Config
    summary = "tiles and stages from a config"

    def configs(self, gpu):
        """Return the configs whose shared memory fits a block, the default first."""
        return tuple(c for c in CONFIGS if gpu.lacks_smem(c.smem_bytes) is None)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem on this GPU, or None."""
        if config.tile_m > 16 and config.tile_m >= 2 * problem.M:
            return f"half of tile_m = {config.tile_m} holds all of M = {problem.M}"
        return gpu.lacks_smem(config.smem_bytes)

    def corners(self):
        """Return what `check` runs beside the Op's tests."""
        return CORNERS

    def build(self, config, arch):
        """Return the program. Block: a warp for every 32 columns; smem: the ring."""
        return Program(build(config), PARAMETERS, config.num_threads, smem_bytes=config.smem_bytes)

    def launch(self, config, problem, gpu):
        """Return blocks over the columns, times tiles of rows of x."""
        M, N, K = problem.M, problem.N, problem.K
        grid = (N // (WARP_N * config.warps_n), ceil_div(M, config.tile_m), 1)
        return Launch(grid, {"M": M, "N": N, "K": K})
