"""Kernels of random expressions, as numba types them, for the interpreter, a PTX evaluator, a GPU.

A kernel computes `count` expressions from 11 inputs of a lane, and stores eight bytes of each.
"""

import importlib.util
import re
import sys

import numpy as np
from llvmlite import ir
from numba.cuda import types
from random_expressions import Writer

from ferrum_numba.contract import Launch, Program, pointers
from ferrum_numba.ptx.instruction import U64, OperandType, instruction

F64 = OperandType("f64", np.float64, types.float64, "d", ir.DoubleType())
LANES = 4
# of a lane: 64-bit words, then 32-bit ones
INPUT_BYTES = 64
HEADER = """
from numba import cuda
from numba.cuda.types import boolean, float32, float64, int8, int16, int32, int64
from numba.cuda.types import uint8, uint16, uint32, uint64
from ferrum_numba.ptx.memory import ld_global_f32, ld_global_u32, st_global_f32, st_global_u32
from random_kernels import ld_u64, ld_f64, st_f64, st_u64
import math

def kernel(x, out):
    lane = uint32(cuda.laneid)
    x = x + uint64(lane) * uint64({input_bytes})
    out = out + uint64(lane) * uint64({output_bytes})
    L0 = ld_u64(x)
    L1 = int64(ld_u64(x + uint64(8)))
    D0 = ld_f64(x + uint64(16))
    D1 = ld_f64(x + uint64(24))
    U0 = ld_global_u32(x + uint64(32))
    U1 = ld_global_u32(x + uint64(36))
    I0 = int32(ld_global_u32(x + uint64(40)))
    I1 = int32(ld_global_u32(x + uint64(44)))
    F0 = ld_global_f32(x + uint64(48))
    F1 = ld_global_f32(x + uint64(52))
    H0 = uint16(ld_global_u32(x + uint64(56)))
"""


@instruction("ld.global.u64 <d>, [<address>];", effect="volatile")
def ld_u64(lanes, address: U64) -> U64:
    return lanes.load_global(address, 8).view(np.uint64)[:, 0]


@instruction("ld.global.f64 <d>, [<address>];", effect="volatile")
def ld_f64(lanes, address: U64) -> F64:
    return lanes.load_global(address, 8).view(np.float64)[:, 0]


@instruction("st.global.u64 [<address>], <value>;", effect="memory")
def st_u64(lanes, address: U64, value: U64):
    lanes.store_global(address, value[:, None].view(np.uint8))


@instruction("st.global.f64 [<address>], <value>;", effect="memory")
def st_f64(lanes, address: U64, value: F64):
    lanes.store_global(address, value[:, None].view(np.uint8))


def source(seed, count, depth=3):
    """Return the text of a kernel of `count` random expressions."""
    writer = Writer(seed)
    lines = []
    for place in range(count):
        lines += writer.lines(place, depth)
    head = HEADER.format(input_bytes=INPUT_BYTES, output_bytes=8 * count)
    return head + "".join(f"    {line}\n" for line in lines)


def program(text, folder, name):
    """Return a kernel's program; its source is a file, as those of all kernels."""
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.pop(name, None)
    spec.loader.exec_module(module)
    return Program(module.kernel, pointers("x", "out"), LANES)


# the bits and the type of what is stored as a float
FLOATS = {"st_global_f32": (np.uint32, np.float32), "st_f64": (np.uint64, np.float64)}
LAUNCH = Launch((1, 1, 1), {})


def inputs(seed):
    """Return the inputs of all lanes: numbers on the edges, small, and of any size."""
    rng = np.random.default_rng(seed)
    edges = [0, 1, 2, 3, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1,
             2**63, 2**64 - 1, 2**64 - 5]  # fmt: skip
    data = np.zeros((LANES, INPUT_BYTES), np.uint8)
    floats = [0.0, -0.0, 1.0, -1.5, 0.1, 1e-3, 123456.7, -3e9, 5e9, 1e19, -1e19, 2e38, np.inf,
              -np.inf, np.nan, 16777217.0]  # fmt: skip
    for lane in data:
        whole = rng.choice(np.array(edges, np.uint64), 2)
        random_bits = rng.integers(0, 2**64, 2, np.uint64)
        lane[:16] = np.where(rng.random(2) < 0.5, whole, random_bits).view(np.uint8)
        lane[16:32] = np.where(
            rng.random(2) < 0.5, rng.choice(floats, 2), rng.normal(0, 100, 2)
        ).view(np.uint8)
        words = np.array([edges[i] & 0xFFFFFFFF for i in rng.integers(0, len(edges), 4)], np.uint32)
        small = rng.integers(0, 2**32, 4, np.uint32) >> rng.integers(0, 32, 4, np.uint32)
        lane[32:48] = np.where(rng.random(4) < 0.4, words, small).view(np.uint8)
        lane[48:56] = (
            np.where(rng.random(2) < 0.5, rng.choice(floats, 2), rng.normal(0, 100, 2))
            .astype(np.float32)
            .view(np.uint8)
        )
        lane[56:60] = rng.integers(0, 2**16, 1, np.uint32).view(np.uint8)
    return data


def differing(text, got, want):
    """Return (lane, place) of results whose bits differ; of a NaN, nobody promises the bits."""
    differ = got != want
    for name, offset in re.findall(r"(?m)^ +(st_\w+)\(out \+ uint64\((\d+)\)", text):
        place = int(offset) // 8
        if name in FLOATS:
            values = [
                one[:, place].astype(FLOATS[name][0]).view(FLOATS[name][1]) for one in (got, want)
            ]
            differ[:, place] &= ~np.logical_and(*map(np.isnan, values))
    return np.argwhere(differ)
