"""Step 9: the rows of every expert in one launch: which weight, which rows, is a block's first act.

out[p, n] = round(sum_k x[p, k] * W[e(p), k, n]), e(p) the first e with p < ends[e]

x        [rows, K] fp16: those of expert 0, then those of expert 1, ...
qweight  [E, K/8, N] uint32, scales [E, K/128, N] fp16: a weight of op.py for every expert
ends     [E] uint32: where the rows of each expert end; they begin where those before it end
out      [rows, N] fp16
"""

from dataclasses import dataclass

import numpy as np
from numba import cuda, uint32, uint64

from ferrum_numba import Launch, Op, Program, Work, pointers, sizes
from ferrum_numba.contract import Corner
from ferrum_numba.errors import ProblemError
from ferrum_numba.ptx.memory import ld_global_nc_u32
from ladder import op
from ladder.reference import GROUP, WORD_ROWS, int4_gemm
from ladder.step7_share_k import WARP_N, ShareK, make_tile

PARAMETERS = (*pointers("x", "qweight", "scales", "ends", "out"), *sizes("experts", "N", "K"))


@dataclass(frozen=True)
class Problem:
    """Rows of x of all experts, experts, columns and rows of each one's weight."""

    rows: int
    experts: int
    N: int
    K: int

    def __post_init__(self):
        if self.experts < 1:
            raise ProblemError(f"experts must be at least 1; got {self.experts}")
        # refuses what no weight can be
        op.Problem(self.rows, self.N, self.K)


def ends_of(problem):
    """Return where each expert's rows end: the same in every run, the first experts popular."""
    share = 1 / np.arange(1, problem.experts + 1)
    rows = np.random.default_rng(0).multinomial(problem.rows, share / share.sum())
    return rows.cumsum().astype(np.uint32)


def make_inputs(problem, rng):
    """Return operands of a test, in the Op's own layout."""
    one = op.Problem(problem.rows, problem.N, problem.K)
    weights = [op.make_weight(one, rng) for _ in range(problem.experts)]
    stack = {name: np.stack([weight[name] for weight in weights]) for name in weights[0]}
    x = rng.standard_normal((problem.rows, problem.K), np.float32)
    return {"x": x.astype(np.float16), "ends": ends_of(problem), **stack}


def reference(problem, inputs):
    """Return the products of each expert with its own rows, in float64."""
    runs = np.split(inputs["x"], inputs["ends"][:-1].astype(np.intp))
    weights = zip(runs, inputs["qweight"], inputs["scales"], strict=True)
    return np.concatenate([int4_gemm(*weight) for weight in weights])


def weight_bytes_read(problem):
    """Return the bytes of the experts that have rows."""
    hit = np.count_nonzero(np.diff(ends_of(problem), prepend=0))
    return int(hit) * op.weight_bytes(op.Problem(1, problem.N, problem.K))


OP = Op(
    name="int4_experts",
    formula="out[p, n] = sum_k x[p, k] * W[e(p), k, n]",
    problem=Problem,
    make_inputs=make_inputs,
    reference=reference,
    output=lambda problem: ((problem.rows, problem.N), np.dtype(np.float16)),
    work=lambda problem: Work(
        flops=2 * problem.rows * problem.N * problem.K,
        bytes=weight_bytes_read(problem) + 2 * problem.rows * (problem.K + problem.N),
    ),
    tolerance=op.tolerance,
    # one row; experts without any; more rows than a tile has
    tests=(Problem(1, 2, 128, 128), Problem(5, 6, 128, 256), Problem(40, 3, 128, 128)),
    activations=frozenset({"x", "ends"}),
    weight_bytes_read=weight_bytes_read,
)


def build(config):
    tile_m, multiply_tile = config.tile_m, make_tile(config)

    def step9_experts(x, qweight, scales, ends, out, experts, N, K):
        # index: which expert has this tile; its tiles come after those of the experts before it
        tile, expert, first = uint32(cuda.blockIdx.y), uint32(0), uint32(0)
        end = ld_global_nc_u32(ends)
        tiles = uint32((end + (tile_m - 1)) // tile_m)
        while tile >= tiles and uint32(expert + 1) < experts:
            tile = uint32(tile - tiles)
            expert = uint32(expert + 1)
            first = end
            end = ld_global_nc_u32(ends + (uint64(expert) << 2))
            tiles = uint32((uint32(end - first) + (tile_m - 1)) // tile_m)

        # there are more blocks than tiles: how many there will be, the host does not know
        if tile < tiles:
            words = uint64(expert) * uint64(N) * uint64(K // WORD_ROWS)
            groups = uint64(expert) * uint64(N) * uint64(K // GROUP)
            first_m = uint32(first + tile * tile_m)
            multiply_tile(
                x, qweight + (words << 2), scales + (groups << 1), out, first_m, end, N, K
            )

    return step9_experts


class Experts(ShareK):
    """Step 7 over the rows of many experts."""

    name = "step9_experts"
    op = OP
    summary = "step 7 over the rows of many experts, one launch"

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem on this GPU, or None."""
        return super().misfit(config, op.Problem(problem.rows, problem.N, problem.K), gpu)

    def corners(self):
        """Return what `check` runs beside the Op's tests."""
        # nine stages, so that the ring wraps
        return (Corner(Problem(3, 2, 128, 1152)),)

    def build(self, config, arch):
        """Return the program. Block: warps_n times warps_k warps; smem: the ring."""
        return Program(build(config), PARAMETERS, config.num_threads, smem_bytes=config.smem_bytes)

    def launch(self, config, problem, gpu):
        """Return blocks over the columns, times as many tiles as there can be."""
        rows, experts, N, K = problem.rows, problem.experts, problem.N, problem.K
        # every expert that has rows may have one tile that is not full
        tiles = rows // config.tile_m + min(rows, experts)
        grid = (N // (WARP_N * config.warps_n), tiles, 1)
        return Launch(grid, {"experts": experts, "N": N, "K": K})
