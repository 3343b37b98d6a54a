"""Step 4: tensor cores multiply 16 rows of x at once, and a weight is dequantised once for all."""

from dataclasses import dataclass

from numba import cuda, float32, uint32, uint64

from ferrum_numba import Launch, Program
from ferrum_numba.contract import Corner
from ferrum_numba.division import ceil_div
from ferrum_numba.ptx.convert import pack_f16x2
from ferrum_numba.ptx.memory import (
    ld_global_nc_v2,
    ld_global_nc_v4,
    ld_global_nc_v4_if,
    st_global_v4_if,
)
from ferrum_numba.ptx.mma import mma_m16n8k16_f16
from ladder.op import PARAMETERS, Problem, Step
from ladder.reference import GROUP, WORD_ROWS
from ladder.step2_vector import LANE_COLUMNS, LANES_K
from ladder.step3_registers import eight_weights, twice

GROUP_WORDS = GROUP // WORD_ROWS
# rows of x of a product; a lane has rows g and g + 8 of it
TILE_M = 16
# one row more than that: an edge that the Op does not know of
CORNERS = (Corner(Problem(17, 128, 128)),)


@dataclass(frozen=True)
class Config:
    """One way to cut the work."""

    num_threads: int = 128  # a block, and its columns


@cuda.jit(device=True, forceinline=True)
def lane_weights(words, pairs):
    """Return the weights of a lane's four columns, four pairs each."""
    return (
        eight_weights(words[0], twice(pairs, 0)),
        eight_weights(words[1], twice(pairs, 1)),
        eight_weights(words[2], twice(pairs, 2)),
        eight_weights(words[3], twice(pairs, 3)),
    )


@cuda.jit(device=True, forceinline=True)
def add_products(total, upper, lower, weights):
    """Add 16 rows of x times 32 columns of the weight, over 32 of K.

    total:        [4, 4] fp32: of each of the lane's four columns, what a product leaves in it
    upper, lower: eight elements each of rows g and g + 8, as four pairs
    weights:      of `lane_weights`
    """
    for j in range(LANE_COLUMNS):
        # the k of a product are what both operands put there: of a lane 8t to 8t + 7, in two halves
        for half in range(2):
            p, q = 2 * half, 2 * half + 1
            a = (upper[p], lower[p], upper[q], lower[q])
            b = (weights[j][p], weights[j][q])
            c = (total[j, 0], total[j, 1], total[j, 2], total[j, 3])
            d = mma_m16n8k16_f16(a, b, c)
            for i in range(4):
                total[j, i] = d[i]


@cuda.jit(device=True, forceinline=True)
def store_row(out, total, i, exists):
    """Write a row's sums of a lane: of columns 8t to 8t + 7, as the products leave them."""
    # a product's column 2t is the lane's column 4 (2t) + j, its column 2t + 1 four further on
    piece = (
        pack_f16x2(total[0, i], total[1, i]),
        pack_f16x2(total[2, i], total[3, i]),
        pack_f16x2(total[0, i + 1], total[1, i + 1]),
        pack_f16x2(total[2, i + 1], total[3, i + 1]),
    )
    st_global_v4_if(out, piece, uint32(exists))


def build(config):
    num_threads = config.num_threads

    def step4_mma(x, qweight, scales, out, M, N, K):
        # index: a warp has 32 columns; it reads four rows of words at once, 128 bytes of each
        tid = uint32(cuda.threadIdx.x)
        lane, warp = uint32(tid & 31), uint32(tid >> 5)
        g, t = uint32(lane >> 2), uint32(lane & 3)
        warp_n = uint32(uint32(cuda.blockIdx.x) * num_threads + warp * 32)
        n = uint32(warp_n + g * LANE_COLUMNS)
        m = uint32(uint32(cuda.blockIdx.y) * TILE_M + g)
        below = uint32(m + 8)

        # main loop: a word of each of its four columns a turn
        total = cuda.local.array((LANE_COLUMNS, 4), float32)
        for j in range(LANE_COLUMNS):
            for i in range(4):
                total[j, i] = float32(0)
        row = t
        while row < uint32(K // WORD_ROWS):
            words = ld_global_nc_v4(qweight + (uint64(row * N + n) << 2))
            # rows that x does not have are zeros
            k = uint32(row * WORD_ROWS)
            upper = ld_global_nc_v4_if(x + (uint64(m * K + k) << 1), uint32(m < M))
            lower = ld_global_nc_v4_if(x + (uint64(below * K + k) << 1), uint32(below < M))
            pairs = ld_global_nc_v2(scales + (uint64(row // GROUP_WORDS * N + n) << 1))
            add_products(total, upper, lower, lane_weights(words, pairs))
            row = uint32(row + LANES_K)

        # epilogue: the products have added up the lanes that share a column
        column = uint32(warp_n + t * 8)
        store_row(out + (uint64(m * N + column) << 1), total, 0, m < M)
        store_row(out + (uint64(below * N + column) << 1), total, 2, below < M)

    return step4_mma


class Mma(Step):
    """Tensor cores."""

    name = "step4_mma"
    config = Config
    summary = "mma.m16n8k16: 16 rows of x at once"

    def corners(self):
        """Return what `check` runs beside the Op's tests."""
        return CORNERS

    def build(self, config, arch):
        """Return the program. Block: a warp for every 32 columns."""
        return Program(build(config), PARAMETERS, config.num_threads)

    def launch(self, config, problem, gpu):
        """Return blocks over the columns, times tiles of 16 rows of x."""
        M, N, K = problem.M, problem.N, problem.K
        return Launch((N // config.num_threads, ceil_div(M, TILE_M), 1), {"M": M, "N": N, "K": K})
