"""The roofline's arithmetic and figures, on synthetic rows."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from ferrum_numba.perf.problems import CURVE
from ferrum_numba.results import Planned, Row
from ferrum_numba.roofline import labels, model, panels, style
from ferrum_numba.roofline.model import Ceiling, Peer, Point
from ferrum_numba.roofline.plot import plot, roofline_figure

DRAM = Ceiling("DRAM read", "memory", 4400.0, "GB/s", "measured", 4380.0, 4420.0)
MMA = Ceiling("mma.sync", "tensor", 660.0, "TFLOP/s", "measured", 650.0, 670.0)
WGMMA = Ceiling("wgmma", "tensor", 880.0, "TFLOP/s", "measured", 870.0, 890.0)
SHEET = (
    Ceiling("DRAM", "memory", 4800.0, "GB/s", "datasheet", 4800.0, 4800.0),
    Ceiling("tensor cores", "tensor", 989.4, "TFLOP/s", "datasheet", 989.4, 989.4),
)
CEILINGS = (DRAM, MMA, WGMMA, *SHEET)


def synthetic_row(**changes):
    row = {
        "kernel": "synthetic", "op": "gemm", "problem": {"M": 8, "N": 64, "K": 128},
        "config": {}, "regime": "cold", "us": 10.0, "us_low": 9.5, "us_high": 11.0,
        "gbps": 4000.0, "tflops": 20.0, "bound_us": 8.0, "ok": True, "status": "measured",
        "reason": "",
    }  # fmt: skip
    return Row.from_json(row | changes)


def synthetic_point(kernel="synthetic", size=8, us=10.0, **changes):
    m = size or 1
    point = {
        "kernel": kernel, "shape": "128×64", "size": size, "regime": "cold", "flops": m * 25e6,
        "bytes": 4e7 + m * 1e4, "us": us, "us_low": us * 0.98, "us_high": us * 1.03,
        "fraction": 0.8,
    }  # fmt: skip
    return Point(**point | changes)


def synthetic_sweep():
    sizes = (1, 4, 16, 64, 256, 1024)
    good = [synthetic_point(k, m, 10.0 + m / 20 + i) for i, k in enumerate("ab") for m in sizes]
    return [*good, synthetic_point("b", 16, 5.0, doubt="wrong")]


class Balanced(HTMLParser):
    """Collects what is not closed, what is closed and never opened, and every attribute."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.tags, self.attributes = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def assert_good_svg(svg):
    parser = Balanced()
    parser.feed(svg)
    assert parser.open == []
    assert parser.wrong == []
    assert not re.search(r"\b(nan|inf)\b", svg, re.IGNORECASE)
    outside = [v for name, v in parser.attributes if "xmlns" not in name and v and "//" in v]
    assert outside == []
    ids = [value for name, value in parser.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [v[1:] for name, v in parser.attributes if name.endswith("href")]
    targets += re.findall(r"url\(#([^)]+)\)", svg)
    assert set(targets) <= set(ids)


def test_the_ridge_is_flops_over_bytes():
    assert model.ridge(DRAM, WGMMA) == pytest.approx(880e12 / 4400e9)
    assert model.ridge(DRAM, MMA) == 150.0


def test_floors_are_work_over_rate():
    assert model.memory_floor_us(44e6, DRAM) == pytest.approx(10.0)
    assert model.tensor_floor_us(8.8e9, WGMMA) == pytest.approx(10.0)


def test_a_point_holds_the_rates_of_its_row():
    point = model.point(synthetic_row(), "128×64", CEILINGS)
    assert point.intensity == pytest.approx(20e12 / 4000e9)
    assert point.tflops == pytest.approx(20.0)
    assert (point.us_low, point.us_high, point.fraction) == (9.5, 11.0, 0.8)
    assert point.size == 8
    assert point.doubt == ""


def test_stated_work_is_preferred_to_rounded_rates():
    assert model.work(synthetic_row(flops=123456789, bytes=456789)) == (123456789.0, 456789.0)


@pytest.mark.parametrize(
    "changes",
    [{"us": None}, {"us": math.nan}, {"us": 0.0}, {"gbps": None}, {"tflops": math.inf}],
    ids=str,
)
def test_a_row_without_time_or_work_has_no_point(changes):
    assert model.point(synthetic_row(**changes), "all", CEILINGS) is None


def test_a_modelled_point_lies_at_its_bound():
    built = {"registers": 64, "spill_bytes": 0, "smem_bytes": 0, "blocks_per_sm": 1}
    planned = Planned(
        "synthetic", "gemm", {"M": 8}, {}, "sm_90a", **built, flops=8.8e10, bytes=1e6,
        bound_us=100.0, status="ok", reason="",
    )  # fmt: skip
    point = model.modelled_point(planned, "all")
    assert point.modelled
    assert point.tflops == pytest.approx(880.0)
    assert point.fraction is None


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, ""),
        ({"ok": False, "status": "wrong", "reason": "off by one"}, "off by one"),
        ({"untrusted": "2 other processes"}, "2 other processes"),
        ({"gbps": 4900.0}, "4900 GB/s is above the 4800 GB/s this GPU can reach"),
        ({"gbps": 4900.0, "regime": "warm"}, ""),
        ({"tflops": 1000.0}, "1000 TFLOP/s is above the 989 TFLOP/s this GPU can reach"),
    ],
    ids=["good", "wrong", "shared", "faster-than-memory", "warm-in-l2", "faster-than-tensor"],
)
def test_doubt_says_why(changes, wanted):
    assert model.doubt(synthetic_row(**changes), CEILINGS) == wanted


