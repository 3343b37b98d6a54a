"""How fast a GPU multiplies matrices and unpacks int4, with everything in registers.

    tensor_f16       out[t] = k_steps * a[t] @ b.T       by mma.sync, and by wgmma
    dequant_and      out[i] = XOR of all pairs of a chain of words, each pair one AND and a shift
    dequant_f16      the same, of code - 8 as fp16
    dequant_scaled   the same, of (code - 8) * scale as fp16

    a    [tiles, 64, 16] fp16      gmem, one fragment a lane
    b    [256, 16] fp16            registers of mma.sync; smem of wgmma
    out  [tiles, 64, 256] fp32     gmem, written once
    data [words] uint32            gmem, one word a lane, then word + increment, ...

The operands are random multiples of 1/8 that an fp32 sum of k_steps products holds exactly, so a
product that was left out shows; zeros would run faster than any GEMM. A chain of words is consumed
by two lop3 a word, where a GEMM would feed its mma: the roof is at least what is measured.
Dequantised weights count as the Op's FLOPs: 10^12 weights a second where a table says TFLOP/s.

Bound by the tensor cores; by the integer and fp16 pipes. From: spec of each instruction in ptx/.
"""

from dataclasses import dataclass

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.ptx.accumulator import store_accumulator
from ferrum_numba.ptx.arithmetic import lop3
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.dequantize import dequantize_f16, dequantize_scaled_f16
from ferrum_numba.ptx.memory import ld_global_nc_u32, st_global_f32, st_global_u32, st_shared_u32
from ferrum_numba.ptx.mma import mma_m16n8k16_f16
from ferrum_numba.ptx.special import smem_base
from ferrum_numba.ptx.sync import fence_proxy_async
from ferrum_numba.ptx.wgmma import (
    smem_descriptor,
    wgmma_commit,
    wgmma_fence,
    wgmma_rs,
    wgmma_wait_acc,
)
from ferrum_numba.reference.ceilings import dequantize_chain, tensor_chain
from ferrum_numba.space import space

TILE_M, TILE_N, MMA_K = 64, 256, 16
A_TILE_BYTES = TILE_M * MMA_K * 2
OUT_TILE_BYTES = TILE_M * TILE_N * 4
# 16 products of up to 15 * 15 / 64 a step: 4096 steps stay below 2^24 / 64, and so exact in fp32
MAX_K_STEPS = 4096
# wgmma between two waits
GROUP = 4
# 2^32 divided by the golden ratio: every code of the word changes
INCREMENT = 0x9E3779B9
# 0.0107 as fp16, twice: an ordinary scale of a trained layer
SCALES = 0x217B217B
XOR3 = 0x96
EXACT = Tolerance(0.0, 0.0, "integers, and sums of multiples of 1/64 below 2^24 / 64, are exact")


@dataclass(frozen=True)
class TensorChain:
    """Tiles of 64 x 256, and how often 16 of k are added to each."""

    tiles: int
    k_steps: int

    def __post_init__(self):
        if not 1 <= self.k_steps <= MAX_K_STEPS:
            raise ProblemError(f"k_steps must be 1 to {MAX_K_STEPS}; got {self.k_steps}")


@dataclass(frozen=True)
class DequantizeChain:
    """Chains of words, and how many words each has."""

    chains: int
    steps: int


