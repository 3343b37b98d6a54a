"""What to run: the nearest thing that was measured, or what the kernel itself thinks best."""

from dataclasses import asdict, dataclass, replace

import pytest
from toy_kernel import Config, Problem, Toy

from ferrum_numba import results
from ferrum_numba.errors import ProblemError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.kernels import grouped
from ferrum_numba.kernels.grouped import GroupedProblem
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


class Experts(Tiled):
    """A toy for a layer of experts."""

    name = "experts"
    op = grouped.OP

    def refuses(self, problem):
        return None


LAYER = GroupedProblem(16, 128, 8, 1536, 2048)


def routed(us, tile_m=8, problem=LAYER, **changes):
    """Return a row of a layer of experts."""
    problem = asdict(replace(problem, **changes))
    config = {"speed": 1, "tile_m": tile_m}
    return replace(row(us, kernel="experts", problem=problem, config=config), op="grouped_gemm")


def chosen(rows, **changes):
    found = choose(rows, replace(LAYER, **changes), [Experts()], GPU)
    return found.config.tile_m, found.rule


def test_a_routing_is_preferred_but_any_serves():
    rows = [routed(30.0, 16), routed(35.0, 24, routing="skewed")]
    assert chosen(rows) == (16, "measured")
    assert chosen(rows, routing="skewed") == (24, "measured")
    assert chosen(rows[:1], routing="skewed") == (16, "measured at routing = uniform")
    # the very tokens come before the routing
    other = routed(20.0, 32, tokens=4, routing="skewed")
    assert chosen([rows[0], other], routing="skewed") == (16, "measured at routing = uniform")
    assert chosen(rows, tokens=15, routing="skewed") == (24, "measured at tokens = 16")


def test_where_rows_come_from_is_no_other_kind():
    found = chosen([routed(30.0, 16)], per_pair=True, weighted=True)
    assert found == (16, "measured at per_pair = False, weighted = False")
    assert chosen([routed(30.0, 16)], gated=True)[1] == "default of experts"
    assert chosen([routed(30.0, 16)], zero_points="gptq")[1] == "default of experts"


def test_between_two_counts_of_tokens_the_experts_that_are_hit_decide():
    # 82 of 128 experts for 16 tokens, 126 for 64: 8-row tiles of 64 tokens take half as long again
    few, many = routed(30.0, 8), routed(46.5, 64, tokens=256)
    assert chosen([few, many], tokens=64) == (8, "measured at tokens = 16")
    faster = replace(many, us=45.0, us_low=45.0)
    assert chosen([few, faster], tokens=64) == (64, "measured at tokens = 256")


def test_of_layers_the_nearest_decides():
    rows = [
        routed(30.0, 16, num_experts=8, top_k=2, N=28672, K=4096),
        routed(30.0, 24, num_experts=256, N=4096, K=7168),
        routed(30.0, 32, num_experts=60, top_k=4),
    ]
    told = "measured at tokens = 16, num_experts = 60, top_k = 4, N = 1536, K = 2048"
    assert chosen(rows, num_experts=64, top_k=6) == (32, told)
    assert chosen(rows, num_experts=256, K=4096)[0] == 24
    assert chosen(rows, num_experts=4, top_k=1, N=14336, K=4096)[0] == 16


@pytest.mark.parametrize(
    ("tokens", "config", "tiles"),
    [
        # experts that are hit, each with a tile at least
        (1, {"tile_m": 16}, 8), (16, {"tile_m": 16}, 82.42), (4096, {"tile_m": 64}, 512),
        # a block a pair
        (4, {"tile_m": 8, "direct": True}, 32),
    ],
)  # fmt: skip
def test_the_tiles_of_experts(tokens, config, tiles):
    found = results.num_tiles(config, asdict(replace(LAYER, tokens=tokens)))
    assert found == pytest.approx(tiles, rel=1e-4)


def test_the_tiles_of_fewer_experts_than_a_token_chooses():
    """Of a layer whose other experts are elsewhere."""
    problem = asdict(replace(LAYER, tokens=4096, num_experts=2, top_k=8))
    assert results.num_tiles({"tile_m": 64}, problem) == 512
    assert results.num_tiles({"tile_m": 64}, {**problem, "tokens": 1}) == 2
