"""GPTQ's words to Marlin's, for a stack of weights, without unpacking the codes.

    packed[e] = pack_weight(codes[e][perm[e]]), padded with codes 8

    qweight  [E, K/8, N] int32          gmem, read once, 16 bytes a lane; with perm each word is
                                        read for every code of it, mostly from L1 and L2
    perm     [E, K] int32               gmem, with act_order only: row perm[k] becomes row k
    out      [E, Kp/16, 2*Np] int32     gmem, written once, 16 bytes a lane

A tile of 16 rows and 64 columns is 2 x 64 words here and 128 words there. Eight lanes share one:
lane (half, j) takes 4 columns of strip j and the 4 columns 8 further on, of both rows of words, and
forms what the threads t = 0 .. 3 of a GEMM's warp load of each column:

    A, B = qweight[2i, n], qweight[2i+1, n]     C, D = the same of column n + 8
    word t: the lower nibbles of byte t of A, B, C, D, then the upper ones

The four words of a thread t lie in four lanes, one a strip; two rounds of shuffles exchange them,
so that every lane stores whole threads, and four lanes 64 bytes in a row.

Bound by gmem bandwidth; with perm by L1, which gives each of the 16 bytes of a read to 4 codes.
Limits: K % 8 == 0, N % 8 == 0, Kp % 16 == 0, Np % 64 == 0.
"""

from dataclasses import dataclass, replace

import numpy as np

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div, round_up
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.reference.marlin_layout import TILE_K, TILE_N
from ferrum_numba.reference.repack import repack
from ferrum_numba.space import space

WORD_ROWS = 8
# lanes that share a tile
TILE_LANES = 8
# eight codes 8
PADDING = 0x88888888
# tiles of a launch are counted in 32 bits
MOST_TILES = 1 << 31
# threads an SM should hold while it gathers
GATHER_THREADS = 1024
# lop3: the bits of a where c is 1, else those of b
SELECT = 0xE4
PARAMETERS = (
    *pointers("qweight", "perm", "out"),
    *sizes("experts", "k", "n", "k_tiles", "n_tiles"),
)


