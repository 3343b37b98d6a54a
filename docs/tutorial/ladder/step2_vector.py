"""Step 2: 16 bytes a load, of four columns of the weight and of eight elements of x."""

from dataclasses import dataclass

from numba import cuda, float32, int32, uint32, uint64

from ferrum_numba import Launch, Program
from ferrum_numba.ptx.convert import pack_f16x2, unpack_f16x2
from ferrum_numba.ptx.memory import ld_global_nc_v2, ld_global_nc_v4, st_global_v2
from ferrum_numba.ptx.shuffle import shfl_xor_f32
from ladder.op import PARAMETERS, Step
from ladder.reference import GROUP, WORD_ROWS, ZERO

GROUP_WORDS = GROUP // WORD_ROWS
# a lane of a warp: g = lane / 4 has columns 4g to 4g + 3, t = lane % 4 rows 8t to 8t + 7
LANE_COLUMNS, LANES_K = 4, 4


@dataclass(frozen=True)
class Config:
    """One way to cut the work."""

    num_threads: int = 128  # a block, and its columns


@cuda.jit(device=True, forceinline=True)
def dot(word, eight, scale):
    """Return the sum over a word's eight codes, times eight elements of x (four pairs of fp16)."""
    total = float32(0)
    for pair in range(4):
        x = unpack_f16x2(eight[pair])
        for i in range(2):
            code = int32(word >> uint32(4 * (2 * pair + i)) & 15)
            total += x[i] * (float32(int32(code - ZERO)) * scale)
    return total


@cuda.jit(device=True, forceinline=True)
def sum_of_quad(value):
    """Return the sum over the four lanes that share a column, to each of them."""
    value += shfl_xor_f32(value, uint32(1))
    return value + shfl_xor_f32(value, uint32(2))


def build(config):
    num_threads = config.num_threads

    def step2_vector(x, qweight, scales, out, M, N, K):
        # index: a warp has 32 columns; it reads four rows of words at once, 128 bytes of each
        tid = uint32(cuda.threadIdx.x)
        lane, warp = uint32(tid & 31), uint32(tid >> 5)
        g, t = uint32(lane >> 2), uint32(lane & 3)
        n = uint32(uint32(cuda.blockIdx.x) * num_threads + warp * 32 + g * LANE_COLUMNS)
        m = uint32(cuda.blockIdx.y)

        # main loop: a word of each of its four columns a turn
        total = cuda.local.array(LANE_COLUMNS, float32)
        for j in range(LANE_COLUMNS):
            total[j] = float32(0)
        row = t
        while row < uint32(K // WORD_ROWS):
            words = ld_global_nc_v4(qweight + (uint64(row * N + n) << 2))
            eight = ld_global_nc_v4(x + (uint64(m * K + row * WORD_ROWS) << 1))
            pairs = ld_global_nc_v2(scales + (uint64(row // GROUP_WORDS * N + n) << 1))
            scale = unpack_f16x2(pairs[0]) + unpack_f16x2(pairs[1])
            for j in range(LANE_COLUMNS):
                total[j] += dot(words[j], eight, scale[j])
            row = uint32(row + LANES_K)

        # epilogue: the four sums of a column become one
        for j in range(LANE_COLUMNS):
            total[j] = sum_of_quad(total[j])
        if t == 0:
            low, high = pack_f16x2(total[0], total[1]), pack_f16x2(total[2], total[3])
            st_global_v2(out + (uint64(m * N + n) << 1), (low, high))

    return step2_vector


class Vector(Step):
    """16 bytes a load."""

    name = "step2_vector"
    config = Config
    summary = "16 bytes a load: four columns a lane, four lanes a column"

    def build(self, config, arch):
        """Return the program. Block: a warp for every 32 columns."""
        return Program(build(config), PARAMETERS, config.num_threads)

    def launch(self, config, problem, gpu):
        """Return blocks over the columns, times rows of x."""
        M, N, K = problem.M, problem.N, problem.K
        return Launch((N // config.num_threads, M, 1), {"M": M, "N": N, "K": K})
