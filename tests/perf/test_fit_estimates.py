"""The fit of the designs' estimates: costs that are there are found, those in the source are it."""

from types import SimpleNamespace

import numpy as np
import pytest

from ferrum_numba import gpu, results
from ferrum_numba.kernels import PACKED, RAW
from ferrum_numba.kernels.shared.estimate import total_us
from ferrum_numba.perf import fit_estimates
from ferrum_numba.perf.fit_estimates import FITTED, fit, left_out, missed, module_of, non_negative
from ferrum_numba.perf.readme_table import RESULTS
from ferrum_numba.tune.replay import Landscape, landscapes

H200 = gpu.find("h200")
EVERY = landscapes(results.load(RESULTS).rows, (*RAW, *PACKED), H200)


def of(name):
    return [one for one in EVERY if one.kernel.name == name]


def test_the_solution_has_no_negative_costs_and_is_the_best_of_those():
    rng = np.random.default_rng(0)
    rows = rng.uniform(0.0, 1.0, (200, 4))
    true = np.array([2.0, 0.0, 0.5, 1.0])
    assert non_negative(rows, rows @ true) == pytest.approx(true, abs=1e-6)
    # where the best would be negative, it is none
    found = non_negative(rows, rows @ np.array([2.0, -1.0, 0.5, 1.0]))
    assert found[1] == 0.0
    assert (found >= 0).all()


@pytest.mark.parametrize("name", FITTED)
def test_costs_that_the_times_have_are_found(name):
    module = module_of(name)
    true = {term: cost * (1 + 0.1 * i) for i, (term, cost) in enumerate(module.COSTS.items())}

    def us(one, config):
        launch = one.kernel.launch(config, one.problem, H200)
        return total_us(true, module.terms(config, one.problem, launch, H200))

    made = [
        Landscape(one.kernel, one.problem, {config: us(one, config) for config in one.us})
        for one in of(name)
    ]
    found = fit(made, module, H200)
    again = [total_us(found, fit_estimates._terms(o, c, module, H200)) for o in made for c in o.us]
    assert again == pytest.approx([us for one in made for us in one.us.values()], rel=1e-3)


@pytest.mark.parametrize("name", FITTED)
def test_the_costs_in_the_source_are_those_of_the_fit(name):
    module = module_of(name)
    found = fit(of(name), module, H200)
    assert found.keys() == module.COSTS.keys()
    for term, cost in module.COSTS.items():
        assert found[term] == pytest.approx(cost, rel=1e-3), term


# decode_wgmma loses on one landscape, of the weight that tells what two tiles of 16 rows cost
@pytest.mark.parametrize(
    ("name", "worst", "best_of_8"),
    [
        ("w4a16_gptq", 0.001, 0),
        ("marlin", 0.01, 0),
        ("decode", 0.09, 0.07),
        ("decode_wgmma", 0.6, 0),
    ],
)  # fmt: skip
def test_a_weight_that_was_not_fitted_to_is_ranked_as_well(name, worst, best_of_8):
    found = left_out(of(name), module_of(name), H200)
    assert fit_estimates.FIRST[2:] == (4, 8)
    assert found[2][0] <= 0.011
    assert found[2][1] <= worst
    assert found[3][1] <= best_of_8


def test_what_is_missed_is_the_best_of_the_first_against_the_best():
    one = SimpleNamespace(us={"a": 3.0, "b": 2.0, "c": 1.0}, best_us=1.0)
    found = missed([one], lambda _, config: {"a": 1, "b": 2, "c": 3}[config])
    assert found == [(2.0, 2.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0)]