@dataclass(frozen=True)
class MmaConfig:
    """How mma.sync is fed."""

    chains: int = 16  # accumulators of 16 x 8 a warp
    blocks_per_sm: int = 2  # what the registers must allow

    def __post_init__(self):
        if self.chains not in (8, 16, 32):
            raise ConfigError(f"chains must be 8, 16 or 32; got {self.chains}")

    @property
    def num_threads(self):
        """Threads of a block, which has one tile."""
        return 128 * (TILE_N // 8) // self.chains


@dataclass(frozen=True)
class WgmmaConfig:
    """How wgmma is fed."""

    blocks_per_sm: int = 2  # what fits beside each other; a block is one warpgroup

    @property
    def smem_bytes(self):
        """Shared memory a block: b, and as much more as keeps further blocks off the SM."""
        return 227 * 1024 // self.blocks_per_sm // 1024 * 1024 - 1024


@dataclass(frozen=True)
class DequantizeConfig:
    """How the chains are unrolled."""

    unroll: int = 8
    num_threads: int = 256


# an accumulator has 4 registers and its share of b two, of which the compiler reloads some
MMA_CONFIGS = space(
    MmaConfig,
    chains=(16, 8, 32),
    blocks_per_sm=(2, 1),
    where=lambda c: (5 * c.chains + 24) * c.num_threads * c.blocks_per_sm <= 65536,
)
WGMMA_CONFIGS = space(WgmmaConfig, blocks_per_sm=(2, 1, 3))
DEQUANTIZE_CONFIGS = space(DequantizeConfig, unroll=(8, 4, 16), num_threads=(256, 128, 512))


def _eighths(shape, rng):
    """Return random multiples of 1/8 between -15/8 and 15/8, none of them zero."""
    return (rng.integers(1, 16, shape) * rng.choice((-1, 1), shape) / 8).astype(np.float16)


def _tensor_work(problem):
    tiles = problem.tiles
    size_bytes = tiles * (A_TILE_BYTES + OUT_TILE_BYTES) + TILE_N * MMA_K * 2
    return Work(flops=2 * TILE_M * TILE_N * MMA_K * problem.k_steps * tiles, bytes=size_bytes)


# the last test is what the ceiling is measured with: ten waves of two blocks a SM on 132 SMs
TENSOR = Op(
    name="tensor_f16",
    formula="out[t, m, n] = k_steps * sum_k a[t, m, k] b[n, k]",
    problem=TensorChain,
    make_inputs=lambda problem, rng: {
        "a": _eighths((problem.tiles, TILE_M, MMA_K), rng),
        "b": _eighths((TILE_N, MMA_K), rng),
    },
    reference=lambda problem, inputs: tensor_chain(inputs["a"], inputs["b"], problem.k_steps),
    output=lambda problem: ((problem.tiles, TILE_M, TILE_N), np.dtype(np.float32)),
    work=_tensor_work,
    tolerance=lambda problem: EXACT,
    tests=(TensorChain(1, 4), TensorChain(2, 8), TensorChain(2640, 1024)),
    activations=frozenset(),
)


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


class MmaSync(Kernel):
    """Chains of mma.m16n8k16, which every GPU since Ampere has."""

    name = "mma_sync"
    op = TENSOR
    config = MmaConfig
    summary = "mma.sync.m16n8k16 chains, all operands in registers"

    def configs(self, gpu):
        """Return how many chains a warp, and how many blocks a SM."""
        return MMA_CONFIGS

    def refuses(self, problem):
        """Run every problem."""
        return None

    def build(self, config, arch):
        """Return the program: Grid: tiles; Block: the warps of a tile."""
        parameters = (*pointers("a", "b", "out"), *sizes("k_steps"))
        return Program(_mma(config.chains), parameters, config.num_threads, config.blocks_per_sm)

    def prepare(self, problem, inputs):
        """Return the matrices as they are."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return a block a tile."""
        return Launch((problem.tiles, 1, 1), {"k_steps": problem.k_steps})


class Wgmma(MmaSync):
    """Chains of wgmma.m64n256k16 with A from registers, as a dequantising GEMM has it."""

    name = "wgmma"
    config = WgmmaConfig
    summary = "wgmma.m64n256k16 chains, A in registers, B in shared memory; Hopper only"

    def configs(self, gpu):
        """Return how many blocks a SM; none but on Hopper."""
        return WGMMA_CONFIGS if gpu.arch == "sm_90a" else ()

    def refuses(self, problem):
        """Return why the chain cannot be cut into groups, or None."""
        if problem.k_steps % GROUP:
            return f"k_steps must be a multiple of {GROUP}; got {problem.k_steps}"
        return None

    def build(self, config, arch):
        """Return the program: Grid: tiles; Block: a warpgroup; smem: b."""
        parameters = (*pointers("a", "b", "out"), *sizes("k_steps"))
        return Program(_wgmma(), parameters, 128, config.blocks_per_sm, config.smem_bytes)


class DequantizeAnd(Kernel):
    """Pairs of fp16 subnormals: one AND a pair, and a shift for three of four."""

    name = "dequant_and"
    op = AND
    config = DequantizeConfig
    summary = "int4 to pairs of fp16 subnormals, one AND and a shift a pair"

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
        parameters = (*pointers("data", "out"), *sizes("chains", "steps"))
        return Program(_dequantize(config, self.unpack), parameters, config.num_threads)

    def prepare(self, problem, inputs):
        """Return the words as they are."""
        return dict(inputs)

    def launch(self, config, problem, gpu):
        """Return a thread a chain."""
        blocks = -(-problem.chains // config.num_threads)
        return Launch((blocks, 1, 1), {"chains": problem.chains, "steps": problem.steps})

    @staticmethod
    @cuda.jit(device=True, inline="always")
    def unpack(word):
        """Return four pairs of codes."""
        mask = uint32(0x000F000F)
        return (
            uint32(word & mask),
            uint32(uint32(word >> uint32(4)) & mask),
            uint32(uint32(word >> uint32(8)) & mask),
            uint32(uint32(word >> uint32(12)) & mask),
        )


class DequantizeF16(DequantizeAnd):
    """Pairs of code - 8, by the magic number of Marlin."""

    name = "dequant_f16"
    op = F16
    summary = "int4 to code - 8 in fp16 pairs: lop3, sub and fma"

    @staticmethod
    @cuda.jit(device=True, inline="always")
    def unpack(word):
        """Return four pairs of code - 8."""
        return dequantize_f16(word)


class DequantizeScaled(DequantizeAnd):
    """Pairs of (code - 8) * scale: what a prefill kernel does to each weight."""

    name = "dequant_scaled"
    op = SCALED
    summary = "int4 to (code - 8) * scale in fp16 pairs: lop3, sub, fma and mul"

    @staticmethod
    @cuda.jit(device=True, inline="always")
    def unpack(word):
        """Return four pairs of (code - 8) * scale."""
        return dequantize_scaled_f16(word, uint32(SCALES))


@cuda.jit(device=True, inline="always")
def _fragment_a(a, tile, lane_id, warp_row):
    """Return the A fragment of a warp's 16 rows of a tile."""
    row = uint32(warp_row + uint32(lane_id >> uint32(2)))
    at = a + uint64(tile) * uint64(A_TILE_BYTES) + uint64(row) * uint64(MMA_K * 2)
    at = at + uint64(lane_id & uint32(3)) * uint64(4)
    below = uint64(8 * MMA_K * 2)
    return (
        ld_global_nc_u32(at),
        ld_global_nc_u32(at + below),
        ld_global_nc_u32(at + uint64(16)),
        ld_global_nc_u32(at + below + uint64(16)),
    )


@cuda.jit(device=True, inline="always")
def _store(out, tile, row, column, first, second):
    """Store two neighbours of a tile of the output."""
    at = out + uint64(tile) * uint64(OUT_TILE_BYTES)
    at = at + uint64(row) * uint64(TILE_N * 4) + uint64(column) * uint64(4)
    st_global_f32(at, first)
    st_global_f32(at + uint64(4), second)


def _mma(chains):
    acc_shape, b_shape = (chains, 4), (chains, 2)

    def mma_sync(a, b, out, k_steps):
        tile = uint32(cuda.blockIdx.x)
        tid = uint32(cuda.threadIdx.x)
        lane_id = uint32(tid & uint32(31))
        warp_id = uint32(tid >> uint32(5))
        warp_row = uint32(uint32(warp_id & uint32(3)) * uint32(16))
        warp_column = uint32(uint32(warp_id >> uint32(2)) * uint32(8 * chains))
        g = uint32(lane_id >> uint32(2))
        q = uint32(lane_id & uint32(3))

        # prologue: every operand into registers
        frag_a = _fragment_a(a, tile, lane_id, warp_row)
        frag_b = cuda.local.array(b_shape, uint32)
        acc = cuda.local.array(acc_shape, float32)
        for j in range(chains):
            n = uint32(uint32(warp_column + g) + uint32(8 * j))
            at = b + uint64(n) * uint64(MMA_K * 2) + uint64(q) * uint64(4)
            frag_b[j, 0] = ld_global_nc_u32(at)
            frag_b[j, 1] = ld_global_nc_u32(at + uint64(16))
            for i in range(4):
                acc[j, i] = float32(0)

        # main loop: one mma a chain
        k = uint32(0)
        while k < k_steps:
            for j in range(chains):
                c = (acc[j, 0], acc[j, 1], acc[j, 2], acc[j, 3])
                d = mma_m16n8k16_f16(frag_a, (frag_b[j, 0], frag_b[j, 1]), c)
                acc[j, 0] = d[0]
                acc[j, 1] = d[1]
                acc[j, 2] = d[2]
                acc[j, 3] = d[3]
            k = uint32(k + uint32(1))

        # epilogue: registers -> gmem
        row = uint32(warp_row + g)
        for j in range(chains):
            column = uint32(uint32(warp_column + uint32(8 * j)) + uint32(q * uint32(2)))
            _store(out, tile, row, column, acc[j, 0], acc[j, 1])
            _store(out, tile, uint32(row + uint32(8)), column, acc[j, 2], acc[j, 3])

    return mma_sync


def _wgmma():
    # core matrices of 8 rows x 16 bytes, the two of a row of 16 k one after the other
    core_bytes = 128
    describe_b = smem_descriptor(0, 2 * core_bytes, core_bytes)
    product, wait, zeros = wgmma_rs(TILE_N), wgmma_wait_acc(TILE_N), splat_f32(TILE_N // 2)
    store = store_accumulator(TILE_N, TILE_N * 4)
    b_words = TILE_N * MMA_K // 2

    def wgmma(a, b, out, k_steps):
        tile = uint32(cuda.blockIdx.x)
        tid = uint32(cuda.threadIdx.x)
        lane_id = uint32(tid & uint32(31))
        warp_row = uint32(uint32(tid >> uint32(5)) * uint32(16))
        smem = smem_base()

        # prologue: a -> registers, b -> smem
        frag_a = _fragment_a(a, tile, lane_id, warp_row)
        word = tid
        while word < uint32(b_words):
            n = uint32(word >> uint32(3))
            byte = uint32(uint32(word & uint32(7)) * uint32(4))
            at = uint32(smem + uint32(uint32(n >> uint32(3)) * uint32(2 * core_bytes)))
            at = uint32(at + uint32(uint32(byte >> uint32(4)) * uint32(core_bytes)))
            at = uint32(at + uint32(uint32(n & uint32(7)) * uint32(16)))
            at = uint32(at + uint32(byte & uint32(15)))
            st_shared_u32(at, ld_global_nc_u32(b + uint64(word) * uint64(4)))
            word = uint32(word + uint32(128))
        # wgmma reads shared memory through another proxy than stores write it
        fence_proxy_async()
        cuda.syncthreads()

        # main loop: a group of products a wait
        desc_b = describe_b(smem)
        one = uint32(1)
        acc = zeros(float32(0))
        k = uint32(0)
        while k < k_steps:
            wgmma_fence()
            acc = product(acc, frag_a, desc_b, one)
            acc = product(acc, frag_a, desc_b, one)
            acc = product(acc, frag_a, desc_b, one)
            acc = product(acc, frag_a, desc_b, one)
            wgmma_commit()
            acc = wait(acc, 0)
            k = uint32(k + uint32(GROUP))

        # epilogue: registers -> gmem
        row = uint32(warp_row + uint32(lane_id >> uint32(2)))
        at = out + uint64(tile) * uint64(OUT_TILE_BYTES) + uint64(row) * uint64(TILE_N * 4)
        store(at + uint64(lane_id & uint32(3)) * uint64(8), acc)

    return wgmma


def _dequantize(config, unpack):
    unroll, num_threads = config.unroll, config.num_threads

    def dequantize(data, out, chains, steps):
        chain = uint32(uint32(cuda.blockIdx.x) * uint32(num_threads) + uint32(cuda.threadIdx.x))
        if chain < chains:
            word = ld_global_nc_u32(data + uint64(chain) * uint64(4))
            total = uint32(0)
            left = steps
            while left > uint32(0):
                for _ in range(unroll):
                    pairs = unpack(word)
                    total = lop3(total, pairs[0], pairs[1], XOR3)
                    total = lop3(total, pairs[2], pairs[3], XOR3)
                    word = uint32(word + uint32(INCREMENT))
                left = uint32(left - uint32(unroll))
            st_global_u32(out + uint64(chain) * uint64(4), total)

    return dequantize
