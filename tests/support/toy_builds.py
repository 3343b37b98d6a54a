"""Kernels for the tests of the compiler; a module of its own, since worker processes import it."""

import os
import time
from dataclasses import dataclass

from numba import cuda, float32, uint32, uint64

from ferrum_numba.contract import Kernel, Program, pointers, sizes
from ferrum_numba.ptx.instruction import F32, U32, U64, instruction


@instruction("st.global.f32 [<address>], <value>;", effect="memory")
def store(address: U64, value: F32) -> None: ...


@instruction("ld.global.f32 <d>, [<address>];", effect="memory")
def load(address: U64) -> F32: ...


@instruction("no.such.instruction <d>, <a>;")
def nonsense(a: U32) -> U32: ...


@cuda.jit(device=True)
def count_up(n):
    # nobody asked numba to inline it
    total = uint32(0)
    while uint32(total * total) < n:
        total = uint32(total + uint32(3))
    return total


@dataclass(frozen=True)
class Config:
    factor: int = 3
    num_threads: int = 64
    fault: str = ""


class Toy(Kernel):
    """Writes factor * n; uses shared memory and a helper, or goes wrong in the way asked for."""

    name = "toy"
    config = Config
    summary = "for the compiler's tests"

    def configs(self, gpu):
        return (Config(),)

    def refuses(self, problem):
        return None

    def prepare(self, problem, inputs):
        return {}

    def launch(self, config, problem, gpu):
        raise NotImplementedError

    def build(self, config, arch):
        if config.fault == "dies":
            os._exit(7)
        if config.fault == "hangs":
            time.sleep(100)
        if config.fault == "raises":
            raise KeyError("no such tile")
        if config.fault == "does not type":
            return Program(untypable, pointers("out") + sizes("n"), 32)
        return Program(
            scaled(config.factor), pointers("out") + sizes("n"), config.num_threads, smem_bytes=4096
        )


def scaled(factor):
    def kernel(out, n):
        thread = uint32(cuda.threadIdx.x)
        first = cuda.shared.array(32, float32)
        second = cuda.shared.array(64, float32)
        first[thread] = float32(factor)
        second[thread] = float32(count_up(n))
        cuda.syncthreads()
        store(out, first[uint32(thread ^ uint32(1))] * second[uint32(thread ^ uint32(2))])

    return kernel


def untypable(out, n):
    store(out, n.what)


def unlinkable(out, n):
    store(out, float32(nonsense(n)))


def clustered(out, n):
    store(out, float32(n))


def crowded(out, n):
    # 80 values alive at once do not fit in 32 registers
    held = cuda.local.array(80, float32)
    for i in range(80):
        held[i] = load(uint64(out + uint64(4 * i)))
    for i in range(80):
        store(uint64(out + uint64(4 * i)), held[79 - i])
