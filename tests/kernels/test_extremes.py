"""The largest problems: a launch's numbers fit what counts them, or the config refuses.

None of them can be run here; what would wrap is what a host computes for them.
"""

import pytest

from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import GROUPED, KERNELS
from ferrum_numba.kernels.grouped import MOST_EXPERTS, MOST_TOP_K, GroupedProblem
from ferrum_numba.kernels.w4a16 import MOST, MOST_M, W4A16Problem

H200 = KNOWN["h200"]
DENSE = [
    W4A16Problem(65_536, 65_536, 65_536),
    W4A16Problem(MOST_M, MOST, MOST),
    W4A16Problem(MOST_M, MOST, 64, 64),
    W4A16Problem(1, MOST, MOST, -1),
    # N x K beyond 2^31, and bytes beyond 4 GiB
    W4A16Problem(16, 131_072, 131_072),
    W4A16Problem(MOST_M, 64, MOST, 32, "gptq", bias=True),
]
EXPERTS = [
    # tokens x top_k beyond 65,536, and E = 1024
    GroupedProblem(MOST_M, 1024, MOST_TOP_K, 128, 128),
    GroupedProblem(MOST_M, MOST_EXPERTS, 8, 7168, 2048),
    GroupedProblem(1, MOST_EXPERTS, 8, 65_536, 65_536),
    GroupedProblem(MOST_M, 8, 2, 65_536, 65_536),
]
LARGEST_GRID = (2**31 - 1, 65_535, 65_535)


def fits(kernel, problem):
    """Return how many configs can run a problem; their launches' numbers fit."""
    count = 0
    for config in (*kernel.configs(H200)[::7], kernel.configs(H200)[0]):
        config = kernel.specialise(config, problem)
        if kernel.misfit(config, problem, H200) is not None:
            continue
        launch = kernel.launch(config, problem, H200)
        assert all(0 < n <= most for n, most in zip(launch.grid, LARGEST_GRID, strict=True))
        assert all(0 <= value < 2**32 for value in launch.scalars.values())
        steps = launch.scalars.get("stripe_steps", 0) * launch.grid[0]
        assert steps < 2**32
        assert all(size < 2**48 for size in launch.workspace.values())
        count += 1
    return count


@pytest.mark.parametrize("problem", DENSE, ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_dense_launch_fits_or_is_refused(kernel, problem):
    if not isinstance(problem, kernel.op.problem) or kernel.refuses(problem):
        return
    fits(kernel, problem)


@pytest.mark.parametrize("problem", EXPERTS, ids=str)
@pytest.mark.parametrize("kernel", GROUPED, ids=lambda kernel: kernel.name)
def test_a_launch_of_experts_fits_or_is_refused(kernel, problem):
    if kernel.refuses(problem) is None:
        fits(kernel, problem)


def test_marlin_refuses_what_it_cannot_number():
    marlin = next(kernel for kernel in KERNELS if kernel.name == "marlin")
    problem = W4A16Problem(65_536, 65_536, 65_536)
    small = next(c for c in marlin.configs(H200) if (c.tile_m, c.tile_n, c.tile_k) == (16, 64, 64))
    said = marlin.misfit(marlin.specialise(small, problem), problem, H200)
    assert said == (
        "steps of 16 rows, 64 columns and 64 of K must be fewer than 2147483648; got 4294967296, "
        "of M = 65536, N = 65536, K = 65536"
    )
    default = marlin.default(problem, H200)
    assert marlin.misfit(default, problem, H200) is None
    assert fits(marlin, problem) > 0
