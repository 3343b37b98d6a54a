"""Step 3: codes become fp16 in registers, two at a time, without a conversion."""

from dataclasses import dataclass

from numba import cuda, float32, uint32, uint64

from ferrum_numba import Launch, Program
from ferrum_numba.ptx.arithmetic import fma_f16x2, lop3, mul_f16x2, prmt
from ferrum_numba.ptx.convert import pack_f16x2, unpack_f16x2
from ferrum_numba.ptx.memory import ld_global_nc_v2, ld_global_nc_v4, st_global_v2
from ladder.op import PARAMETERS, Step
from ladder.reference import GROUP, WORD_ROWS
from ladder.step2_vector import LANE_COLUMNS, LANES_K, sum_of_quad

GROUP_WORDS = GROUP // WORD_ROWS
# the byte (q1 q0) in both halves, q0 of the lower and 16 q1 of the upper kept, in the mantissas of
# 1024: the pair (1024 + q0, 1024 + 16 q1)
CODES, MAGIC, OR_OF_AND = 0x00F0000F, 0x64006400, 0xEA
# times (1, 1/16), less (1024 + 8, 64 + 8): the pair (q0 - 8, q1 - 8), exactly
UNIT, OFFSET = 0x2C003C00, 0xD480E408


@dataclass(frozen=True)
class Config:
    """One way to cut the work."""

    num_threads: int = 128  # a block, and its columns


@cuda.jit(device=True, forceinline=True)
def two_weights(word, byte, scale):
    """Return (code - 8) * scale of both codes in a byte of a word: rows 2 byte and 2 byte + 1."""
    both = prmt(word, uint32(0), uint32(0x1111 * byte))
    codes = lop3(both, uint32(CODES), uint32(MAGIC), OR_OF_AND)
    return mul_f16x2(fma_f16x2(codes, uint32(UNIT), uint32(OFFSET)), scale)


@cuda.jit(device=True, forceinline=True)
def twice(pairs, j):
    """Return element j of pairs of fp16 in both halves of a word."""
    return prmt(pairs[j // 2], uint32(0), uint32(0x3232 if j % 2 else 0x1010))


@cuda.jit(device=True, forceinline=True)
def eight_weights(word, scale):
    """Return a word's eight weights as four pairs of fp16, in the order of their rows."""
    return (
        two_weights(word, 0, scale),
        two_weights(word, 1, scale),
        two_weights(word, 2, scale),
        two_weights(word, 3, scale),
    )


@cuda.jit(device=True, forceinline=True)
def dot(word, eight, scale):
    """Return the sum over a word's eight codes, times eight elements of x (four pairs of fp16)."""
    total = float32(0)
    weights = eight_weights(word, scale)
    for pair in range(4):
        x, weight = unpack_f16x2(eight[pair]), unpack_f16x2(weights[pair])
        for i in range(2):
            total += x[i] * weight[i]
    return total


def build(config):
    num_threads = config.num_threads

    def step3_registers(x, qweight, scales, out, M, N, K):
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
            for j in range(LANE_COLUMNS):
                total[j] += dot(words[j], eight, twice(pairs, j))
            row = uint32(row + LANES_K)

        # epilogue: the four sums of a column become one
        for j in range(LANE_COLUMNS):
            total[j] = sum_of_quad(total[j])
        if t == 0:
            low, high = pack_f16x2(total[0], total[1]), pack_f16x2(total[2], total[3])
            st_global_v2(out + (uint64(m * N + n) << 1), (low, high))

    return step3_registers


class Registers(Step):
    """Codes become fp16 in registers."""

    name = "step3_registers"
    config = Config
    summary = "codes become fp16 in registers, two at a time"

    def build(self, config, arch):
        """Return the program. Block: a warp for every 32 columns."""
        return Program(build(config), PARAMETERS, config.num_threads)

    def launch(self, config, problem, gpu):
        """Return blocks over the columns, times rows of x."""
        M, N, K = problem.M, problem.N, problem.K
        return Launch((N // config.num_threads, M, 1), {"M": M, "N": N, "K": K})