def test_measured_ceilings_have_slack_where_no_datasheet_is_known():
    assert model.doubt(synthetic_row(gbps=4600.0), (DRAM,)) == ""
    assert "above the 4620 GB/s" in model.doubt(synthetic_row(gbps=4630.0), (DRAM,))


@pytest.mark.parametrize(
    ("flops", "size_bytes", "wanted"),
    [(1e9, 1e6, "latency"), (1e9, 1e8, "memory"), (1e11, 1e8, "tensor")],
    ids=lambda value: str(value),
)
def test_the_limit_follows_from_the_work(flops, size_bytes, wanted):
    assert model.limit_of(synthetic_row(flops=flops, bytes=size_bytes), CEILINGS) == wanted


def test_without_ceilings_the_limit_is_unknown():
    assert model.limit_of(synthetic_row(), ()) == "unknown"


def test_ceiling_rows_are_told_apart_and_the_best_one_wins():
    def row(kernel, **changes):
        return synthetic_row(kernel=kernel, us=10.0, us_low=8.0, us_high=12.5, **changes)

    found = model.measured_ceilings(
        [
            row("dram_read", gbps=4000.0, tflops=0.0),
            row("dram_read", gbps=4400.0, tflops=0.0),
            row("dram_read", gbps=9000.0, tflops=0.0, ok=False),
            row("l2_read", gbps=6000.0, tflops=0.0),
            row("mma_sync", gbps=0.0, tflops=660.0),
            row("fma_f32", gbps=0.0, tflops=60.0),
            row("empty", gbps=0.0, tflops=0.0),
            replace(row("empty", gbps=0.0, tflops=0.0), us=0.5, us_low=0.4, us_high=0.6),
        ]
    )
    assert {c.name: (c.kind, c.rate, c.unit) for c in found} == {
        "DRAM read": ("memory", 4400.0, "GB/s"),
        "L2 read": ("other", 6000.0, "GB/s"),
        "mma.sync": ("tensor", 660.0, "TFLOP/s"),
        "fma f32": ("other", 60.0, "TFLOP/s"),
        "empty": ("latency", 0.5, "us"),
    }
    assert (found[0].low, found[0].high) == pytest.approx((3520.0, 5500.0))


def test_a_roof_is_measured_before_it_is_datasheet():
    assert model.roof(CEILINGS, "tensor") is WGMMA
    assert model.roof(SHEET, "tensor") is SHEET[1]
    assert model.roof(CEILINGS, "memory", "datasheet") is SHEET[0]
    assert model.roof((), "memory") is None


def test_shapes_name_what_varies():
    problems = [{"M": 1, "N": 64, "K": 128, "bias": False, "group_size": g} for g in (64, 128)]
    shown = model.varying(problems)
    assert shown == {"group_size"}
    assert model.shape_of(problems[0], shown) == "128×64 group_size=64"
    assert sorted(["28672×8192", "8192×64", "4096×4096"], key=model.natural) == [
        "4096×4096", "8192×64", "28672×8192",
    ]  # fmt: skip


