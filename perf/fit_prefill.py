"""The constants of prefill's model of its own time, fitted to what was measured on one GPU.

    python -m ferrum_numba.perf.fit_prefill

prints each constant in the source and as fitted, how well both tell the recorded times, and what
choosing a config by each costs against the best that was measured; docs/designs/prefill.md#the-fit
says what is learnt from it.

A recorded time is cycles / clock. The cycles are a sum of constants, each times a count that the
config and the problem give (`counts`), so the fit is a linear least-squares problem, of relative
errors, with Huber's weights against the rows whose clock was not what was read. Which of two
products' costs a tile pays depends on the constants, so it is solved until that stays. What the
rows cannot tell, a weak prior keeps at the source's value: `told` says how much of a constant the
rows do tell.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ferrum_numba import gpu as gpus
from ferrum_numba import results
from ferrum_numba.division import ceil_div
from ferrum_numba.gpu import Gpu
from ferrum_numba.kernels.prefill import kernel as prefill
from ferrum_numba.kernels.shared import packed
from ferrum_numba.kernels.w4a16 import W4A16Problem
from ferrum_numba.perf.readme_table import RESULTS
from ferrum_numba.results.row import MEASURED

Array = npt.NDArray[np.float64]

NAMES = (
    "STAGE_CYCLES", "WORD_CYCLES", "TENSOR_ROW_CYCLES", "WEIGHT_CYCLES", "WEIGHT_ROW_CYCLES",
    "SUM_CYCLES", "SUM_ROW_CYCLES", "RESULT_CYCLES", "HANDOFF_CYCLES", "HANDOFF_LATENCY",
)  # fmt: skip
(STAGE, WORD, TENSOR_ROW, WEIGHT, WEIGHT_ROW, SUM, SUM_ROW, RESULT, HAND_OFF, LATENCY) = range(10)
# of the fit alone: what a call costs before and after its blocks work, which no choice depends on;
# and where the fit of it begins
CALL, CALL_CYCLES = 10, 3000.0
# the prior: a constant lies within this part of its value in the source, two times of three
PRIOR = 0.5
# errors beyond so many of the usual ones count for less
HUBER = 1.5
ROUNDS = 30
RESAMPLES = 200
# choices that are shown
WORST = 6
# K of a panel, which STAGE_CYCLES and the words of a stage are counted by
PANEL_K = 64
KERNEL: Any = prefill.Prefill()


class Timed(NamedTuple):
    """One recorded time of one config."""

    config: Any
    problem: W4A16Problem
    us: float
    clock_mhz: float  # mean of before and after
    run: str

    @property
    def shape(self) -> tuple[int, int]:
        """K and N: what rows are left out by."""
        return self.problem.K, self.problem.N

    @property
    def race(self) -> tuple[Any, ...]:
        """What rows have in common that were measured on one problem in one run."""
        return self.problem, self.run


class Fit(NamedTuple):
    """Constants in the order of NAMES and CALL, and how much of each the rows tell: 0 to 1."""

    constants: Array
    told: Array


def source() -> Array:
    """Return the constants of kernels/prefill/kernel.py, which has none of a call."""
    return np.array([*(getattr(prefill, name) for name in NAMES), 0.0], np.float64)


def timed(path: Path, gpu: Gpu) -> list[Timed]:
    """Return the correct rows of prefill in a result file whose configs still exist."""
    known = {field.name for field in fields(prefill.Config)}
    found = []
    for row in results.load(path).rows:
        if row.kernel != KERNEL.name or row.status != MEASURED or not row.ok:
            continue
        config = prefill.Config(**{k: v for k, v in row.config.items() if k in known})
        problem = W4A16Problem(**row.problem)
        if KERNEL.misfit(config, problem, gpu) is None:
            clock_mhz = float(np.mean(row.more["clock_mhz"]))
            found.append(Timed(config, problem, row.us, clock_mhz, row.run))
    return found


def word_counts(config: Any, constants: Array) -> dict[int, float]:
    """Return what a word costs, by constant: its product or the other instructions, the longer."""
    rows = config.tile_m
    fixed, a_row = (SUM, SUM_ROW) if config.scale_sums else (WEIGHT, WEIGHT_ROW)
    if constants[TENSOR_ROW] * rows >= constants[fixed] + constants[a_row] * rows:
        return {TENSOR_ROW: rows, WORD: 1.0}
    return {fixed: 1.0, a_row: rows, WORD: 1.0}


@cache
def work(config: Any, problem: W4A16Problem, gpu: Gpu) -> tuple[float, float, float]:
    """Return what the slowest block does: panels of 64 of k, sums it writes, sums it hands over."""
    K, N = packed.stored_shape(problem)
    k_tiles = K // config.tile_k
    sums = config.tile_m * config.tile_n
    scalars = KERNEL.launch(config, problem, gpu).scalars
    stripe, striped = scalars["stripe_steps"], scalars["striped_tiles"]
    tiles = ceil_div(problem.M, config.tile_m) * ceil_div(N, config.unit_n)
    waves = ceil_div(tiles - striped, gpu.num_sms // config.unit_blocks)
    stages, written, handed = float(waves * k_tiles), float(waves * sums), 0.0
    if config.cluster > 1:
        stages, written, handed = k_tiles / config.cluster, sums, sums
    elif striped:
        stages += stripe
        written += (1 + stripe // k_tiles) * sums
        handed = (1 + k_tiles // stripe) * sums
    return stages * (config.tile_k // PANEL_K), written, handed


def counts(config: Any, problem: W4A16Problem, gpu: Gpu, constants: Array) -> Array:
    """Return how often a call pays each constant; times the constants, its cycles."""
    panels, written, handed = work(config, problem, gpu)
    found = np.zeros(CALL + 1)
    found[[STAGE, RESULT, HAND_OFF, LATENCY]] = panels, written, handed, handed > 0
    for constant, count in word_counts(config, constants).items():
        found[constant] = panels * (config.tile_n // 16) * count
    many = config.pair and problem.M >= prefill.MANY_ROWS
    found *= prefill.PAIR_SHARE if many else 1.0
    found[CALL] = 1.0
    return found


def matrix(rows: Sequence[Timed], gpu: Gpu, constants: Array) -> Array:
    """Return each row's counts over the cycles that it took."""
    taken = [row.us * row.clock_mhz for row in rows]
    found = [counts(row.config, row.problem, gpu, constants) for row in rows]
    return cast(Array, np.array(found) / np.array(taken)[:, None])


