"""The fit of prefill's constants: the same model, constants that are there are found again."""

from dataclasses import replace

import numpy as np
import pytest

from ferrum_numba import gpu
from ferrum_numba.kernels.prefill import kernel as prefill
from ferrum_numba.perf import fit_prefill
from ferrum_numba.perf.fit_prefill import LATENCY, NAMES, STAGE, WEIGHT_ROW
from ferrum_numba.perf.readme_table import RESULTS

H200 = gpu.find("h200")
ROWS = fit_prefill.timed(RESULTS, H200)
CLOCK_MHZ = 1980.0


def synthetic(constants, noise=0.0):
    """Return the recorded configs with the times of a model, at one clock."""
    errors = np.random.default_rng(1).normal(1.0, noise, len(ROWS))
    times = [fit_prefill.counts(r.config, r.problem, H200, constants) @ constants for r in ROWS]
    return [
        row._replace(us=float(cycles * error / CLOCK_MHZ), clock_mhz=CLOCK_MHZ)
        for row, cycles, error in zip(ROWS, times, errors, strict=True)
    ]


def test_it_counts_what_the_kernel_counts():
    kernel, constants = prefill.Prefill(), fit_prefill.source()
    for row in ROWS:
        counts = fit_prefill.counts(row.config, row.problem, H200, constants)
        want = kernel._cycles(row.config, row.problem, H200)
        assert counts @ constants == pytest.approx(want, rel=1e-9)


def test_constants_that_the_times_have_are_found():
    true = fit_prefill.source()
    true[STAGE], true[LATENCY], true[-1] = 90.0, 2500.0, 4000.0
    fit = fit_prefill.solve(synthetic(true, noise=0.003), H200)
    told = fit.told > 0.9
    assert told.sum() >= 8
    assert fit.constants[told] == pytest.approx(true[told], rel=0.15)


def test_what_no_row_tells_stays_at_the_source():
    # where all rows that pay for a scaled word have 64 rows a tile: one sum of two constants
    few = [row for row in ROWS if row.config.tile_m == 64 or row.config.scale_sums]
    fit = fit_prefill.solve(few, H200)
    assert fit.told[WEIGHT_ROW] < 0.5
    assert fit.constants[WEIGHT_ROW] == pytest.approx(prefill.WEIGHT_ROW_CYCLES, rel=0.1)


def test_a_model_that_is_right_chooses_the_best():
    true = fit_prefill.source()
    assert max(fit_prefill.regrets(synthetic(true), H200, true)) == pytest.approx(1.0)


def test_regret_is_over_the_best_of_a_race():
    fast, slow = ROWS[0], ROWS[0]._replace(us=2 * ROWS[0].us)
    other = slow._replace(config=replace(slow.config, num_stages=2), us=fast.us)
    # both cost the same by the model, so the first is chosen
    assert fit_prefill.regrets([slow, other], H200, fit_prefill.source()) == [2.0]


def test_the_fit_tells_times_better_than_the_source():
    fitted = np.abs(fit_prefill.errors_of(ROWS, H200, fit_prefill.solve(ROWS, H200).constants))
    as_it_is = np.abs(fit_prefill.errors_of(ROWS, H200, fit_prefill.source()))
    assert np.median(fitted) < 0.6 * np.median(as_it_is)


def test_pairs_are_compared_with_their_own_tile():
    alone = ROWS[0]._replace(config=prefill.Config(256, 128, 5), us=100.0)
    pair = alone._replace(config=prefill.Config(256, 128, 5, pair=True), us=97.0)
    other = alone._replace(config=prefill.Config(128, 256, 6), us=50.0)
    m = alone.problem.M
    assert fit_prefill.pair_shares([alone, pair, other], m, m) == [0.97]
    assert fit_prefill.pair_shares([pair, other], m, m) == []
    assert fit_prefill.pair_shares([alone, pair], m + 1, 2 * m) == []


def test_every_constant_of_the_model_is_fitted():
    names = {name for name in vars(prefill) if name.endswith("_CYCLES") or "LATENCY" in name}
    assert names == set(NAMES)
