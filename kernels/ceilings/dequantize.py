"""How fast int4 weights are unpacked, with everything in registers.

    out[i] = XOR of all pairs of the words data[i] + j * increment, j < steps

    dequant_and      a pair is two codes: one AND and a shift
    dequant_f16      a pair is two code - 8 as fp16
    dequant_scaled   a pair is two (code - 8) * scale as fp16

    data, out  [chains] uint32     gmem, one word a thread, read and written once

Two lop3 consume a word, where a GEMM would feed its mma: the roof is at least what is measured.
Dequantised weights count as the Op's FLOPs: 10^12 weights a second where a table says TFLOP/s.

Bound by the integer and fp16 pipes.
"""

from dataclasses import dataclass

import numpy as np

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div
from ferrum_numba.kernels.ceilings.rates import Rate
from ferrum_numba.reference.ceilings import dequantize_chain
from ferrum_numba.space import space

# 2^32 divided by the golden ratio: every code of the word changes
INCREMENT = 0x9E3779B9
# 0.0107 as fp16, twice: an ordinary scale of a trained layer
SCALES = 0x217B217B
XOR3 = 0x96
EXACT = Tolerance(0.0, 0.0, "bits are compared")


@dataclass(frozen=True)
class DequantizeChain:
    """Chains of words, and how many words each has."""

    chains: int
    steps: int


@dataclass(frozen=True)
class DequantizeConfig:
    """How the chains are unrolled."""

    unroll: int = 8
    num_threads: int = 256


DEQUANTIZE_CONFIGS = space(DequantizeConfig, unroll=(8, 16), num_threads=(256, 512))


def _dequantize_op(name, values):
    """Return the Op of a form of dequantisation, by the bits of its sixteen values."""
    return Op(
        name=name,
        formula="out[i] = XOR of the pairs of data[i] + j increment, j < steps",
        problem=DequantizeChain,
        make_inputs=lambda problem, rng: {
            "data": rng.integers(0, 2**32, problem.chains, np.uint32)
        },
        reference=lambda problem, inputs: dequantize_chain(
            inputs["data"], problem.steps, INCREMENT, values
        ),
        output=lambda problem: ((problem.chains,), np.dtype(np.uint32)),
        work=lambda problem: Work(
            flops=8 * problem.chains * problem.steps, bytes=8 * problem.chains
        ),
        tolerance=lambda problem: EXACT,
        tests=(DequantizeChain(1, 16), DequantizeChain(70, 16), DequantizeChain(1 << 20, 256)),
        activations=frozenset(),
    )


_CODES = np.arange(16)
_HALVES = (_CODES - 8).astype(np.float16)
_SCALED = _HALVES * np.array([SCALES & 0xFFFF], np.uint16).view(np.float16)
AND = _dequantize_op("dequant_and", _CODES.astype(np.uint16))
F16 = _dequantize_op("dequant_f16", _HALVES.view(np.uint16))
SCALED = _dequantize_op("dequant_scaled", _SCALED.view(np.uint16))


class DequantizeAnd(Kernel):
    """Pairs of fp16 subnormals: one AND a pair, and a shift for three of four."""

    name = "dequant_and"
    op = AND
    config = DequantizeConfig
    summary = "int4 to pairs of fp16 subnormals, one AND and a shift a pair"
    rate = Rate("dequantisation", "10^12 weights/s", "int4")

    def configs(self, gpu):
        """Return how the chains are unrolled."""
        return DEQUANTIZE_CONFIGS

    def refuses(self, problem):
        """Run every problem."""
        return None

    def misfit(self, config, problem, gpu):
        """Return why the chain cannot be unrolled, or None."""
        if problem.steps % config.unroll:
            return f"steps = {problem.steps} is no multiple of unroll = {config.unroll}"
        return None

    def build(self, config, arch):
        """Return the program: Grid: chains; Block: a chain a thread."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.ceilings.dequantize_program import build

        parameters = (*pointers("data", "out"), *sizes("chains", "steps"))
        return Program(build(config, self.name), parameters, config.num_threads)

    def prepare(self, problem, inputs):
        """Return the words as they are."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return a thread a chain."""
        blocks = ceil_div(problem.chains, config.num_threads)
        return Launch((blocks, 1, 1), {"chains": problem.chains, "steps": problem.steps})


class DequantizeF16(DequantizeAnd):
    """Pairs of code - 8, by the magic number of Marlin."""

    name = "dequant_f16"
    op = F16
    summary = "int4 to code - 8 in fp16 pairs: lop3, sub and fma"


class DequantizeScaled(DequantizeAnd):
    """Pairs of (code - 8) * scale: what a prefill kernel does to each weight."""

    name = "dequant_scaled"
    op = SCALED
    summary = "int4 to (code - 8) * scale in fp16 pairs: lop3, sub, fma and mul"