@dataclass(frozen=True)
class RepackProblem:
    """A stack of weights of one shape.

    E:         weights
    K, N:      rows and columns of each
    act_order: the rows are gathered by a permutation, one a weight
    K_padded:  rows to pad to, a multiple of 16; 0 for K
    N_padded:  columns to pad to, a multiple of 64; 0 for N
    """

    E: int
    K: int
    N: int
    act_order: bool = False
    K_padded: int = 0
    N_padded: int = 0

    def __post_init__(self):
        for name, size in (("K", self.K), ("N", self.N)):
            if size < 1 or size % WORD_ROWS:
                raise ProblemError(f"{name} must be a multiple of {WORD_ROWS}; got {size}")
        for name, size, padded, unit in (
            ("K", self.K, self.packed_k, TILE_K), ("N", self.N, self.packed_n, TILE_N),
        ):  # fmt: skip
            if padded % unit or padded < size:
                raise ProblemError(
                    f"Marlin's layout needs {name} padded to a multiple of {unit}; got "
                    f"{name} = {size}, {name}_padded = {padded}, the nearest is "
                    f"{round_up(size, unit)}"
                )
        if self.E < 1 or self.tiles >= MOST_TILES:
            raise ProblemError(
                f"a stack must hold 1 weight or more and less than {MOST_TILES} tiles of 1024 "
                f"codes; got E = {self.E}, {self.tiles} tiles"
            )

    @property
    def packed_k(self):
        """Rows of a packed weight."""
        return self.K_padded or self.K

    @property
    def packed_n(self):
        """Columns of a packed weight."""
        return self.N_padded or self.N

    @property
    def tiles(self):
        """Tiles of all weights."""
        return self.E * (self.packed_k // TILE_K) * (self.packed_n // TILE_N)


@dataclass(frozen=True)
class RepackConfig:
    """How large a block is, and whether rows are gathered."""

    num_threads: int = 256
    act_order: bool = False

    def __post_init__(self):
        if self.num_threads % 32 or not 32 <= self.num_threads <= 1024:
            raise ConfigError(
                f"num_threads must be a multiple of 32 up to 1024; got {self.num_threads}"
            )


CONFIGS = space(RepackConfig, num_threads=(256, 128, 512))


def make_inputs(problem, rng):
    """Return random words, and random permutations where the problem has some."""
    E, K, N = problem.E, problem.K, problem.N
    inputs = {"qweight": rng.integers(0, 2**32, (E, K // WORD_ROWS, N), np.uint32).view(np.int32)}
    if problem.act_order:
        rows = np.tile(np.arange(K, dtype=np.int32), (E, 1))
        inputs["perm"] = rng.permuted(rows, axis=1)
    return inputs


def _work(problem):
    words = problem.E * problem.K * problem.N // 8 + 128 * problem.tiles
    return Work(flops=0, bytes=4 * words + (4 * problem.E * problem.K if problem.act_order else 0))


OP = Op(
    name="repack",
    formula="packed[e] = pack_weight(codes[e][perm[e]]), padded with codes 8",
    problem=RepackProblem,
    make_inputs=make_inputs,
    reference=lambda problem, inputs: repack(
        inputs["qweight"], inputs.get("perm"), (problem.packed_k, problem.packed_n)
    ),
    output=lambda problem: (
        (problem.E, problem.packed_k // TILE_K, 2 * problem.packed_n), np.dtype(np.int32)
    ),
    work=_work,
    tolerance=lambda problem: Tolerance(0.0, 0.0, "bits are moved"),
    tests=(
        RepackProblem(1, 16, 64),
        RepackProblem(3, 48, 192),
        RepackProblem(2, 24, 72, K_padded=64, N_padded=128),
        RepackProblem(1, 8, 8, K_padded=16, N_padded=64),
        RepackProblem(1, 64, 64, act_order=True),
        RepackProblem(3, 32, 192, act_order=True),
        RepackProblem(2, 40, 136, act_order=True, K_padded=128, N_padded=192),
    ),
    activations=frozenset(),
)  # fmt: skip


class Repack(Kernel):
    """Words in, words out: nibbles change places in registers, words between lanes."""

    name = "repack"
    op = OP
    config = RepackConfig
    summary = "GPTQ words to Marlin's layout; 16-byte loads and stores, shuffles between"

    def configs(self, gpu):
        """Return sizes of a block, for weights in order and in act-order."""
        return CONFIGS

    def refuses(self, problem):
        """Run every problem."""
        return None

    def specialise(self, config, problem):
        """Return the config for weights whose rows are gathered, or not."""
        return replace(config, act_order=problem.act_order)

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        if config.act_order != problem.act_order:
            return f"act_order must be {problem.act_order}; got {config.act_order}"
        return None

    def build(self, config, arch):
        """Return the program. Grid: tiles of all weights; Block: 8 lanes a tile."""
        # not above: what is compiled already runs without numba
        from ferrum_numba.kernels.tools.repack_program import build

        # gathering has enough loads in flight with half of the registers that it could fill
        resident = GATHER_THREADS // config.num_threads if config.act_order else 1
        return Program(build(config), PARAMETERS, config.num_threads, resident)

    def prepare(self, problem, inputs):
        """Return the words, and a perm that is not read where there is none."""
        return {"perm": np.zeros((1, 4), np.int32), **inputs}

    def launch(self, config, problem, gpu):
        """Return 8 lanes for every tile."""
        scalars = {
            "experts": problem.E,
            "k": problem.K,
            "n": problem.N,
            "k_tiles": problem.packed_k // TILE_K,
            "n_tiles": problem.packed_n // TILE_N,
        }
        tiles_per_block = config.num_threads // TILE_LANES
        return Launch((ceil_div(problem.tiles, tiles_per_block), 1, 1), scalars)