def solve(rows: Sequence[Timed], gpu: Gpu) -> Fit:
    """Return the constants of least error: ridge regression with Huber's weights."""
    start = source()
    start[CALL] = CALL_CYCLES
    constants = start
    for _ in range(ROUNDS):
        a = matrix(rows, gpu, constants) * start
        errors = 1.0 - a @ (constants / start)
        spread = max(float(np.median(np.abs(errors))) / 0.6745, 1e-3)
        weights = np.minimum(1.0, HUBER * spread / np.maximum(np.abs(errors), 1e-9))
        normal = a.T @ (weights[:, None] * a)
        prior = np.eye(len(start)) * (spread / PRIOR) ** 2
        step = np.linalg.solve(normal + prior, a.T @ (weights * (1.0 - a.sum(axis=1))))
        # half a step: two costs of a word may take turns at being the longer
        constants = start * np.maximum(0.0, 0.5 * (constants / start + 1.0 + step))
    return Fit(constants, np.diag(np.linalg.solve(normal + prior, normal)))


def errors_of(rows: Sequence[Timed], gpu: Gpu, constants: Array) -> Array:
    """Return modelled over measured time, less one."""
    return matrix(rows, gpu, constants) @ constants - 1.0


def races_of(rows: Sequence[Timed]) -> list[list[Timed]]:
    """Return the rows of each problem and run."""
    races: dict[tuple[Any, ...], list[Timed]] = {}
    for row in rows:
        races.setdefault(row.race, []).append(row)
    return list(races.values())


def choices(rows: Sequence[Timed], gpu: Gpu, constants: Array) -> list[tuple[Timed, Timed]]:
    """Return, of each race of two rows or more, the row that the model chooses, and the fastest."""
    found = []
    for race in (race for race in races_of(rows) if len(race) > 1):
        cycles = [float(counts(r.config, r.problem, gpu, constants) @ constants) for r in race]
        found.append((race[int(np.argmin(cycles))], min(race, key=lambda row: row.us)))
    return found


def regrets(rows: Sequence[Timed], gpu: Gpu, constants: Array) -> list[float]:
    """Return, a race, the time of the row that the model chooses over the fastest one's."""
    return [chosen.us / best.us for chosen, best in choices(rows, gpu, constants)]


def left_out(rows: Sequence[Timed], gpu: Gpu) -> list[tuple[list[Timed], Fit]]:
    """Return, for each shape of the weight, its rows and what all others' rows fit."""
    shapes = sorted({row.shape for row in rows})
    return [
        ([r for r in rows if r.shape == shape], solve([r for r in rows if r.shape != shape], gpu))
        for shape in shapes
    ]


def resampled(rows: Sequence[Timed], gpu: Gpu, times: int = RESAMPLES) -> Array:
    """Return the constants of [times] fits to races drawn with replacement: a cluster bootstrap."""
    races, rng = races_of(rows), np.random.default_rng(0)
    draws = rng.integers(0, len(races), (times, len(races)))
    return np.array([solve([r for i in d for r in races[i]], gpu).constants for d in draws])


