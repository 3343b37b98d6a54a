"""W4A16 GEMM in two steps: the whole weight is dequantised, then cuBLAS multiplies.

    w[k, n] = round((code[k, n] - zero[g, n]) * scale[g, n]), g = k // group_size
    out[m, n] = round(sum_k x[m, k] * w[k, n])

    packed, scales, zero_points   gmem, read once: see tools/dequantize.py, whose program this is
    weight       [K, N] as x      gmem scratch, written once, read by cuBLAS
    x            [M, K] fp16 or bf16, row-major
    out          [M, N] as x, row-major

What other kernels are measured against where M is very large: the weight goes to memory and back
once, 4.5 bytes a weight in all, and each of its products is then cuBLAS's. It wins where what is
lost there is less than what cuBLAS is ahead by.

Bound by the tensor cores, after K * N * 2.5 bytes of traffic for the weight.
Limits: 2 * K * N bytes of scratch; no bias, which would be added to the rounded result; no
act-order (gather x first).
"""

from dataclasses import replace

from ferrum_numba.contract import Launch, Matmul, pointers
from ferrum_numba.kernels.shared import packed as layout
from ferrum_numba.kernels.tools.dequantize import (
    PARAMETERS,
    Dequantize,
    DequantizeConfig,
    DequantizeProblem,
)

# what NVIDIA recommends for Hopper
CUBLAS_SCRATCH_BYTES = 32 << 20
DEQUANTIZE = Dequantize()


class DequantCublas(layout.PackedKernel):
    """The dequantised weight in scratch, multiplied by cuBLAS."""

    name = "dequant_cublas"
    config = DequantizeConfig
    summary = "packed layout, very many rows: dequantised into scratch, then cuBLAS"
    needs_cublas = True

    def configs(self, gpu):
        """Return the sizes of a block that dequantises."""
        return DEQUANTIZE.configs(gpu)

    def refuses(self, problem):
        """Return why no config can run this problem, or None."""
        if problem.bias:
            return f"{self.name} would add a bias to the rounded result; got bias = True"
        return super().refuses(problem)

    def specialise(self, config, problem):
        """Return the config for the kind of weight."""
        return DEQUANTIZE.specialise(config, _weight(problem))

    def misfit(self, config, problem, gpu):
        """Return why this config does not fit this problem, or None."""
        return DEQUANTIZE.misfit(config, _weight(problem), gpu)

    def build(self, config, arch):
        """Return the program that dequantises. Grid: tiles; Block: a warp a tile."""
        of_sizes = tuple(p for p in PARAMETERS if p.kind != "pointer")
        names = pointers("packed", "scales", "zero_points", "weight")
        return replace(DEQUANTIZE.build(config, arch), parameters=names + of_sizes)

    def launch(self, config, problem, gpu):
        """Return a warp for every tile of the weight, then the product."""
        first = DEQUANTIZE.launch(config, _weight(problem), gpu)
        product = Matmul(
            "x", "weight", "out", "cublas_scratch", problem.M, problem.N, problem.K,
            problem.dtype, CUBLAS_SCRATCH_BYTES,
        )  # fmt: skip
        workspace = {
            "weight": 2 * problem.K * problem.N,
            product.scratch: product.scratch_bytes,
        }
        return Launch(first.grid, first.scalars, workspace, then=product)


def _weight(problem):
    """Return the problem of dequantising a problem's weight."""
    K, N = layout.stored_shape(problem)
    return DequantizeProblem(
        problem.K, problem.N, layout.group_size_of(problem), problem.zero_points != "none",
        problem.dtype, K, N,
    )  # fmt: skip
