"""Step 1: a thread an element of out, a code at a time."""

from dataclasses import dataclass

from numba import cuda, float32, int32, uint32, uint64

from ferrum_numba import Launch, Program
from ferrum_numba.ptx.convert import f16_to_f32, f32_to_f16
from ferrum_numba.ptx.memory import ld_global_nc_u16, ld_global_nc_u32, st_global_u16
from ladder.op import PARAMETERS, Step
from ladder.reference import GROUP, WORD_ROWS, ZERO

GROUP_WORDS = GROUP // WORD_ROWS


@dataclass(frozen=True)
class Config:
    """One way to cut the work."""

    num_threads: int = 128  # a block, and its columns


@cuda.jit(device=True, forceinline=True)
def load_f16(base, index):
    """Return element `index` of fp16 in global memory as fp32."""
    return f16_to_f32(ld_global_nc_u16(base + (uint64(index) << 1)))


def build(config):
    num_threads = config.num_threads

    def step1_scalar(x, qweight, scales, out, M, N, K):
        # index: neighbouring threads have neighbouring columns
        n = uint32(uint32(cuda.blockIdx.x) * num_threads + uint32(cuda.threadIdx.x))
        m = uint32(cuda.blockIdx.y)

        # main loop: a word of eight codes a turn
        total = float32(0)
        row = uint32(0)
        while row < uint32(K // WORD_ROWS):
            word = ld_global_nc_u32(qweight + (uint64(row * N + n) << 2))
            scale = load_f16(scales, row // GROUP_WORDS * N + n)
            for i in range(WORD_ROWS):
                code = int32(word >> uint32(4 * i) & 15)
                weight = float32(int32(code - ZERO)) * scale
                total += load_f16(x, m * K + row * WORD_ROWS + i) * weight
            row = uint32(row + 1)

        # epilogue: one rounding
        st_global_u16(out + (uint64(m * N + n) << 1), f32_to_f16(total))

    return step1_scalar


class Scalar(Step):
    """A thread an element of out."""

    name = "step1_scalar"
    config = Config
    summary = "a thread an element, a code at a time"

    def build(self, config, arch):
        """Return the program. Block: a thread a column."""
        return Program(build(config), PARAMETERS, config.num_threads)

    def launch(self, config, problem, gpu):
        """Return blocks over the columns, times rows of x."""
        M, N, K = problem.M, problem.N, problem.K
        return Launch((N // config.num_threads, M, 1), {"M": M, "N": N, "K": K})
