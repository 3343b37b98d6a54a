"""What to run: the nearest thing that was measured, or what the kernel itself thinks best."""

from dataclasses import dataclass

import pytest
from toy_kernel import Config, Problem, Toy

from ferrum_numba import results
from ferrum_numba.errors import ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.results import Row

GPU = KNOWN["h200"]
TOY = Toy()


def row(us, M=1, speed=1, kernel="toy", regime="cold", **changes):
    made = {"problem": {"M": M, "N": 8}, "config": {"speed": speed, "deed": "work"}, **changes}
    return Row(kernel, "toy", **made, regime=regime, us=us, samples=(us,), ok=True, stage="final")


def choose(rows, problem, kernels, gpu):
    return results.choose(results.decide(rows), problem, kernels, gpu)


ROWS = [row(5.0, M=1, speed=1), row(6.0, M=4, speed=2), row(9.0, M=16, speed=3)]


@pytest.mark.parametrize(
    ("M", "speed", "rule"),
    [
        (4, 2, "measured"),
        (5, 2, "measured at M = 4"),
        (8, 3, "measured at M = 16"),
        (1000, 3, "measured at M = 16"),
        (2, 2, "measured at M = 4"),
    ],
)
def test_the_nearest_row_is_chosen_and_named(M, speed, rule):
    found = choose(ROWS, Problem(M), [TOY], GPU)
    assert (found.kernel, found.config, found.rule) == (TOY, Config(speed), rule)


def test_a_config_that_does_not_fit_is_passed_over():
    rows = [row(1.0, M=2, speed=4), row(2.0, M=8, speed=2)]
    found = choose(rows, Problem(1), [TOY], GPU)
    assert (found.config, found.rule) == (Config(2), "measured at M = 8")


def tall(us, M, tile_m, speed=1):
    """Return a row whose config names its tile."""
    return row(us, M=M, config={"speed": speed, "tile_m": tile_m})


class Tiled(Toy):
    """A toy whose configs have a tile."""

    @dataclass(frozen=True)
    class config:
        speed: int = 1
        tile_m: int = 8

    def configs(self, gpu):
        return (self.config(1, 8), self.config(2, 16))


@pytest.mark.parametrize(
    ("M", "tile_m", "rule"),
    [
        (16, 16, "measured"),
        # one row more than a tile of 16: two of them take 40
        (17, 32, "measured at M = 32"),
        (33, 128, "measured at M = 100"),
        # three tiles of 16 take 60, two of 32 take 64
        (48, 128, "measured at M = 100"),
        (129, 128, "measured at M = 100"),
        (3, 16, "measured at M = 16"),
    ],
)
def test_between_two_sizes_the_number_of_tiles_decides(M, tile_m, rule):
    rows = [tall(20.0, 16, 16), tall(32.0, 32, 32), tall(58.0, 100, 128)]
    found = choose(rows, Problem(M), [Tiled()], GPU)
    assert (found.config.tile_m, found.rule) == (tile_m, rule)


def test_a_config_further_on_must_hold_as_many_rows():
    class Choosy(Tiled):
        def misfit(self, config, problem, gpu):
            return "too fast" if config.speed == 3 else None

    unfit, near, far = tall(9.0, 32, 32, speed=3), tall(5.0, 1, 8), tall(10.0, 64, 64, speed=2)
    found = choose([unfit, near, far], Problem(20), [Choosy()], GPU)
    assert (found.config.tile_m, found.rule) == (64, "measured at M = 64")
    found = choose([unfit, near], Problem(20), [Choosy()], GPU)
    assert (found.config.tile_m, found.rule) == (8, "measured at M = 32, in its default config")
    # what won nearest of all may have more tiles here
    found = choose([near], Problem(20), [Choosy()], GPU)
    assert found.rule == "measured at M = 1"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(1.0, kernel="gone")],
        [row(1.0, regime="warm")],
        [row(1.0, problem={"M": 1, "N": 8, "kind": "other"})],
    ],
    ids=["none", "kernel", "regime", "kind"],
)
def test_without_a_row_the_default_runs(rows):
    found = choose(rows, Problem(1), [TOY], GPU)
    assert (found.config, found.rule) == (Config(1), "default of toy")


def test_a_kernel_that_won_still_runs_when_its_config_is_gone():
    class Other(type(TOY)):
        name = "other"

    gone = row(1.0, config={"speed": 1, "gone": 2})
    far = row(2.0, M=64, kernel="other", speed=2)
    # the design is decided by what won nearby, not by whose config is still there
    found = choose([gone, far], Problem(1), [Other(), TOY], GPU)
    assert (found.kernel, found.config) == (TOY, Config(1))
    assert found.rule == "measured, in its default config"
    found = choose([gone, row(2.0, M=4, speed=2)], Problem(1), [TOY], GPU)
    assert (found.config, found.rule) == (Config(2), "measured at M = 4")


def test_where_a_shape_was_not_measured_a_near_one_decides():
    rows = [
        row(5.0, problem={"M": 1, "N": 64}, config={"speed": 1}),
        row(5.0, problem={"M": 16, "N": 64}, config={"speed": 2}),
        row(5.0, problem={"M": 16, "N": 4096}, config={"speed": 3}),
    ]
    found = choose(rows, Problem(12), [TOY], GPU)
    assert (found.config, found.rule) == (Config(2), "measured at M = 16, N = 64")
    # M counts for more: it decides between designs
    found = choose([rows[0], rows[2]], Problem(16), [TOY], GPU)
    assert (found.config, found.rule) == (Config(3), "measured at M = 16, N = 4096")
    found = choose([rows[1], row(5.0, M=4)], Problem(16), [TOY], GPU)
    assert found.rule == "measured at M = 16, N = 64"


def test_a_default_that_knows_shapes_is_preferred_to_what_won_on_another():
    class Modelled(type(TOY)):
        models_shapes = True

    other = row(5.0, problem={"M": 16, "N": 4096}, config={"speed": 3})
    found = choose([other], Problem(16), [Modelled()], GPU)
    assert found.config == Config(1)
    assert found.rule == "measured at M = 16, N = 4096, in its default config"
    same = row(5.0, M=64, speed=2)
    found = choose([other, same], Problem(16), [Modelled()], GPU)
    assert (found.config, found.rule) == (Config(2), "measured at M = 64")


def test_a_row_from_before_a_field_counts_as_its_default():
    old = row(3.0, problem={"M": 2}, config={"speed": 2})
    found = choose([old], Problem(2), [TOY], GPU)
    assert (found.config, found.rule) == (Config(2), "measured")


def test_a_problem_nobody_runs_names_the_reasons():
    with pytest.raises(ProblemError, match=r"no kernel can run .*: toy: toy needs N = 8"):
        choose([], Problem(1, N=9), [TOY], GPU)
