"""The roofline's arithmetic and figures, on synthetic rows."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from boxes import covering, outside, polygons, texts

from ferrum_numba.perf.problems import CURVE
from ferrum_numba.results import Planned, Row
from ferrum_numba.roofline import bound, ceilings, labels, points, style
from ferrum_numba.roofline.ceilings import Ceiling
from ferrum_numba.roofline.plot import plot, roofline_figure
from ferrum_numba.roofline.points import Point

DRAM = Ceiling("DRAM read", "memory", 4400.0, "GB/s", "measured", 4380.0, 4420.0)
MMA = Ceiling("mma.sync", "tensor", 660.0, "TFLOP/s", "measured", 650.0, 670.0)
WGMMA = Ceiling("wgmma", "tensor", 880.0, "TFLOP/s", "measured", 870.0, 890.0)
SHEET = (
    Ceiling("DRAM", "memory", 4800.0, "GB/s", "datasheet", 4800.0, 4800.0),
    Ceiling("tensor cores", "tensor", 989.4, "TFLOP/s", "datasheet", 989.4, 989.4),
)
CEILINGS = (DRAM, MMA, WGMMA, *SHEET)
# as many as a board may have: memory levels, units of several types, two paces
MANY = (
    *CEILINGS,
    Ceiling("L2 read", "cache", 9500.0, "GB/s", "measured", 9400.0, 9600.0),
    Ceiling("shared memory", "cache", 31000.0, "GB/s", "measured", 30900.0, 31100.0),
    Ceiling("dequant f16", "unpack", 16.8, "10^12 weights/s", "measured", 16.7, 16.9),
    Ceiling("fma f32", "alu", 57.0, "TFLOP/s", "measured", 56.0, 58.0),
    Ceiling("wgmma fp8", "tensor", 1500.0, "TFLOP/s", "measured", 1490.0, 1510.0),
    Ceiling("wgmma bf16", "tensor", 875.0, "TFLOP/s", "measured", 870.0, 880.0, pace="burst"),
    Ceiling("wgmma bf16", "tensor", 700.0, "TFLOP/s", "measured", 690.0, 710.0, pace="sustained"),
    Ceiling("launch floor", "latency", 0.65, "us", "measured", 0.6, 0.7),
)


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
        "bound_us": 0.8 * us, "sheet_us": 0.7 * us, "limit": "memory",
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
    assert ceilings.ridge(DRAM, WGMMA) == pytest.approx(880e12 / 4400e9)
    assert ceilings.ridge(DRAM, MMA) == 150.0


def test_floors_are_work_over_rate():
    assert bound.memory_floor_us(44e6, DRAM) == pytest.approx(10.0)
    assert bound.tensor_floor_us(8.8e9, WGMMA) == pytest.approx(10.0)


def test_a_point_holds_the_rates_of_its_row():
    point = points.point(synthetic_row(), "128×64", CEILINGS)
    assert point.intensity == pytest.approx(20e12 / 4000e9)
    assert point.tflops == pytest.approx(20.0)
    assert (point.us_low, point.us_high) == (9.5, 11.0)
    # 40 kB at 4400 GB/s, with no launch measured
    assert point.bound_us == pytest.approx(40e6 / 4400e3)
    assert point.sheet_us == pytest.approx(40e6 / 4800e3)
    assert point.fraction == point.bound_us / 10.0
    assert point.size == 8
    assert point.doubt == ""


def test_stated_work_is_preferred_to_rounded_rates():
    assert bound.work(synthetic_row(flops=123456789, bytes=456789)) == (123456789.0, 456789.0)


@pytest.mark.parametrize(
    "changes",
    [{"us": None}, {"us": math.nan}, {"us": 0.0}, {"gbps": None}, {"tflops": math.inf}],
    ids=str,
)
def test_a_row_without_time_or_work_has_no_point(changes):
    assert points.point(synthetic_row(**changes), "all", CEILINGS) is None


def test_a_modelled_point_lies_at_its_bound():
    built = {"registers": 64, "spill_bytes": 0, "smem_bytes": 0, "blocks_per_sm": 1}
    planned = Planned(
        "synthetic", "gemm", {"M": 8}, {}, "sm_90a", **built, flops=8.8e10, bytes=1e6,
        bound_us=100.0, status="ok", reason="",
    )  # fmt: skip
    point = points.modelled_point(planned, "all")
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
    assert points.doubt(synthetic_row(**changes), CEILINGS) == wanted


def test_measured_ceilings_have_slack_where_no_datasheet_is_known():
    assert points.doubt(synthetic_row(gbps=4600.0), (DRAM,)) == ""
    assert "above the 4620 GB/s" in points.doubt(synthetic_row(gbps=4630.0), (DRAM,))


@pytest.mark.parametrize(
    ("flops", "size_bytes", "wanted"),
    [(1e9, 1e6, "latency"), (1e9, 1e8, "memory"), (1e11, 1e8, "tensor")],
    ids=lambda value: str(value),
)
def test_the_limit_follows_from_the_work(flops, size_bytes, wanted):
    assert points.limit_of(synthetic_row(flops=flops, bytes=size_bytes), CEILINGS) == wanted


def test_without_ceilings_the_limit_is_unknown():
    assert points.limit_of(synthetic_row(), ()) == "unknown"


def test_ceiling_rows_are_told_apart_and_the_best_one_wins():
    def row(kernel, **changes):
        return synthetic_row(kernel=kernel, us=10.0, us_low=8.0, us_high=12.5, **changes)

    found = ceilings.measured_ceilings(
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
        "L2 read": ("cache", 6000.0, "GB/s"),
        "mma.sync": ("tensor", 660.0, "TFLOP/s"),
        "fma f32": ("alu", 60.0, "TFLOP/s"),
        "empty": ("latency", 0.5, "us"),
    }
    assert (found[0].low, found[0].high) == pytest.approx((3520.0, 5500.0))


def test_a_roof_is_measured_before_it_is_datasheet():
    assert ceilings.roof(CEILINGS, "tensor") is WGMMA
    assert ceilings.roof(SHEET, "tensor") is SHEET[1]
    assert ceilings.roof(CEILINGS, "memory", "datasheet") is SHEET[0]
    assert ceilings.roof((), "memory") is None


def test_a_roof_is_of_the_operands_asked_for():
    assert ceilings.roof(MANY, "tensor") is WGMMA
    assert ceilings.roof(MANY, "tensor", dtype="fp8").name == "wgmma fp8"
    assert ceilings.roof((MANY[-2],), "tensor", dtype="fp16") is MANY[-2]


def test_a_ceiling_row_says_its_pace_and_its_clock():
    rows = [
        synthetic_row(kernel=f"wgmma_bf16_{pace}", gbps=0.0, tflops=rate, clock_mhz=[1980.0, clock])
        for pace, rate, clock in (("burst", 880.0, 1900.0), ("sustained", 700.0, 1500.0))
    ]
    burst, sustained = ceilings.measured_ceilings(rows, "GPU-1")
    assert (burst.name, burst.pace, burst.clock_mhz) == ("wgmma bf16", "burst", 1900.0)
    assert (sustained.name, sustained.pace, sustained.board) == ("wgmma bf16", "sustained", "GPU-1")
    assert ceilings.bands([burst, sustained, DRAM]) == [(sustained, burst)]


def test_a_ceiling_row_that_says_what_it_is_is_believed():
    row = synthetic_row(
        kernel="shared_read", us=10.0, us_low=8.0, us_high=12.5, gbps=1.0, tflops=0.0,
        ceiling={"kind": "shared memory", "dtype": "", "fed": False, "per": 1}, unit="GB/s",
        rate=31000.0, clock_mhz=[1980.0, 1980.0],
        sustained={"us": 11.0, "us_low": 10.5, "us_high": 11.5, "rate": 28000.0,
                   "clock_mhz": 1755.0},
    )  # fmt: skip
    burst, sustained = ceilings.measured_ceilings([row])
    assert (burst.kind, burst.rate, burst.pace, burst.clock_mhz) == (
        "cache",
        31000.0,
        "burst",
        1980,
    )
    assert (burst.low, burst.high) == pytest.approx((24800.0, 38750.0))
    assert (sustained.rate, sustained.pace, sustained.clock_mhz) == (28000.0, "sustained", 1755.0)
    assert (sustained.low, sustained.high) == pytest.approx((28000 * 11 / 11.5, 28000 * 11 / 10.5))


@pytest.mark.parametrize(
    ("kernel", "about", "unit", "wanted"),
    [
        ("wgmma_fp8_fed", {"kind": "tensor", "dtype": "fp8", "fed": True}, "TFLOP/s", "fp8"),
        ("mma_sync", {"kind": "tensor", "dtype": "fp16", "fed": False}, "TFLOP/s", "fp16"),
        ("lop3", {"kind": "ALU", "dtype": "int32"}, "TOP/s", "int32"),
    ],
    ids=["fp8", "fp16", "int"],
)
def test_a_ceiling_row_says_its_type(kernel, about, unit, wanted):
    row = synthetic_row(kernel=kernel, gbps=0.0, tflops=1.0, ceiling=about, unit=unit, rate=500.0)
    (found,) = ceilings.measured_ceilings([row])
    assert (found.operands, found.unit, found.rate) == (wanted, unit, 500.0)


def test_a_barrier_is_measured_by_what_one_takes():
    row = synthetic_row(
        kernel="grid_barrier", us=100.0, us_low=99.0, us_high=102.0, gbps=0.0, tflops=0.0,
        ceiling={"kind": "latency", "per": 100}, unit="us", rate=1.0,
    )  # fmt: skip
    (found,) = ceilings.measured_ceilings([row])
    assert (found.rate, found.low, found.high) == pytest.approx((1.0, 0.99, 1.02))
    # neither is what a launch costs
    assert ceilings.launch_floor([found]) is None


def test_counted_traffic_is_drawn_beside_its_point():
    row = synthetic_row(counters={"dram_bytes": 8e4})
    found = points.point(row, "128×64", CEILINGS)
    assert found.traffic == 8e4
    figure = roofline_figure([found], CEILINGS)
    assert "at the traffic that was counted" in texts(figure)
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "|"]
    assert marks[0].get_xdata() == [found.flops / 8e4]


def test_a_bound_is_the_longest_term_and_the_launch():
    problem = {"M": 8, "N": 4096, "K": 4096, "group_size": 128}
    found = bound.bound_of((2 * 8 * 4096 * 4096, 44e6), problem, MANY)
    assert found.launch_us == 0.65
    assert found.us == pytest.approx(10.0 + 0.65)
    assert found.limit == "memory"
    unpack = next(term for term in found.terms if term.limit == "unpack")
    assert unpack.us == pytest.approx(4096 * 4096 / 16.8e6)
    assert bound.bound_of((1.0, 1.0), problem, (DRAM,)) is None


def test_unpacking_can_bind():
    problem = {"M": 8, "N": 28672, "K": 8192, "group_size": 128}
    slow = Ceiling("dequant", "unpack", 1.0, "10^12 weights/s", "measured", 1.0, 1.0)
    assert bound.bound_of((1e9, 1.2e8), problem, (*CEILINGS, slow)).limit == "unpack"


def test_of_experts_only_the_weights_that_are_hit_are_unpacked():
    layer = {"tokens": 1, "num_experts": 8, "top_k": 2, "K": 64, "N": 128, "group_size": 64}
    assert bound.num_weights(layer) == pytest.approx(2 * 64 * 128)
    assert bound.num_weights(layer | {"tokens": 1000}) == pytest.approx(8 * 64 * 128)
    assert bound.num_weights({"tokens": 1}) == 0


def test_the_bound_at_the_clock_that_was_held():
    clocked = replace(WGMMA, clock_mhz=1800.0)
    tensor = bound.bound_of((8.8e10, 1e6), {}, (DRAM, clocked))
    assert tensor.us == pytest.approx(100.0)
    assert bound.clocked(tensor, 1500.0) == pytest.approx(120.0)
    assert bound.clocked(tensor, 1980.0) == tensor.us
    assert bound.clocked(tensor, None) == tensor.us
    # memory has a clock of its own
    memory = bound.bound_of((1e6, 4.4e8), {}, (DRAM, clocked))
    assert bound.clocked(memory, 1000.0) == memory.us


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"tile_m": 16, "tile_n": 64, "split_k": 2}, 2 * 4 * 2 / 132),
        ({"tile_m": 32, "tile_n": 128, "stripes": False}, 2 / 132),
        ({"tile_m": 32, "tile_n": 128, "stripes": True}, None),
        ({"tile_m": 32}, None),
    ],
    ids=["split", "tiles", "stripes", "unknown"],
)
def test_waves_are_counted_where_blocks_take_whole_tiles(config, wanted):
    row = synthetic_row(config=config, problem={"M": 32, "N": 256, "K": 128})
    assert bound.waves(row, 132) == wanted


def test_the_pieces_of_a_time_add_up_to_it():
    row = synthetic_row(
        us=200.0, flops=8.8e10, bytes=1e6, clock_mhz=[1980.0, 1500.0],
        config={"tile_m": 128, "tile_n": 128, "stripes": False},
        problem={"M": 4096, "N": 4096, "K": 4096},
    )  # fmt: skip
    found = (DRAM, replace(WGMMA, clock_mhz=1800.0), MANY[-1])
    limit = points.row_bound(row, found)
    pieces = {piece.name: piece for piece in bound.pieces(row, limit, found, 132)}
    assert pieces["products"].us == pytest.approx(100.0)
    assert pieces["launch"].us == 0.65
    assert pieces["clocks"].us == pytest.approx(20.0)
    # 1024 tiles on 132 SMs: 7.76 waves
    assert pieces["tail"].us == pytest.approx(100 * (8 / (1024 / 132) - 1))
    on_top = sum(pieces[name].us for name in ("launch", "tail", "clocks", "rest"))
    assert pieces["products"].us + on_top == pytest.approx(200.0)


def named_in(figure):
    return [entry.get_text() for legend in figure.legends for entry in legend.get_texts()]


def test_arrows_lead_from_before_to_now():
    now = [synthetic_point(size=size, us=us) for size, us in ((1, 8.0), (16, 20.0))]
    before = [replace(p, us=us, kernel="older") for p, us in zip(now, (16.0, 10.0), strict=True)]
    figure = roofline_figure(now, CEILINGS, before=before)
    axes = figure.axes[0]
    arrows = [one for one in axes.texts if getattr(one, "xyann", None) and not one.get_text()]
    assert [(arrow.xyann, arrow.xy) for arrow in arrows] == [
        ((old.intensity, old.tflops), (new.intensity, new.tflops))
        for old, new in zip(before, now, strict=True)
    ]
    names = [entry.get_text() for legend in figure.legends for entry in legend.get_texts()]
    assert {"older", "synthetic", "before; the arrow leads to now"} <= set(names)
    names = [
        e.get_text() for legend in roofline_figure(now, CEILINGS).legends for e in legend.texts
    ]
    assert "synthetic" in names
    assert not [name for name in names if "arrow" in name]


def test_a_notebook_shows_a_roofline():
    svg = plot(synthetic_sweep(), CEILINGS)
    assert svg._repr_html_() == svg


def test_shapes_name_what_varies():
    problems = [{"M": 1, "N": 64, "K": 128, "bias": False, "group_size": g} for g in (64, 128)]
    shown = points.varying(problems)
    assert shown == {"group_size"}
    assert points.shape_of(problems[0], shown) == "128×64 group_size=64"
    assert sorted(["28672×8192", "8192×64", "4096×4096"], key=points.natural) == [
        "4096×4096", "8192×64", "28672×8192",
    ]  # fmt: skip


def test_a_layer_of_experts_is_named_by_its_sizes():
    layer = {"tokens": 4, "num_experts": 8, "top_k": 2, "N": 128, "K": 64, "routing": "skewed"}
    others = [{**layer, "per_pair": flag, "routing": "uniform"} for flag in (False, True)]
    shown = points.varying([layer, *others])
    assert points.shape_of(layer, shown) == "E8 k2 64→128 skewed"
    assert [points.shape_of(one, shown) for one in others] == [
        "E8 k2 64→128 uniform", "E8 k2 64→128 uniform per_pair",
    ]  # fmt: skip
    assert points.titled("E8 k2 64→128") == "E8 k2 64→128"
    # a step of a layer that has no weight
    step = {"tokens": 4, "num_experts": 8, "top_k": 2}
    assert points.shape_of(step, frozenset({"num_experts"})) == "num_experts=8"


def test_a_field_that_only_some_problems_have_varies():
    assert points.varying([{"M": 1}, {"M": 1, "experts": 8}]) == {"experts"}


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


def test_the_roofline_says_its_numbers():
    points = [*synthetic_sweep(), synthetic_point(size=2, modelled=True)]
    found = texts(roofline_figure(points, CEILINGS))
    assert {"ridge 200 FLOP/B", "ridge 150 FLOP/B"} <= set(found)
    assert "datasheet 4.80 TB/s · DRAM read 4.40 TB/s" in found
    for wanted in (
        "wgmma 880 TFLOP/s", "mma.sync 660 TFLOP/s", "datasheet 989.4 TFLOP/s", "M=1", "M=1024",
        "hollow: failed or untrusted", "modelled: the bound, not measured", "K×N 128×64",
    ):  # fmt: skip
        assert wanted in found


@pytest.mark.parametrize("dpi", [100, 300], ids=["screen", "print"])
@pytest.mark.parametrize("shape", ["128×64", "128×64 group_size=128 gptq"], ids=len)
@pytest.mark.parametrize("found", [CEILINGS, MANY], ids=["few", "many"])
def test_no_label_covers_another_and_none_is_clipped(shape, found, dpi):
    figure = roofline_figure([replace(p, shape=shape) for p in synthetic_sweep()], found)
    figure.set_dpi(dpi)
    boxes = polygons(figure)
    assert len(boxes) > 20
    assert covering(boxes) == []
    assert outside(figure, boxes) == []


def test_of_very_many_sizes_those_close_to_another_have_no_label():
    found = texts(roofline_figure([synthetic_point(size=m) for m in CURVE], CEILINGS))
    labelled = [int(text[2:]) for text in found if text.startswith("M=")]
    assert len(labelled) > 6
    assert all(size & (size - 1) == 0 for size in labelled)
    few = texts(roofline_figure([synthetic_point(size=m) for m in CURVE[4:9]], CEILINGS))
    assert {"M=16", "M=17"} <= set(few)


def test_a_figure_drawn_twice_is_the_same_text():
    first, second = (plot(synthetic_sweep(), CEILINGS) for _ in range(2))
    assert first == second
    assert not re.search(r"\d{4}-\d\d-\d\d", first)


def test_an_svg_follows_the_colour_of_its_page():
    svg = plot(synthetic_sweep(), CEILINGS, 'a "b" <c>')
    assert style.INK not in svg
    assert "currentColor" in svg
    assert 'aria-label="a &quot;b&quot; &lt;c>"' in svg


def test_an_svg_says_a_style_once_and_keeps_what_is_drawn():
    figure = roofline_figure(synthetic_sweep(), CEILINGS)
    svg = style.to_svg(figure, "one", "t")
    assert " style=" not in svg
    (key,) = re.findall(r'id="one" class="(\w+)"', svg)
    body = re.sub(r"<style>.*?</style>", "", svg)
    classes = {one for found in re.findall(r'class="([^"]+)"', body) for one in found.split()}
    assert classes == {key, *re.findall(rf"\.{key} \.(\w+)\{{", svg)}
    drawn = set(re.findall(r">([^<>]+)</text>", svg))
    assert set(texts(figure)) - {""} <= drawn | {"0.1", "5000"}
    assert not re.search(r"\.\d{3}", re.sub(r"<style>.*?</style>", "", svg))


def test_a_png_is_a_png():
    figure = roofline_figure([], CEILINGS)
    assert style.to_png(figure).startswith(b"\x89PNG")


def test_kernels_keep_their_style_and_differ_beyond_the_palette():
    found = style.design_styles(f"k{i:02}" for i in range(20))
    assert len(set(found.values())) == 20
    assert found == style.design_styles(reversed(list(found)))


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
