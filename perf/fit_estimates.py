"""The costs of the designs' estimates, fitted to what was measured on one GPU.

    python -m ferrum_numba.perf.fit_estimates

prints for each design the costs in its `estimate.py` and as fitted, and how well both rank configs:
by what part the best of the first 1, 2, 4 and 8 is slower than the best of all, on the recorded
landscapes; then the same for each weight by costs that were fitted without it, which is what a new
weight may expect.

A time is a sum of terms, each times a cost that is not below 0: least squares of relative errors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ferrum_numba import gpu as gpus
from ferrum_numba import results
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels import PACKED, RAW
from ferrum_numba.perf.readme_table import RESULTS
from ferrum_numba.tune.replay import Landscape, landscapes

Array = npt.NDArray[np.float64]
Costs = Mapping[str, float]
# designs whose estimate is a sum of terms, by their folder; prefill has a model of its own
FITTED = {"w4a16_gptq": "gptq", "marlin": "marlin", "decode": "decode",
          "decode_wgmma": "decode_wgmma"}  # fmt: skip
FIRST = (1, 2, 4, 8)
# more rows are bound by the tensor cores: what they cost tells nothing of the other terms
MOST_ROWS = 512
SWEEPS = 20_000


def module_of(name: str) -> ModuleType:
    """Return the module with a design's terms and costs."""
    return import_module(f"ferrum_numba.kernels.{FITTED[name]}.estimate")


def non_negative(rows: Array, values: Array) -> Array:
    """Return the least-squares solution without negative costs, by coordinate descent."""
    gram, moments = rows.T @ rows, rows.T @ values
    costs = np.zeros(rows.shape[1])
    for _ in range(SWEEPS):
        before = costs.copy()
        for i in np.flatnonzero(np.diag(gram)):
            costs[i] = max(0.0, costs[i] + (moments[i] - gram[i] @ costs) / gram[i, i])
        if np.allclose(before, costs, rtol=1e-9, atol=1e-12):
            break
    return costs


def fit(every: Sequence[Landscape], module: ModuleType, gpu: Gpu) -> dict[str, float]:
    """Return the costs that tell the times of landscapes best."""
    rows, times = [], []
    for one in every:
        if one.problem.M > MOST_ROWS:
            continue
        for config, us in one.us.items():
            rows.append(list(_terms(one, config, module, gpu).values()))
            times.append(us)
    names = list(module.COSTS)
    relative = np.array(rows) / np.array(times)[:, None]
    return dict(zip(names, non_negative(relative, np.ones(len(times))), strict=True))


def _terms(one: Landscape, config: Any, module: ModuleType, gpu: Gpu) -> dict[str, float]:
    launch = one.kernel.launch(config, one.problem, gpu)
    found: dict[str, float] = module.terms(config, one.problem, launch, gpu)
    return found


def missed(
    every: Sequence[Landscape], estimate: Callable[[Landscape, Any], float]
) -> list[tuple[float, float]]:
    """Return the mean and the largest part by which the best of the first is slower than the best.

    One pair for each number in FIRST.
    """
    losses: dict[int, list[float]] = {count: [] for count in FIRST}
    for one in every:
        order = sorted(one.us, key=lambda config: estimate(one, config))
        for count in FIRST:
            losses[count].append(min(one.us[c] for c in order[:count]) / one.best_us - 1)
    return [(float(np.mean(losses[count])), max(losses[count])) for count in FIRST]


def left_out(every: Sequence[Landscape], module: ModuleType, gpu: Gpu) -> list[tuple[float, float]]:
    """Return what `missed` does, for each weight by costs that were fitted without it."""
    costs = {}
    for weight in {_weight(one) for one in every}:
        others = [one for one in every if _weight(one) != weight]
        costs[weight] = fit(others, module, gpu)

    return missed(every, lambda one, c: _estimate_us(one, c, module, gpu, costs[_weight(one)]))


def _in_source_us(one: Landscape, config: Any, gpu: Gpu) -> float:
    return one.kernel.estimate_us(config, one.problem, gpu) or 0.0


def _estimate_us(one: Landscape, config: Any, module: ModuleType, gpu: Gpu, costs: Costs) -> float:
    launch = one.kernel.launch(config, one.problem, gpu)
    us: float = module.estimate_us(config, one.problem, launch, gpu, costs)
    return us


def _weight(one: Landscape) -> tuple[int, int]:
    return one.problem.K, one.problem.N


def _say(label: str, found: Sequence[tuple[float, float]]) -> None:
    parts = [
        f"first {count}: {mean:6.1%} {worst:6.1%}"
        for count, (mean, worst) in zip(FIRST, found, strict=True)
    ]
    print(f"  {label:12}", "   ".join(parts))


def main() -> int:
    """Print the fit."""
    gpu = gpus.find("h200")
    kernels = (*RAW, *PACKED)
    recorded = landscapes(results.load(RESULTS).rows, kernels, gpu)
    for kernel in kernels:
        every = [one for one in recorded if one.kernel.name == kernel.name]
        print(f"{kernel.name}: {len(every)} landscapes; mean and largest loss")
        _say("as it is", missed(every, partial(_in_source_us, gpu=gpu)))
        if kernel.name not in FITTED:
            continue
        module = module_of(kernel.name)
        costs = fit(every, module, gpu)
        estimate = partial(_estimate_us, module=module, gpu=gpu, costs=costs)
        _say("as fitted", missed(every, estimate))
        _say("left out", left_out(every, module, gpu))
        for name, cost in costs.items():
            print(f"    {name:10} {module.COSTS[name]:9.4g} {cost:9.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