def test_a_layer_of_experts_is_named_by_its_sizes():
    layer = {"tokens": 4, "num_experts": 8, "top_k": 2, "N": 128, "K": 64, "routing": "skewed"}
    others = [{**layer, "per_pair": flag, "routing": "uniform"} for flag in (False, True)]
    shown = model.varying([layer, *others])
    assert model.shape_of(layer, shown) == "E8 k2 64→128 skewed"
    assert [model.shape_of(one, shown) for one in others] == [
        "E8 k2 64→128 uniform", "E8 k2 64→128 uniform per_pair",
    ]  # fmt: skip
    assert model.titled("E8 k2 64→128") == "E8 k2 64→128"
    # a step of a layer that has no weight
    step = {"tokens": 4, "num_experts": 8, "top_k": 2}
    assert model.shape_of(step, frozenset({"num_experts"})) == "num_experts=8"


def test_a_field_that_only_some_problems_have_varies():
    assert model.varying([{"M": 1}, {"M": 1, "experts": 8}]) == {"experts"}


@pytest.mark.parametrize(
    ("points", "ceilings"),
    [
        (synthetic_sweep(), CEILINGS),
        (synthetic_sweep(), ()),
        (synthetic_sweep(), (DRAM,)),
        (synthetic_sweep(), (WGMMA,)),
        (synthetic_sweep(), SHEET),
        ([synthetic_point(size=None)], CEILINGS),
        ([synthetic_point(modelled=True)], SHEET),
        ([], CEILINGS),
        ([], ()),
    ],
    ids=["all", "no-ceilings", "memory-only", "tensor-only", "datasheet-only", "no-size",
         "modelled", "no-points", "nothing"],
)  # fmt: skip
def test_the_roofline_draws_what_is_there(points, ceilings):
    assert_good_svg(plot(points, ceilings))


def texts(figure):
    """Return every text of a figure, legends included."""
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    found += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return [*found, *(text.get_text() for text in figure.texts)]


def test_the_roofline_says_its_numbers():
    points = [*synthetic_sweep(), synthetic_point(size=2, modelled=True)]
    found = texts(roofline_figure(points, CEILINGS))
    assert "ridge 200 FLOP/B = 880 TFLOP/s / 4.40 TB/s" in found
    assert "ridge 150 FLOP/B = 660 TFLOP/s / 4.40 TB/s" in found
    assert "DRAM read 4.40 TB/s · datasheet 4.80 TB/s" in found
    for wanted in (
        "wgmma 880 TFLOP/s", "mma.sync 660 TFLOP/s", "datasheet 989.4 TFLOP/s", "M=1", "M=1024",
        "hollow: failed or untrusted", "modelled: the bound, not measured", "K×N 128×64",
    ):  # fmt: skip
        assert wanted in found


@pytest.mark.parametrize("shape", ["128×64", "128×64 group_size=128 gptq"], ids=len)
def test_no_label_covers_another_and_none_is_clipped(shape):
    points = [replace(p, shape=shape) for p in synthetic_sweep()]
    figure = roofline_figure(points, CEILINGS)
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    shown = [t for axes in figure.axes for t in axes.texts if t.get_rotation() in (0.0, 90.0)]
    shown += [t for legend in figure.legends for t in legend.get_texts()]
    boxes = [text.get_window_extent(renderer) for text in shown]
    assert len(boxes) > 10
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_of_very_many_sizes_those_close_to_another_have_no_label():
    found = texts(roofline_figure([synthetic_point(size=m) for m in CURVE], CEILINGS))
    labelled = [int(text[2:]) for text in found if text.startswith("M=")]
    assert len(labelled) > 6
    assert all(size & (size - 1) == 0 for size in labelled)
    few = texts(roofline_figure([synthetic_point(size=m) for m in CURVE[4:9]], CEILINGS))
    assert {"M=16", "M=17"} <= set(few)


def test_of_each_kind_the_fastest_peer_is_drawn():
    points = [synthetic_point(size=size) for size in (1, 8)]
    peers = [
        model.Peer(name, kind, points[0].shape, size, us, "2026-12-01", "synthetic")
        for name, kind, us in [
            ("fast", "4-bit", 3.0), ("slow", "4-bit", 4.0), ("cuBLAS", "fp16", 20.0),
            ("cuBLAS", "fp16", 21.0),
        ] for size in (1, 8)
    ]  # fmt: skip
    figure = panels.time_figure(points, peers, CEILINGS, "synthetic")
    drawn = [
        line.get_ydata() for line in figure.axes[0].lines if line.get_linestyle() in (":", "-.")
    ]
    assert [list(y) for y in drawn] == [[3.0, 3.0], [20.0, 20.0]]
    assert "best 4-bit peer: fast" in texts(figure)


