"""A kernel whose configs go wrong on a GPU in every way that a tuner must survive.

PYTHONPATH=tests/support ferrum-numba tune faulty --kernels faulty --problem n=65536 --timeout 5
"""

from dataclasses import dataclass

from axpy import OP, PARAMETERS
from numba import cuda, float32, uint32, uint64

from ferrum_numba.contract import Kernel, Launch, Program
from ferrum_numba.ptx.memory import ld_global_f32, st_global_f32, st_global_u32

# more than any GPU gives a block
TOO_MUCH_SMEM = 1 << 20


@dataclass(frozen=True)
class Config:
    """How to compute it, and what to do wrong: crash, hang, wrong or glutton."""

    num_threads: int = 64
    fault: str = ""


def faulty_program(config):
    num_threads = config.num_threads
    crashes, hangs = config.fault == "crash", config.fault == "hang"
    factor = 2 if config.fault == "wrong" else 3

    def faulty(x, w, out, count, n):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        at = uint64(uint64(i) * uint64(4))
        if i < n:
            if crashes:
                # no buffer lies there
                st_global_f32(uint64(4096) + at, float32(1))
            if hangs:
                while n != uint32(0):
                    st_global_u32(count + at, n)
            value = float32(factor) * ld_global_f32(x + at) + ld_global_f32(w + at)
            st_global_f32(out + at, float32(value))

    smem_bytes = TOO_MUCH_SMEM if config.fault == "glutton" else 0
    return Program(faulty, PARAMETERS, num_threads, smem_bytes=smem_bytes)


class Faulty(Kernel):
    """One good config first, then the faults, then another good one."""

    name = "faulty"
    op = OP
    config = Config
    summary = "goes wrong as its config says"

    def configs(self, gpu):
        faults = ("crash", "hang", "wrong", "glutton")
        return [Config(), *(Config(fault=fault) for fault in faults), Config(128)]

    def refuses(self, problem):
        return "n must be less than 2^20" if problem.n >= 2**20 else None

    def build(self, config, arch):
        return faulty_program(config)

    def prepare(self, problem, inputs):
        return dict(inputs)

    def launch(self, config, problem, gpu):
        blocks = -(-problem.n // config.num_threads)
        return Launch((blocks, 1, 1), {"n": problem.n}, {"count": 4 * problem.n})


KERNELS = (Faulty(),)
