"""Step 5: copies to shared memory run some stages ahead of the products."""

from dataclasses import dataclass

from numba import cuda, float32, uint32, uint64

from ferrum_numba import Launch, Program
from ferrum_numba.division import ceil_div
from ferrum_numba.layout import begin, regions
from ferrum_numba.ptx.asynchronous import (
    cp_async_8,
    cp_async_16,
    cp_async_16_zfill,
    cp_async_commit,
    cp_async_wait,
)
from ferrum_numba.ptx.memory import ld_shared_v2, ld_shared_v4
from ferrum_numba.ptx.special import smem_base
from ladder.op import PARAMETERS, Step
from ladder.reference import GROUP, WORD_ROWS
from ladder.step2_vector import LANE_COLUMNS
from ladder.step4_mma import CORNERS, TILE_M, add_products, lane_weights, store_row

# K of a turn of step 4; K of a stage; stages, of which all but one are on their way
BLOCK_K, TILE_K, NUM_STAGES = 32, 64, 4
K_BLOCKS = TILE_K // BLOCK_K
# bytes of a row of x in a block of K: eight lanes read two rows at once, which fill the 32 banks
ROW_BYTES = 2 * BLOCK_K


@dataclass(frozen=True)
class Config:
    """One way to cut the work."""

    num_threads: int = 128  # a block, and its columns; it copies as many pieces of x a stage

    @property
    def stage_map(self):
        """What lies where in a stage. Of words and scales a thread copies what it will read."""
        words = 2 * TILE_M * TILE_K
        scales = words + 16 * self.num_threads * K_BLOCKS
        return regions(
            scales + 8 * self.num_threads,
            begin("x", 0, "[block of K, row, 32 of K]"),
            begin("words", words, "[block of K, thread, 4 columns]"),
            begin("scales", scales, "[thread, 4 columns]"),
        )

    @property
    def smem_bytes(self):
        """Dynamic shared memory a block."""
        return NUM_STAGES * sum(part.size_bytes for part in self.stage_map)

    @property
    def smem_map(self):
        """What lies where in it, for `explain`."""
        return regions(self.smem_bytes, begin("ring", 0, "stages", NUM_STAGES, self.stage_map))


def build(config):
    num_threads = config.num_threads
    _, words_offset, scales_offset = (part.offset for part in config.stage_map)
    stage_bytes, in_flight = config.smem_bytes // NUM_STAGES, NUM_STAGES - 2

    @cuda.jit(device=True, forceinline=True)
    def fetch_x(place, x, stage, m, M, K):
        """Begin to copy a stage's x: 16 bytes a thread; zeros for rows that are not there."""
        piece = uint32(cuda.threadIdx.x)
        row = uint32(m + (piece >> 2) % TILE_M)
        k = uint32(stage * TILE_K + (piece >> 2) // TILE_M * BLOCK_K + (piece & 3) * 8)
        # of a row that is not there nothing is read, but the address must be one of x
        there = uint32(row < M)
        at = x + (uint64((row * K + k) * there) << 1)
        cp_async_16_zfill(uint32(place + piece * 16), at, uint32(there * 16))

    @cuda.jit(device=True, forceinline=True)
    def fetch_weight(place, qweight, scales, stage, t, n, N):
        """Begin to copy the words and the scales that this thread will read of a stage."""
        tid = uint32(cuda.threadIdx.x)
        for block in range(K_BLOCKS):
            row = uint32((stage * K_BLOCKS + block) * (BLOCK_K // WORD_ROWS) + t)
            to = uint32(place + words_offset + (block * num_threads + tid) * 16)
            cp_async_16(to, qweight + (uint64(row * N + n) << 2))
        group = uint32(stage * TILE_K // GROUP)
        to = uint32(place + scales_offset + tid * 8)
        cp_async_8(to, scales + (uint64(group * N + n) << 1))

    def step5_pipeline(x, qweight, scales, out, M, N, K):
        # index: a warp has 32 columns
        smem = smem_base()
        tid = uint32(cuda.threadIdx.x)
        lane, warp = uint32(tid & 31), uint32(tid >> 5)
        g, t = uint32(lane >> 2), uint32(lane & 3)
        warp_n = uint32(uint32(cuda.blockIdx.x) * num_threads + warp * 32)
        n = uint32(warp_n + g * LANE_COLUMNS)
        first_m = uint32(uint32(cuda.blockIdx.y) * TILE_M)
        stages = uint32(K // TILE_K)

        # prologue: all stages but one are on their way
        fetched = uint32(0)
        for _ in range(NUM_STAGES - 1):
            if fetched < stages:
                place = uint32(smem + fetched % NUM_STAGES * stage_bytes)
                fetch_x(place, x, fetched, first_m, M, K)
                fetch_weight(place, qweight, scales, fetched, t, n, N)
            cp_async_commit()
            fetched = uint32(fetched + 1)

        # main loop: a stage a turn
        total = cuda.local.array((LANE_COLUMNS, 4), float32)
        for j in range(LANE_COLUMNS):
            for i in range(4):
                total[j, i] = float32(0)
        stage = uint32(0)
        while stage < stages:
            cp_async_wait(in_flight)
            # what others copied is there; and all have done with the stage that is filled next
            cuda.syncthreads()
            if fetched < stages:
                place = uint32(smem + fetched % NUM_STAGES * stage_bytes)
                fetch_x(place, x, fetched, first_m, M, K)
                fetch_weight(place, qweight, scales, fetched, t, n, N)
            cp_async_commit()
            fetched = uint32(fetched + 1)

            place = uint32(smem + stage % NUM_STAGES * stage_bytes)
            pairs = ld_shared_v2(uint32(place + scales_offset + tid * 8))
            for block in range(K_BLOCKS):
                words = ld_shared_v4(
                    uint32(place + words_offset + (block * num_threads + tid) * 16)
                )
                at = uint32(place + (block * TILE_M + g) * ROW_BYTES + t * 16)
                upper, lower = ld_shared_v4(at), ld_shared_v4(uint32(at + 8 * ROW_BYTES))
                add_products(total, upper, lower, lane_weights(words, pairs))
            stage = uint32(stage + 1)

        # epilogue: the products have added up the lanes that share a column
        m, column = uint32(first_m + g), uint32(warp_n + t * 8)
        below = uint32(m + 8)
        store_row(out + (uint64(m * N + column) << 1), total, 0, m < M)
        store_row(out + (uint64(below * N + column) << 1), total, 2, below < M)

    return step5_pipeline


class Pipeline(Step):
    """A ring of stages in shared memory."""

    name = "step5_pipeline"
    config = Config
    summary = "cp.async into a ring of four stages"

    def corners(self):
        """Return what `check` runs beside the Op's tests."""
        return CORNERS

    def build(self, config, arch):
        """Return the program. Block: a warp for every 32 columns; smem: the ring."""
        return Program(build(config), PARAMETERS, config.num_threads, smem_bytes=config.smem_bytes)

    def launch(self, config, problem, gpu):
        """Return blocks over the columns, times tiles of 16 rows of x."""
        M, N, K = problem.M, problem.N, problem.K
        return Launch((N // config.num_threads, ceil_div(M, TILE_M), 1), {"M": M, "N": N, "K": K})
