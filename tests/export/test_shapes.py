"""The limits of sizes in the manifest are those that kernels refuse beyond."""

import pytest

from ferrum_numba.export.shapes import shapes
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import PACKED
from ferrum_numba.kernels.tools.add_bias import AddBias
from ferrum_numba.kernels.tools.gather_columns import GatherColumns, GatherProblem
from ferrum_numba.kernels.tools.repack import Repack
from ferrum_numba.kernels.w4a16 import W4A16Problem

GPU = KNOWN["h200"]
# no tile of few rows adds rows of zeros for so many, and no launch has more than a wave of clusters
ROWS = {"decode": 32, "decode_wgmma": 32, "prefill": 256, "marlin": 64}
CASES = [(kernel, config) for kernel in PACKED for config in kernel.configs(GPU)]


def fits(kernel, config, N, K):
    problem = W4A16Problem(ROWS[kernel.name], N, K, 64 if K % 128 else 128)
    config = kernel.specialise(config, problem)
    return kernel.refuses(problem) is None and kernel.misfit(config, problem, GPU) is None


@pytest.mark.parametrize(("kernel", "config"), CASES, ids=lambda case: getattr(case, "name", ""))
def test_the_least_shape_fits_and_no_smaller_one(kernel, config):
    limits = shapes(kernel, config)
    n, k = limits["N"], limits["K"]
    assert n["least"] % n["multiple"] == k["least"] % k["multiple"] == 0
    assert fits(kernel, config, n["least"], max(k["least"], 256))
    # what is smaller is refused, or padded to what is not
    if n["least"] > 64:
        assert not fits(kernel, config, n["least"] - 64, max(k["least"], 256))
    if k["least"] > 256:
        assert not fits(kernel, config, n["least"], k["least"] - 64)


@pytest.mark.parametrize(("kernel", "config"), CASES, ids=lambda case: getattr(case, "name", ""))
def test_a_multiple_fits_and_half_a_one_does_not(kernel, config):
    limits = shapes(kernel, config)
    n, k = limits["N"], limits["K"]
    N, K = n["least"] + 2 * n["multiple"], max(k["least"], 256) + 2 * k["multiple"]
    assert fits(kernel, config, N, K)
    if n["multiple"] > 64:
        assert not fits(kernel, config, N + n["multiple"] // 2, K)
    if k["multiple"] > 64:
        assert not fits(kernel, config, N, K + k["multiple"] // 2)


def test_helpers_have_the_sizes_that_they_take():
    gather = GatherColumns()
    staged = gather.default(GatherProblem(64, 4096), GPU)
    assert shapes(gather, staged)["K"] == {"multiple": 8, "least": 8, "most": 4096}
    assert gather.misfit(staged, GatherProblem(64, 4104), GPU) is not None
    assert shapes(AddBias(), AddBias().configs(GPU)[0]).keys() == {"M", "N"}
    assert shapes(Repack(), Repack().configs(GPU)[0]).keys() == {"N", "K"}