def pair_shares(rows: Sequence[Timed], least: int, most: int) -> list[float]:
    """Return time in pairs over time alone, one tile on one problem in one run, of some M."""
    alone = {
        (row.race, row.config.tile_m, row.config.tile_n): row.us
        for row in rows
        if row.config.stripes and not row.config.pair and least <= row.problem.M <= most
    }
    keys = [((r.race, r.config.tile_m, r.config.tile_n), r) for r in rows if r.config.pair]
    return [row.us / alone[key] for key, row in keys if key in alone]


def _summary(name: str, values: Iterable[float], show: Callable[[float], str]) -> str:
    found = sorted(values)
    middle, tenth = float(np.median(found)), found[math.ceil(0.9 * len(found)) - 1]
    return f"{name:44} {show(middle):>8} {show(tenth):>8} {show(found[-1]):>8}"


def report(rows: Sequence[Timed], gpu: Gpu) -> str:
    """Return the tables: constants, errors, regrets, and the source's worst choices."""
    fit, held = solve(rows, gpu), left_out(rows, gpu)
    sets = [
        (name, errors_of(rows, gpu, constants), regrets(rows, gpu, constants))
        for name, constants in (("source", source()), ("fitted", fit.constants))
    ]
    held_errors = np.concatenate([errors_of(r, gpu, f.constants) for r, f in held])
    held_regrets = [x for r, f in held for x in regrets(r, gpu, f.constants)]
    sets.append(("fitted without the shape it is tried on", held_errors, held_regrets))
    lines = [*_constants(rows, gpu, fit), *_shares(rows)]
    lines += ["", f"{'relative error of a time':44} {'median':>8} {'9 of 10':>8} {'most':>8}"]
    lines += [_summary(name, np.abs(e), lambda x: f"{x:.1%}") for name, e, _ in sets]
    lines += ["", f"{'chosen / best measured':44} {'median':>8} {'9 of 10':>8} {'most':>8}"]
    lines += [_summary(name, r, lambda x: f"{x:.3f}") for name, _, r in sets]
    lines += [f"{'mean':44} " + " ".join(f"{np.mean(r):8.4f}" for _, _, r in sets)]
    return "\n".join([*lines, "", *_worst(choices(rows, gpu, source()))])


def _constants(rows: Sequence[Timed], gpu: Gpu, fit: Fit) -> list[str]:
    low, high = np.percentile(resampled(rows, gpu), [5, 95], axis=0)
    columns = zip(
        (*NAMES, "(a call)"), source(), fit.constants, low, high, fit.told, strict=True
    )  # fmt: skip
    return [
        f"{'constant':20} {'source':>8} {'fitted':>8} {'90 % interval':>19} {'told':>6}",
        *(
            f"{name:20} {old:8.4g} {new:8.4g} {f'{a:.4g} to {b:.4g}':>19} {told:6.0%}"
            for name, old, new, a, b, told in columns
        ),
    ]


def _worst(found: Sequence[tuple[Timed, Timed]]) -> list[str]:
    """Return the choices that cost most."""
    ranked = sorted(found, key=lambda pair: pair[1].us / pair[0].us)[:WORST]
    lines = [f"{'the source loses most on':28} {'µs':>8} {'best':>8}   its config; the best"]
    for chosen, best in ranked:
        problem = f"{chosen.problem.K}×{chosen.problem.N}, M = {chosen.problem.M}"
        configs = f"{_named(chosen.config)}; {_named(best.config)}"
        lines.append(f"{problem:28} {chosen.us:8.4g} {best.us:8.4g}   {configs}")
    return lines


def _named(config: Any) -> str:
    kinds = {
        "stripes": config.stripes,
        "pairs": config.pair,
        f"clusters of {config.cluster}": config.cluster > 1,
        "scaled sums": config.scale_sums,
    }
    tile = f"{config.tile_m}×{config.tile_n}"
    return " ".join([tile, *(kind for kind, used in kinds.items() if used)])


def _shares(rows: Sequence[Timed]) -> list[str]:
    lines = [
        "",
        f"{'pairs / alone, one tile in one run':44} {'median':>8} {'least':>8} {'most':>8}",
    ]
    for least, most in ((1, 511), (512, prefill.MANY_ROWS - 1), (prefill.MANY_ROWS, 65_536)):
        shares = pair_shares(rows, least, most)
        if shares:
            name = f"M = {least} to {most}, {len(shares)} times"
            values = (float(np.median(shares)), min(shares), max(shares))
            lines.append(f"{name:44} " + " ".join(f"{value:8.3f}" for value in values))
    return [*lines, f"{'PAIR_SHARE in the source, from MANY_ROWS on':44} {prefill.PAIR_SHARE:8.3f}"]


def main() -> int:
    """Print the report of the recorded rows."""
    gpu = gpus.find("h200")
    rows = timed(RESULTS, gpu)
    races = {row.race for row in rows}
    print(f"{len(rows)} times of prefill on {len(races)} problems and runs, {RESULTS.name}\n")
    print(report(rows, gpu))
    return 0


if __name__ == "__main__":
    sys.exit(main())
