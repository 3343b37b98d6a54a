"""The figures beside the roofline: what they draw, and that no label covers another."""

from dataclasses import asdict

import pytest
from boxes import covering, outside, polygons, texts
from test_roofline import CEILINGS, assert_good_svg, synthetic_point, synthetic_sweep

from ferrum_numba.roofline import style
from ferrum_numba.roofline.bound import Piece
from ferrum_numba.roofline.experts import experts_figure
from ferrum_numba.roofline.heat import fastest, fraction_figure
from ferrum_numba.roofline.landscape import landscape_figure, values_of
from ferrum_numba.roofline.plot import roofline_figure
from ferrum_numba.roofline.points import Peer
from ferrum_numba.roofline.times import time_figure
from ferrum_numba.roofline.waterfall import Fall, waterfall_figure

PEERS = [
    Peer("humming", "4-bit", "128×64", 16, 12.0, "2026-11-22", "synthetic"),
    Peer("machete", "4-bit", "128×64", 16, 14.0, "2026-11-22", "synthetic"),
    Peer("machete", "4-bit", "128×64", 64, 13.0, "2026-11-22", "synthetic"),
    Peer("cuBLAS fp16", "fp16", "128×64", 16, 30.0, "2026-11-22", "synthetic"),
]
FALL = Fall(
    "128×64, M=16: a", 12.0,
    (Piece("bytes", 8.0, "at DRAM 4.4 TB/s"), Piece("products", 2.0, "at wgmma 880 TFLOP/s"),
     Piece("launch", 0.7, "0.7 µs a launch"), Piece("rest", 3.3, "3.3 µs that no term explains")),
)  # fmt: skip


def layers(size=4, us=10.0, kernel="a"):
    return synthetic_point(kernel, size, us, shape="E8 k2 64→128", hit=min(8.0, 1.5 * size))


def landscape():
    timed = [
        ({"tile_m": tile, "num_stages": stages, "same": 1}, 1.0 + 0.2 * i, i == 0)
        for i, (tile, stages) in enumerate((t, s) for t in (16, 32, 128) for s in (2, 4))
    ]
    return values_of("a", timed, [{"tile_m": 32, "num_stages": 4, "same": 1}])


FIGURES = {
    "time": lambda: time_figure(synthetic_sweep(), PEERS, "synthetic"),
    "fraction": lambda: fraction_figure(synthetic_sweep(), "synthetic"),
    "many-sizes": lambda: fraction_figure(
        [synthetic_point(size=2**i + j) for i in range(3, 13) for j in (0, 1, 2)], "synthetic"
    ),
    "experts": lambda: experts_figure([layers(m) for m in (1, 16, 256)], [], "synthetic"),
    "landscape": lambda: landscape_figure(landscape(), "synthetic"),
    "waterfall": lambda: waterfall_figure([FALL, FALL], "synthetic"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_label_covers_another_and_none_is_clipped(name):
    boxes = polygons(FIGURES[name]())
    assert len(boxes) > 5
    assert covering(boxes) == []
    assert outside(FIGURES[name](), boxes) == []


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_good_svg_and_the_same_twice(name):
    first, second = (style.to_svg(FIGURES[name](), "one", "synthetic") for _ in range(2))
    assert first == second
    assert_good_svg(first)


@pytest.mark.parametrize("peers", [PEERS, PEERS[3:], []], ids=len)
def test_the_time_figure_draws_what_is_there(peers):
    figure = time_figure(synthetic_sweep(), peers, "synthetic")
    assert_good_svg(style.to_svg(figure, "time", "synthetic"))


def test_every_peer_and_both_bounds_are_drawn():
    figure = time_figure(synthetic_sweep(), PEERS, "synthetic")
    found = texts(figure)
    for wanted in (
        "humming (4-bit)", "machete (4-bit)", "cuBLAS fp16", "bound, measured ceilings (modelled)",
        "bound, datasheet (modelled)", "a", "b", "hollow: failed or untrusted",
    ):  # fmt: skip
        assert wanted in found
    drawn = [
        line.get_ydata() for line in figure.axes[0].lines if line.get_linestyle() in (":", "-.")
    ]
    assert sorted(list(y) for y in drawn) == [[12.0], [14.0, 13.0], [30.0]]


def test_a_design_has_one_colour_in_all_figures():
    points = synthetic_sweep()
    alone = [p for p in points if p.kernel == "b"]
    designs = ["a", "b"]
    wanted = style.design_styles(designs)["b"][0]
    roofline = roofline_figure(alone, CEILINGS, designs=designs)
    others = [time_figure(alone, [], "t", designs), fraction_figure(alone, "t", designs)]
    for figure in (roofline, *others):
        colours = {line.get_color() for axes in figure.axes for line in axes.lines}
        assert wanted in colours
        assert style.design_styles(designs)["a"][0] not in colours
    experts = experts_figure([layers(kernel="b")], [], "t", designs)
    assert wanted in {line.get_color() for line in experts.axes[0].lines}


def test_the_fastest_of_each_problem_is_shown_in_per_cent():
    points = [
        synthetic_point("a", 1, 10.0, bound_us=8.1),
        synthetic_point("b", 1, 11.0, bound_us=8.1),
        synthetic_point("c", 1, 1.0, bound_us=8.1, doubt="wrong"),
        synthetic_point("c", 2, 1.0, bound_us=8.1, doubt="wrong"),
    ]
    assert {key[1]: p.kernel for key, p in fastest(points).items()} == {1: "a", 2: "c"}
    cells = [text.get_text() for text in fraction_figure(points, "synthetic").axes[0].texts]
    assert cells == ["81", "×"]


def test_a_landscape_tells_the_spread_the_best_and_the_default():
    found = {(v.parameter, v.value): v for v in landscape()}
    # what is the same in all configs says nothing
    assert {name for name, _ in found} == {"tile_m", "num_stages"}
    assert [value for name, value in found if name == "tile_m"] == ["16", "32", "128"]
    sixteen = found["tile_m", "16"]
    assert (sixteen.count, sixteen.best, sixteen.default) == (2, 1, 0)
    assert sixteen.ratios == pytest.approx((1.0, 1.05, 1.1, 1.15, 1.2))
    assert found["tile_m", "32"].default == 1


def test_a_waterfall_is_made_of_its_pieces_and_says_what_is_modelled():
    figure = waterfall_figure([FALL], "synthetic")
    found = texts(figure)
    for wanted in ("bytes (modelled)", "launch (modelled)", "rest", "all", "12 µs measured"):
        assert wanted in found
    bars = figure.axes[0].patches
    assert [bar.get_x() for bar in bars] == pytest.approx([0, 0, 8, 8.7, 0])
    assert [bar.get_width() for bar in bars] == pytest.approx([8, 2, 0.7, 3.3, 12])
    assert Fall.of(asdict(FALL)) == FALL


def test_experts_are_drawn_in_per_cent_of_the_bound():
    points = [layers(4, 10.0), layers(16, 20.0)]
    peer = Peer("humming", "4-bit", "E8 k2 64→128", 4, 16.0, "2026-11-22", "synthetic")
    figure = experts_figure(points, [peer], "synthetic")
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert [80.0, 80.0] in [pytest.approx(y) for y in drawn]
    # the bound is 8 us of the 16 that the peer takes
    assert [50.0] in drawn