def test_the_cells_of_many_sizes_have_room_for_their_numbers():
    sizes = [2**i + j for i in range(3, 13) for j in (0, 1, 2)]
    points = [synthetic_point(size=m, fraction=0.5) for m in sizes]
    figure = panels.fraction_figure(points, "synthetic")
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert len(boxes) == len(sizes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    ticks = [label.get_window_extent(renderer) for label in figure.axes[0].get_xticklabels()]
    assert not any(a.overlaps(b) for i, a in enumerate(ticks) for b in ticks[:i])


PEERS = [
    Peer("humming", "4-bit", "128×64", 16, 12.0, "2026-11-22", "synthetic"),
    Peer("machete", "4-bit", "128×64", 16, 14.0, "2026-11-22", "synthetic"),
    Peer("machete", "4-bit", "128×64", 64, 13.0, "2026-11-22", "synthetic"),
    Peer("cuBLAS fp16", "fp16", "128×64", 16, 30.0, "2026-11-22", "synthetic"),
]


@pytest.mark.parametrize("peers", [PEERS, PEERS[:1], PEERS[3:], []], ids=len)
@pytest.mark.parametrize("ceilings", [CEILINGS, (DRAM,), ()], ids=len)
def test_the_time_figure_draws_what_is_there(peers, ceilings):
    figure = panels.time_figure(synthetic_sweep(), peers, ceilings, "synthetic")
    assert_good_svg(style.to_svg(figure, "time", "synthetic"))


def test_the_time_figure_names_the_best_peer_of_each_size():
    found = texts(panels.time_figure(synthetic_sweep(), PEERS, CEILINGS, "synthetic"))
    assert "best 4-bit peer: humming" in found
    assert "best 4-bit peer: machete" in found
    assert "cuBLAS fp16" in found
    assert "memory floor (measured 4.40 TB/s)" in found
    assert "tensor floor (measured 880 TFLOP/s)" in found


def test_the_fraction_figure_shows_fractions_and_marks_the_fastest():
    points = [
        synthetic_point("a", 1, 10.0, fraction=0.81),
        synthetic_point("b", 1, 11.0, fraction=0.74),
        synthetic_point("c", 1, 1.0, fraction=8.1, doubt="wrong"),
    ]
    figure = panels.fraction_figure(points, "synthetic")
    cells = {text.get_text(): text.get_fontweight() for text in figure.axes[0].texts}
    assert cells == {"0.81": "bold", "0.74": "normal", "×": "normal"}
    assert_good_svg(style.to_svg(figure, "fraction", "synthetic"))


def test_a_figure_drawn_twice_is_the_same_text():
    first, second = (plot(synthetic_sweep(), CEILINGS) for _ in range(2))
    assert first == second
    assert not re.search(r"\d{4}-\d\d-\d\d", first)


def test_an_svg_follows_the_colour_of_its_page():
    svg = plot(synthetic_sweep(), CEILINGS, 'a "b" <c>')
    assert style.INK not in svg
    assert "currentColor" in svg
    assert 'aria-label="a &quot;b&quot; &lt;c>"' in svg


def test_a_png_is_a_png():
    figure = roofline_figure([], CEILINGS)
    assert style.to_png(figure).startswith(b"\x89PNG")


def test_kernels_keep_their_style_and_differ_beyond_the_palette():
    found = style.kernel_styles(f"k{i:02}" for i in range(20))
    assert len(set(found.values())) == 20
    assert found == style.kernel_styles(reversed(list(found)))


def test_labels_keep_off_each_other_and_off_markers():
    anchors = [((50.0, 50.0), (50.0, 50.0))] * 3
    obstacles = np.array([(50.0, 50.0)])
    boxes = labels.place(anchors, [(20.0, 10.0)] * 3, obstacles, (0.0, 0.0, 100.0, 100.0))
    assert None not in boxes
    for i, a in enumerate(boxes):
        assert not (a[0] < 50 < a[2] and a[1] < 50 < a[3])
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
                       for b in boxes[:i])  # fmt: skip


def test_a_label_without_room_is_left_out():
    boxes = labels.place([((5.0, 5.0), (5.0, 5.0))], [(50.0, 10.0)], np.empty((0, 2)), (0, 0, 9, 9))
    assert boxes == [None]


def test_spread_moves_as_little_as_needed():
    assert labels.spread([10.0, 11.0, 50.0], 15, 0, 100) == [10.0, 25.0, 50.0]
    assert labels.spread([99.0, 98.0], 15, 0, 100) == [100.0, 85.0]
    assert labels.spread([], 15, 0, 100) == []
