"""Which kernel and config run a problem: the measured winner of this GPU where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ferrum_numba import perf
from ferrum_numba import results as store
from ferrum_numba.contract import Kernel
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.w4a16 import OP, W4A16Problem
from ferrum_numba.launch import lacking
from ferrum_numba.results import Choice, Decision, choose, decide

# the regime whose winner runs: a model's layers find their weights in device memory, not in L2
REGIME = "cold"
# of the models that are tuned for
USUAL_GROUP_SIZE = 128


def recorded(gpu: Gpu, kernels: Sequence[Kernel]) -> list[Decision]:
    """Return what was decided of some kernels by the results that ship for a GPU."""
    path = Path(perf.__file__).parent / "results" / gpu.key / f"{OP.name}.json"
    if not path.is_file():
        return []
    names = {kernel.name for kernel in kernels}
    rows = (row for row in store.load(path).rows if row.kernel in names)
    return decide(rows, REGIME)


def best(
    problem: W4A16Problem, kernels: Sequence[Kernel], decisions: Sequence[Decision], gpu: Gpu
) -> Choice:
    """Return what to run a problem with.

    Where nothing was measured of its kind, what won its sizes without zero points, act-order and
    bias in fp16, of the same group size or the usual one, serves it too, where it fits.

    Raises:
        ProblemError: no kernel can run it; says why each cannot.
    """
    kernels = [kernel for kernel in kernels if lacking(kernel) is None]
    choice = choose(decisions, problem, kernels, gpu)
    if choice.measured:
        return choice
    for group_size in dict.fromkeys((problem.group_size, min(USUAL_GROUP_SIZE, problem.K))):
        plain = W4A16Problem(problem.M, problem.N, problem.K, group_size)
        similar = choose(decisions, plain, kernels, gpu)
        if not similar.measured or similar.kernel.refuses(problem) is not None:
            continue
        config = similar.kernel.specialise(similar.config, problem)
        if similar.kernel.misfit(config, problem, gpu) is None:
            return replace(similar, config=config)
    return choice
