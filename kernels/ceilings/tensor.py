"""How fast the tensor cores multiply, with everything in registers.

    out[t] = k_steps * a[t] @ b.T       by mma.sync, and by wgmma

    a    [tiles, 64, 16] fp16      gmem, one fragment a lane
    b    [256, 16] fp16            registers of mma.sync; smem of wgmma
    out  [tiles, 64, 256] fp32     gmem, written once

The operands are random multiples of 1/8 that an fp32 sum of k_steps products holds exactly, so a
product that was left out shows; zeros would run faster than any GEMM.

Bound by the tensor cores, and their power.
"""

from dataclasses import dataclass

import numpy as np
from numba import cuda
from numba.cuda.types import float32, uint32, uint64

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.kernels.ceilings.steps import store_accumulator
from ferrum_numba.ptx.convert import splat_f32
from ferrum_numba.ptx.memory import ld_global_nc_u32, st_global_f32, st_shared_u32
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
from ferrum_numba.reference.ceilings import tensor_chain
from ferrum_numba.space import space

TILE_M, TILE_N, MMA_K = 64, 256, 16
A_TILE_BYTES = TILE_M * MMA_K * 2
OUT_TILE_BYTES = TILE_M * TILE_N * 4
# 16 products of up to 15 * 15 / 64 a step: 4096 steps stay below 2^24 / 64, and so exact in fp32
MAX_K_STEPS = 4096
# wgmma between two waits
GROUP = 4
EXACT = Tolerance(0.0, 0.0, "sums of multiples of 1/64 below 2^24 / 64 are exact in fp32")


@dataclass(frozen=True)
class TensorChain:
    """Tiles of 64 x 256, and how often 16 of k are added to each."""

    tiles: int
    k_steps: int

    def __post_init__(self):
        if not 1 <= self.k_steps <= MAX_K_STEPS:
            raise ProblemError(f"k_steps must be 1 to {MAX_K_STEPS}; got {self.k_steps}")


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


# an accumulator has 4 registers and its share of b two, of which the compiler reloads some
MMA_CONFIGS = space(
    MmaConfig,
    chains=(16, 8, 32),
    blocks_per_sm=(2, 1),
    where=lambda c: (5 * c.chains + 24) * c.num_threads * c.blocks_per_sm <= 65536,
)
WGMMA_CONFIGS = space(WgmmaConfig, blocks_per_sm=(2, 1, 3))


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


class MmaSync(Kernel):
    """Chains of mma.m16n8k16, which every GPU since Ampere has."""

    name = "mma_sync"
    op = TENSOR
    config: type = MmaConfig
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


@cuda.jit(device=True, forceinline=True)
def _fragment_a(a, tile, lane_id, warp_row):
    """Return the A fragment of a warp's 16 rows of a tile."""
    row = uint32(warp_row + uint32(lane_id >> 2))
    at = a + uint64(tile) * uint64(A_TILE_BYTES) + uint64(row) * uint64(MMA_K * 2)
    at = at + uint64(lane_id & uint32(3)) * uint64(4)
    below = uint64(8 * MMA_K * 2)
    return (
        ld_global_nc_u32(at),
        ld_global_nc_u32(at + below),
        ld_global_nc_u32(at + uint64(16)),
        ld_global_nc_u32(at + below + uint64(16)),
    )


@cuda.jit(device=True, forceinline=True)
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
        lane_id = uint32(tid & 31)
        warp_id = uint32(tid >> 5)
        warp_row = uint32(uint32(warp_id & 3) * 16)
        warp_column = uint32(uint32(warp_id >> 2) * uint32(8 * chains))
        g = uint32(lane_id >> 2)
        q = uint32(lane_id & 3)

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
            k = uint32(k + 1)

        # epilogue: registers -> gmem
        row = uint32(warp_row + g)
        for j in range(chains):
            column = uint32(uint32(warp_column + uint32(8 * j)) + uint32(q * 2))
            _store(out, tile, row, column, acc[j, 0], acc[j, 1])
            _store(out, tile, uint32(row + 8), column, acc[j, 2], acc[j, 3])

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
        lane_id = uint32(tid & 31)
        warp_row = uint32(uint32(tid >> 5) * 16)
        smem = smem_base()

        # prologue: a -> registers, b -> smem
        frag_a = _fragment_a(a, tile, lane_id, warp_row)
        word = tid
        while word < b_words:
            n = uint32(word >> 3)
            byte = uint32(uint32(word & 7) * 4)
            at = uint32(smem + uint32(uint32(n >> 3) * uint32(2 * core_bytes)))
            at = uint32(at + uint32(uint32(byte >> 4) * uint32(core_bytes)))
            at = uint32(at + uint32(uint32(n & 7) * 16))
            at = uint32(at + uint32(byte & 15))
            st_shared_u32(at, ld_global_nc_u32(b + uint64(word) * uint64(4)))
            word = uint32(word + 128)
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
            k = uint32(k + GROUP)

        # epilogue: registers -> gmem
        row = uint32(warp_row + uint32(lane_id >> 2))
        at = out + uint64(tile) * uint64(OUT_TILE_BYTES) + uint64(row) * uint64(TILE_N * 4)
        store(at + uint64(lane_id & uint32(3)) * uint64(8), acc)

    return wgmma
