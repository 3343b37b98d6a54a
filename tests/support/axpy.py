"""The smallest Op with a weight and an activation, out = 3 x + w, and kernels that get it wrong."""

from dataclasses import dataclass

import numpy as np
from numba import cuda, float32, uint32, uint64

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.ptx.memory import ld_global_f32, ld_global_u32, st_global_f32, st_global_u32


@dataclass(frozen=True)
class Problem:
    n: int


@dataclass(frozen=True)
class Config:
    """How to compute it, and what to do wrong.

    fault: "", "scale" (another factor), "unwritten" (the last element), "overrun" (one element
           past the end), "memory" (leaves a count behind that the next run adds)
    """

    num_threads: int = 64
    fault: str = ""


def make_inputs(problem, rng):
    return {name: rng.standard_normal(problem.n).astype(np.float32) for name in ("x", "w")}


OP = Op(
    name="axpy",
    formula="out[i] = 3 x[i] + w[i]",
    problem=Problem,
    make_inputs=make_inputs,
    reference=lambda problem, inputs: 3 * inputs["x"].astype(np.float64) + inputs["w"],
    output=lambda problem: ((problem.n,), np.dtype(np.float32)),
    work=lambda problem: Work(flops=2 * problem.n, bytes=12 * problem.n),
    tolerance=lambda problem: Tolerance(1e-6, 1e-6, "one rounding of fp32"),
    tests=(Problem(1), Problem(63), Problem(64), Problem(1000)),
    activations=frozenset({"x"}),
)
PARAMETERS = pointers("x", "w", "out", "count") + sizes("n")


def axpy_program(config):
    num_threads = config.num_threads
    factor = 2 if config.fault == "scale" else 3
    short = 1 if config.fault == "unwritten" else 0
    beyond = 1 if config.fault == "overrun" else 0
    remembers = config.fault == "memory"

    def axpy(x, w, out, count, n):
        i = uint32(uint32(cuda.blockIdx.x) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        at = uint64(uint64(i) * uint64(4))
        if uint32(i + uint32(short)) < n:
            value = float32(factor) * ld_global_f32(x + at) + ld_global_f32(w + at)
            if remembers:
                seen = ld_global_u32(count + at)
                value = value + float32(seen)
                st_global_u32(count + at, uint32(seen + uint32(1)))
            st_global_f32(out + at, float32(value))
        if beyond and i == n:
            st_global_f32(out + at, float32(1))

    return Program(axpy, PARAMETERS, num_threads)


class Axpy(Kernel):
    """The kernel; `fault` in its config says how it fails."""

    name = "axpy"
    op = OP
    config = Config
    summary = "one element a thread"

    def configs(self, gpu):
        return [Config(), Config(num_threads=128)]

    def refuses(self, problem):
        return "n must be less than 2^20" if problem.n >= 2**20 else None

    def misfit(self, config, problem, gpu):
        return "too many threads" if config.num_threads > 1024 else None

    def build(self, config, arch):
        return axpy_program(config)

    def prepare(self, problem, inputs):
        return dict(inputs)

    def launch(self, config, problem, gpu):
        # one element more than there are, for the overrun
        blocks = -(-(problem.n + 1) // config.num_threads)
        return Launch((blocks, 1, 1), {"n": problem.n}, {"count": 4 * (problem.n + 1)})
