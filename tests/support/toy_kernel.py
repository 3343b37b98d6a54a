"""A kernel of its own for the tests of the tuner: out[i] = factor * x[i], nothing to compile."""

import os
import time
from dataclasses import dataclass

import numpy as np

from ferrum_numba.compile import Binary
from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers
from ferrum_numba.errors import DeviceError
from ferrum_numba.tune.worker import Outcome


@dataclass(frozen=True)
class Problem:
    M: int
    N: int = 8


@dataclass(frozen=True)
class Config:
    speed: int = 1
    deed: str = "work"


OP = Op(
    name="toy",
    formula="out[i] = 2 x[i]",
    problem=Problem,
    make_inputs=lambda problem, rng: {"x": rng.standard_normal(problem.M).astype(np.float32)},
    reference=lambda problem, inputs: 2 * inputs["x"],
    output=lambda problem: ((problem.M,), np.dtype(np.float32)),
    work=lambda problem: Work(flops=problem.M, bytes=4800 * problem.M),
    tolerance=lambda problem: Tolerance(0.0, 0.0, "exact"),
    tests=(Problem(1),),
    activations=frozenset(),
)


class Toy(Kernel):
    name = "toy"
    op = OP
    config = Config
    summary = "doubles"
    space = tuple(Config(speed) for speed in (1, 2, 3, 4))
    co_resident = False

    def configs(self, gpu):
        return self.space

    def refuses(self, problem):
        return "toy needs N = 8" if problem.N != 8 else None

    def misfit(self, config, problem, gpu):
        return "too fast for one row" if config.speed > 3 and problem.M == 1 else None

    def build(self, config, arch):
        return Program(lambda x, out: None, pointers("x", "out"), 32)

    def prepare(self, problem, inputs):
        return dict(inputs)

    def launch(self, config, problem, gpu):
        return Launch((problem.M, 1, 1), {}, co_resident=self.co_resident)


def make_binary(fingerprint="abc", registers=32, spill_bytes=0, smem_bytes=0):
    return Binary(
        cubin=b"", ptx="", entry="toy", arch="sm_90a", registers=registers,
        spill_bytes=spill_bytes, stack_bytes=0, static_smem_bytes=0, smem_bytes=smem_bytes,
        num_threads=256, cluster=(1, 1, 1), parameters=(), fingerprint=fingerprint, build_s=0.0,
    )  # fmt: skip


class Misbehaving:
    """A measurer for a process of its own, that does what the config says."""

    def __init__(self):
        self.opened = []

    def open(self, kernel, problem):
        if problem.M == 13:
            raise ValueError("M is unlucky")
        self.opened.append((kernel.name, problem.M))

    def run(self, candidate, best_us):
        deed = candidate.config.deed
        if deed == "die":
            os._exit(3)
        if deed == "hang":
            time.sleep(60)
        if deed == "raise":
            raise ValueError("of no use")
        return Outcome("measured", us=(float(len(self.opened)),))

    def round(self, candidates, turn, samples):
        return [(turn, samples, float(i)) for i, _ in enumerate(candidates)]


def without_gpu():
    raise DeviceError("no GPU to run on")
