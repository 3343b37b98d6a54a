"""Problems, kernels and configs at random, each from a seed and a number alone; and made smaller.

What a kernel refuses is drawn again: cases are spread over all that the kernels say they can do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.errors import FerrumError
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels import APART, DENSE, GROUPED, PACKED, RAW
from ferrum_numba.kernels.grouped import ROUTINGS, GroupedProblem
from ferrum_numba.kernels.w4a16 import ZERO_POINTS, W4A16Problem

DESIGNS: tuple[Kernel, ...] = RAW + PACKED + DENSE + GROUPED + APART
# draws after which a kernel is given up: it refuses nearly all
PATIENCE = 1000
# group sizes that kernels are made for, and some that only the checkpoint's own layout has
GROUPS, OTHER_GROUPS = (-1, 32, 64, 128), (8, 16, 24, 48, 96, 256)


@dataclass(frozen=True)
class Sizes:
    """The largest sizes that are drawn."""

    M: int
    N: int
    K: int
    num_experts: int
    top_k: int


# a case takes a GPU milliseconds, and the host some tens; the interpreter seconds
LARGE, SMALL = Sizes(600, 2048, 4096, 24, 8), Sizes(20, 264, 392, 4, 3)


@dataclass(frozen=True)
class Case:
    """One thing to check."""

    kernel: Kernel
    config: Config
    problem: Problem

    def __str__(self) -> str:
        """Return it as it stands in a test."""
        return f"{self.kernel.name}: {self.problem!r}, {self.config!r}"


def draw(
    seed: int, number: int, gpu: Gpu, kernels: Sequence[Kernel], sizes: Sizes, most_configs: int
) -> Case:
    """Return a case; the same for the same arguments.

    Args:
        most_configs: of a kernel on a problem, spread over its space; what bounds the programs

    Raises:
        FerrumError: a kernel refuses all that is drawn.
    """
    rng = np.random.default_rng((seed, number))
    kernel = kernels[int(rng.integers(len(kernels)))]
    for _ in range(PATIENCE):
        problem = _problem(kernel, rng, sizes)
        if problem is None or kernel.refuses(problem):
            continue
        configs = _spread(list(kernel.fitting(problem, gpu)), most_configs)
        return Case(kernel, configs[int(rng.integers(len(configs)))], problem)
    raise FerrumError(f"{kernel.name} refuses {PATIENCE} random problems one after the other")


def smaller(problem: Problem) -> Iterator[Problem]:
    """Yield problems with less of one thing, or without it."""
    for field in fields(problem):
        value = getattr(problem, field.name)
        for simple in _simpler(field.name, value, field.default):
            try:
                yield replace(problem, **{field.name: simple})
            except FerrumError:
                continue


def shrink(case: Case, gpu: Gpu, fails: Callable[[Case], bool], most: int = 200) -> Case:
    """Return the smallest case found that still fails, of the same kernel, and config if it fits.

    most: how many are tried
    """
    tried = 0
    found = True
    while found and tried < most:
        found = False
        for problem in smaller(case.problem):
            one = _with(case, problem, gpu)
            if one is None:
                continue
            tried += 1
            if fails(one):
                case, found = one, True
                break
            if tried >= most:
                break
    return case


def _with(case: Case, problem: Problem, gpu: Gpu) -> Case | None:
    """Return the case with another problem, None where its kernel cannot run it."""
    if case.kernel.refuses(problem):
        return None
    config = case.kernel.specialise(case.config, problem)
    if case.kernel.misfit(config, problem, gpu):
        config = case.kernel.default(problem, gpu)
    return Case(case.kernel, config, problem)


def _simpler(name: str, value: Any, default: Any) -> Iterator[Any]:
    if isinstance(value, (bool, str)):
        if value != default:
            yield default
    elif name == "group_size":
        if value != -1:
            yield -1
    elif value > 1:
        # N and K in steps that the most kernels can do, and that all can
        steps = (128, 64, 8) if name in ("N", "K") else (1,)
        halves = {max(step, value // 2 // step * step) for step in steps}
        halves |= {value - step for step in steps if value > step}
        yield from sorted(half for half in halves if half < value)


def _problem(kernel: Kernel, rng: np.random.Generator, sizes: Sizes) -> Problem | None:
    N, K = (_size(rng, most) for most in (sizes.N, sizes.K))
    groups = GROUPS if rng.random() < 0.9 else OTHER_GROUPS
    kind: dict[str, Any] = {
        "group_size": _one(rng, groups),
        "zero_points": _one(rng, ("none", *ZERO_POINTS)),
        "act_order": bool(rng.random() < 0.2),
        "bias": bool(rng.random() < 0.3),
        "dtype": _one(rng, ("fp16", "bf16")),
    }
    try:
        if kernel.op.problem is W4A16Problem:
            return W4A16Problem(_log(rng, sizes.M), N, K, **kind)
        return GroupedProblem(
            _log(rng, sizes.M // 2), _log(rng, sizes.num_experts), _log(rng, sizes.top_k),
            max(N // 2 // 64 * 64, 64), max(K // 2 // 64 * 64, 64), routing=_one(rng, ROUTINGS),
            per_pair=bool(rng.random() < 0.3), weighted=bool(rng.random() < 0.3),
            gated=bool(rng.random() < 0.3), **kind,
        )  # fmt: skip
    except FerrumError:
        return None


def _log(rng: np.random.Generator, most: int) -> int:
    """Return 1 to `most`, every power of two as often as the next."""
    return min(most, int(math.exp(rng.uniform(0, math.log(most + 1)))))


def _size(rng: np.random.Generator, most: int) -> int:
    step: int = _one(rng, (8, 64, 128))
    return step * _log(rng, most // step)


def _one(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def _spread(configs: list[Config], most: int) -> list[Config]:
    """Return at most so many: the first, and others from all over."""
    if len(configs) <= most:
        return configs
    return [configs[i * len(configs) // most] for i in range(most)]
