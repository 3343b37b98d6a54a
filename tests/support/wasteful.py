"""out = 3 x + w by way of shared memory: right in every config, wasteful in all but the first."""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path

import axpy
from numba import cuda, float32, uint32, uint64

from ferrum_numba.contract import Kernel, Launch, Program
from ferrum_numba.ptx.memory import (
    ld_global_f32,
    ld_shared_f32,
    ld_shared_u32_if,
    st_global_f32,
    st_shared_f32,
)
from ferrum_numba.ptx.special import smem_base

THREADS = 1024
THOUSAND = axpy.Problem(THREADS)


@dataclass(frozen=True)
class Config:
    """What is wasted: "", "uncoalesced", "conflict", "idle" or "predicated"."""

    waste: str = ""


def build(waste):
    # warps read columns, not rows, of 32 x 32 elements
    lane_step, warp_step = (32, 1) if waste == "uncoalesced" else (1, 32)
    place_bytes = 32 if waste == "conflict" else 4
    # eight lanes do the work of all
    busy, times = (8, 4) if waste == "idle" else (32, 1)
    predicated = waste == "predicated"

    def wasteful(x, w, out, count, n):
        smem = smem_base()
        tid = uint32(cuda.threadIdx.x)
        lane, warp = uint32(tid & 31), uint32(tid >> 5)
        e = uint32(lane * lane_step + warp * warp_step)
        to = uint32(smem + e * place_bytes)
        st_shared_f32(to, ld_global_f32(x + (uint64(e) << 2)))  # reads x
        cuda.syncthreads()
        if predicated:
            i = uint32(0)
            while i < 8:
                ld_shared_u32_if(to, uint32(lane < 4))  # predicated
                i = uint32(i + 1)
        if lane < busy:  # a branch
            i = uint32(0)
            while i < times:
                own = uint32(warp * 32 + lane * times + i)
                value = ld_shared_f32(uint32(smem + own * place_bytes))  # reads again
                at = uint64(own) << 2
                value = float32(3) * value + ld_global_f32(w + at)
                st_global_f32(out + at, float32(value))  # writes
                i = uint32(i + 1)

    return wasteful


class Wasteful(Kernel):
    """The kernel; `waste` in its config says how."""

    name = "wasteful"
    op = replace(axpy.OP, tests=(THOUSAND,))
    config = Config
    summary = "by way of shared memory"

    def configs(self, gpu):
        return [Config(w) for w in ("", "uncoalesced", "conflict", "idle", "predicated")]

    def refuses(self, problem):
        return None if problem == THOUSAND else f"n must be {THREADS}"

    def build(self, config, arch):
        return Program(build(config.waste), axpy.PARAMETERS, THREADS, smem_bytes=32 * THREADS)

    def prepare(self, problem, inputs):
        return dict(inputs)

    def launch(self, config, problem, gpu):
        return Launch((1, 1, 1), {"n": problem.n}, {"count": 4})


def place(mark):
    """Return folder/file:line of the line with a mark, as a trace writes it."""
    lines, first = inspect.getsourcelines(build)
    (number,) = [first + i for i, line in enumerate(lines) if f"# {mark}" in line]
    file = Path(inspect.getsourcefile(build))
    return f"{file.parent.name}/{file.name}:{number}"


KERNELS = (Wasteful(),)
