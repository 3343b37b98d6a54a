"""Random expressions: the interpreter, and PTX that numba makes of the same source, equal in bits.

The PTX runs in an evaluator of its own, which shares nothing with the interpreter; and, where there
is a GPU, on that. Products are not fused with sums in it: that much the interpreter does not
promise, see docs/reliability.md#types.
"""

from dataclasses import replace

import numpy as np
import pytest
from ptx_evaluator import evaluate, unfused
from random_kernels import LANES, LAUNCH, differing, inputs, program, source

from ferrum_numba.compile.compiler import build_program, compile_ptx
from ferrum_numba.compile.link import link
from ferrum_numba.interpreter import run
from ferrum_numba.launch import Buffer, load

# of a kernel: numba's time grows faster than their number
COUNT = 25
SEED = 20_000


def interpreted(made, x):
    out = np.zeros((LANES, COUNT), np.uint64)
    run(made, LAUNCH, {"x": x, "out": out}, unwritten=())
    return out


def evaluated(made, x):
    memory = bytearray(x.tobytes() + bytes(8 * LANES * COUNT))
    evaluate(unfused(compile_ptx(made, "sm_90a", "kernel")), memory, [0, x.nbytes], LANES)
    return np.frombuffer(memory, np.uint64, offset=x.nbytes).reshape(LANES, COUNT)


def on_gpu(made, x, device):
    binary = build_program(made, device.gpu.arch, "kernel")
    linked = link(unfused(binary.ptx), "kernel", device.gpu.arch)
    out = Buffer.from_array(device, np.zeros((LANES, COUNT), np.uint64))
    buffers = {"x": Buffer.from_array(device, x), "out": out}
    load(replace(binary, cubin=linked.cubin), device).prepare(LAUNCH, buffers)(0)
    return out.read((LANES, COUNT), np.uint64)


def compare(seeds, folder, execute):
    """Assert that kernels of these seeds give the same bits."""
    for seed in seeds:
        text, x = source(seed, COUNT), inputs(seed)
        made = program(text, folder, f"kernel_{seed}")
        got, want = interpreted(made, x.copy()), execute(made, x)
        for lane, place in differing(text, got, want):
            (line,) = (one for one in text.splitlines() if f"(out + uint64({8 * place})," in one)
            raise AssertionError(
                f"seed {seed}, lane {lane}: {got[lane, place]:#x} is {want[lane, place]:#x} "
                f"in PTX: {line.strip()}"
            )


def test_random_expressions_are_what_numba_compiles(tmp_path):
    compare(range(SEED, SEED + 20), tmp_path, evaluated)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(40))
def test_a_hundred_thousand_random_expressions(tmp_path, part):
    seeds = range(SEED + 100 * (part + 1), SEED + 100 * (part + 2))
    compare(seeds, tmp_path, evaluated)


@pytest.mark.gpu
def test_random_expressions_are_what_a_gpu_computes(tmp_path, device):
    compare(range(SEED, SEED + 50), tmp_path, lambda made, x: on_gpu(made, x, device))
