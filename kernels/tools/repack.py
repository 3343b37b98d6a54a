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
from numba import cuda
from numba.cuda.types import uint32, uint64

from ferrum_numba.contract import Kernel, Launch, Op, Program, Tolerance, Work, pointers, sizes
from ferrum_numba.division import ceil_div, round_up
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.ptx.arithmetic import lop3, prmt
from ferrum_numba.ptx.memory import ld_global_nc_v4_if, st_global_v4_if
from ferrum_numba.ptx.shuffle import shfl_xor
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
        # gathering has enough loads in flight with half of the registers that it could fill
        resident = GATHER_THREADS // config.num_threads if config.act_order else 1
        return Program(_build(config), PARAMETERS, config.num_threads, resident)

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


def _load_words():
    """Return (weight, perm, row, column, k, n) -> words of 4 columns, as they are."""

    @cuda.jit(device=True, forceinline=True)
    def load(weight, perm, row, column, k, n):
        inside = uint32(1) if row * uint32(WORD_ROWS) < k and column < n else uint32(0)
        place = weight + (uint64(row) * uint64(n) + uint64(column)) * uint64(4)
        words = ld_global_nc_v4_if(place, inside)
        fill = uint32(0) if inside == 1 else uint32(PADDING)
        return (
            uint32(words[0] | fill), uint32(words[1] | fill),
            uint32(words[2] | fill), uint32(words[3] | fill),
        )  # fmt: skip

    return load


def _gather_words():
    """Return the same, of the rows that perm names: 8 codes of 4 columns from 8 rows of words."""

    @cuda.jit(device=True, forceinline=True)
    def take(total, word, shift, i):
        code = uint32(uint32(word >> shift) & 15)
        return uint32(total | uint32(code << uint32(4 * i)))

    @cuda.jit(device=True, forceinline=True)
    def gather(weight, perm, row, column, k, n):
        inside = uint32(1) if row * uint32(WORD_ROWS) < k and column < n else uint32(0)
        place = perm + uint64(row) * uint64(4 * WORD_ROWS)
        low = ld_global_nc_v4_if(place, inside)
        high = ld_global_nc_v4_if(place + uint64(16), inside)
        sources = (low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3])
        fill = uint32(0) if inside == 1 else uint32(PADDING)
        w0, w1, w2, w3 = fill, fill, fill, fill
        for i in range(WORD_ROWS):
            source = sources[i]
            offset = uint64(uint32(source >> 3)) * uint64(n) + uint64(column)
            words = ld_global_nc_v4_if(weight + offset * uint64(4), inside)
            shift = uint32(uint32(source & 7) * 4)
            w0 = take(w0, words[0], shift, i)
            w1 = take(w1, words[1], shift, i)
            w2 = take(w2, words[2], shift, i)
            w3 = take(w3, words[3], shift, i)
        return w0, w1, w2, w3

    return gather


def _build(config):
    gathers, num_threads = config.act_order, config.num_threads
    tiles_per_block = num_threads // TILE_LANES
    load = _gather_words() if gathers else _load_words()
    nibbles = 0x0F0F0F0F

    @cuda.jit(device=True, forceinline=True)
    def words_of_column(a, b, c, d):
        # nibbles: lower and upper ones of A and B, of C and D
        p = lop3(a, uint32(b << 4), uint32(nibbles), SELECT)
        r = lop3(uint32(a >> 4), b, uint32(nibbles), SELECT)
        q = lop3(c, uint32(d << 4), uint32(nibbles), SELECT)
        s = lop3(uint32(c >> 4), d, uint32(nibbles), SELECT)
        # bytes: word t = byte t of each
        pq02, pq13 = prmt(p, q, uint32(0x6240)), prmt(p, q, uint32(0x7351))
        rs02, rs13 = prmt(r, s, uint32(0x6240)), prmt(r, s, uint32(0x7351))
        return (
            prmt(pq02, rs02, uint32(0x5410)), prmt(pq13, rs13, uint32(0x5410)),
            prmt(pq02, rs02, uint32(0x7632)), prmt(pq13, rs13, uint32(0x7632)),
        )  # fmt: skip

    @cuda.jit(device=True, forceinline=True)
    def exchange(low, high, upper, mask):
        # the lower lane gives its high word for the other's low one
        got = shfl_xor(low if upper else high, uint32(mask))
        return (got, high) if upper else (low, got)

    @cuda.jit(device=True, forceinline=True)
    def store_column(place, a, b, c, d, strip, inside):
        # from word t of strip j to word j of thread t, in the four lanes j
        w0, w1, w2, w3 = words_of_column(a, b, c, d)
        odd, upper = (strip & uint32(1)) != 0, strip >= 2
        w0, w1 = exchange(w0, w1, odd, 1)
        w2, w3 = exchange(w2, w3, odd, 1)
        w0, w2 = exchange(w0, w2, upper, 2)
        w1, w3 = exchange(w1, w3, upper, 2)
        st_global_v4_if(place, (w0, w1, w2, w3), inside)

    def repack(qweight, perm, out, experts, k, n, k_tiles, n_tiles):
        # index: which tile, which half of its strips, which strip
        tid = uint32(cuda.threadIdx.x)
        strip, half = uint32(tid & 3), uint32(uint32(tid >> 2) & 1)
        tile = uint32(uint32(cuda.blockIdx.x) * uint32(tiles_per_block) + uint32(tid >> 3))
        tiles = uint32(k_tiles * n_tiles)
        expert = uint32(tile // tiles)
        rest = uint32(tile - expert * tiles)
        if gathers:
            # down a column first: the rows that blocks gather from are then the same
            n_tile = uint32(rest // k_tiles)
            k_tile = uint32(rest - n_tile * k_tiles)
            tile = uint32(expert * tiles + k_tile * n_tiles + n_tile)
        else:
            k_tile = uint32(rest // n_tiles)
            n_tile = uint32(rest - k_tile * n_tiles)
        # lanes beyond the last tile still take part in the shuffles
        inside = uint32(1) if expert < experts else uint32(0)
        k = k if expert < experts else uint32(0)

        weight = qweight + uint64(expert) * uint64(k // uint32(2)) * uint64(n)
        order = perm + uint64(expert) * uint64(k) * uint64(4)
        row = uint32(k_tile * 2)
        column = uint32(n_tile * TILE_N + strip * 16 + half * 4)
        a = load(weight, order, row, column, k, n)
        b = load(weight, order, uint32(row + 1), column, k, n)
        c = load(weight, order, row, uint32(column + 8), k, n)
        d = load(weight, order, uint32(row + 1), uint32(column + 8), k, n)

        # of column g, 4 threads of 16 bytes
        place = out + uint64(tile) * uint64(512) + uint64(half * uint32(256) + strip * uint32(16))
        store_column(place, a[0], b[0], c[0], d[0], strip, inside)
        store_column(place + uint64(64), a[1], b[1], c[1], d[1], strip, inside)
        store_column(place + uint64(128), a[2], b[2], c[2], d[2], strip, inside)
        store_column(place + uint64(192), a[3], b[3], c[3], d[3], strip, inside)

    return repack
