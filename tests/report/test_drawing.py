"""What is drawn stands beside each picture, and draws it again; a report is replaced as a whole."""

import csv
import io
import json
from dataclasses import replace

import pytest
from synthetic import FULL, contents, synthetic_environment, synthetic_row

from ferrum_numba import whole
from ferrum_numba.report import Sources, Writer, document
from ferrum_numba.report.blocks import Picture
from ferrum_numba.report.drawing import FIGURES, Drawer, as_csv, as_json
from ferrum_numba.results import ResultFile
from ferrum_numba.roofline.bound import hit_experts
from ferrum_numba.roofline.style import design_styles

LAYER = {"num_experts": 8, "top_k": 2, "K": 64, "N": 128, "group_size": 64}


def experts(kernel, tokens, us):
    return synthetic_row(kernel, us=us, op="moe", problem={"tokens": tokens, **LAYER}, bytes=4e7)


def searched(tile, stages, us):
    return synthetic_row("prefill", 8, us, config={"tile_m": tile, "num_stages": stages})


def timed(kernel, size, us):
    return synthetic_row(kernel, size, us, samples=[us] * 9)


SOURCES = replace(
    FULL,
    files=[
        ResultFile(
            synthetic_environment(),
            [
                *FULL.files[0].rows,
                timed("decode", 2, 34.0),
                *(experts("a", m, 20.0) for m in (1, 16, 256)),
            ]
            + [searched(t, s, 36.0 + t / 16 + s) for t in (16, 32, 64) for s in (2, 3, 4)],
        )
    ],
    compare=(
        "old.json",
        ResultFile(
            synthetic_environment(date="2026-11-01T00:00:00.000+00:00"),
            [timed("other", 2, 60.0)],
        ),
    ),
)


@pytest.fixture(scope="module")
def found():
    return document(SOURCES)


def test_the_report_has_every_kind_of_picture(found):
    assert {picture.kind for picture in found.pictures} == set(FIGURES)


def test_a_picture_is_drawn_again_from_its_json(found):
    for picture in found.pictures:
        stored = json.loads(as_json(picture))
        again = Picture(picture.name, stored["title"], stored["figure"], stored["data"])
        assert Drawer().draw(again) == Drawer().draw(picture)


def test_the_csv_has_what_the_json_has(found):
    for picture in found.pictures:
        lines = list(csv.DictReader(io.StringIO(as_csv(picture))))
        counts = {name: len(listed) for name, listed in picture.data.items() if listed}
        assert {name: [r["list"] for r in lines].count(name) for name in counts} == counts
    (roofline,) = [p for p in found.pictures if p.name == "gemm-roofline"]
    lines = list(csv.DictReader(io.StringIO(as_csv(roofline))))
    point = next(one for one in lines if one["kernel"] == "decode" and one["size"] == "8")
    assert float(point["us"]) == 35.13
    assert (point["board"], point["commit"], point["limit"]) == ("A", "0123abc", "memory")
    assert float(point["tflops"]) == pytest.approx(2 * 8 * 28672 * 8192 / 35.13e6)


def test_a_design_has_one_colour_in_all_pictures_of_its_op(found):
    wanted = design_styles(["decode", "prefill", "slow", "wgmma"])
    for picture in found.pictures:
        if picture.name.startswith("gemm-") and picture.kind != "waterfall":
            assert design_styles(picture.data["designs"]) == wanted
            svg, _ = Drawer().draw(picture)
            assert wanted["decode"][0] in svg or picture.kind == "landscape"


def test_a_picture_whose_data_stay_the_same_is_drawn_once(found, monkeypatch):
    drawer, drawn = Drawer(), []
    (picture, *_) = found.pictures
    first = drawer.draw(picture)
    monkeypatch.setitem(FIGURES, picture.kind, lambda title, data: drawn.append(title))
    assert drawer.draw(picture) is not None
    assert drawer.draw(replace(picture, of="another run")) == first
    assert drawn == []


def test_experts_hit_are_those_of_a_uniform_routing():
    assert hit_experts({"tokens": 1, **LAYER}) == pytest.approx(2.0)
    assert hit_experts({"tokens": 2, **LAYER}) == pytest.approx(8 * (1 - 0.75**2))


def test_a_report_that_is_killed_while_it_is_written_is_the_one_before(tmp_path, monkeypatch):
    first = Writer(tmp_path)
    before = contents(first.write(document(FULL)))
    plain, left = whole.writing, [5]

    def killed(path):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return plain(path)

    monkeypatch.setattr(whole, "writing", killed)
    with pytest.raises(KeyboardInterrupt):
        first.write(document(SOURCES))
    assert (tmp_path / "report.html").read_text() == before["report.html"]
    assert not list(tmp_path.glob(".*"))
    # and the next one is whole
    monkeypatch.setattr(whole, "writing", plain)
    assert contents(Writer(tmp_path).write(document(SOURCES)))["report.html"].count("<svg ") == 10


def test_pictures_of_before_do_not_stay(tmp_path):
    one = Writer(tmp_path)
    one.write(document(SOURCES))
    assert (tmp_path / "moe-experts.svg").exists()
    kept = {path.name for path in one.write(document(FULL))}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_pictures_of_an_earlier_report_go_and_other_files_stay(tmp_path):
    Writer(tmp_path).write(document(SOURCES))
    assert (tmp_path / "moe-experts.svg").exists()
    (tmp_path / "notes.md").write_text("mine")
    kept = {path.name for path in Writer(tmp_path).write(document(FULL))}
    assert "moe-experts.svg" not in kept
    assert {path.name for path in tmp_path.iterdir()} == kept | {"notes.md"}


def test_of_a_folder_with_a_damaged_report_nothing_goes(tmp_path):
    Writer(tmp_path).write(document(SOURCES))
    (tmp_path / "report.json").write_text("{")
    Writer(tmp_path).write(document(FULL))
    assert (tmp_path / "moe-experts.svg").exists()


def test_what_was_asked_for_comes_first():
    from ferrum_numba.report import Asked

    rows = SOURCES.files[0].rows
    asked = replace(SOURCES, asked=Asked(kernels=frozenset({"a"})))
    found = document(asked)
    headings = [b.text for b in found.blocks if hasattr(b, "level")]
    assert headings[3:6] == ["What was asked for", "moe", "gemm"]
    titles = [p.title for p in found.pictures if p.name.startswith("asked-")]
    assert all("asked for: moe, NVIDIA H200, cold" in title for title in titles)
    assert len(titles) >= 4
    none = document(replace(SOURCES, asked=Asked(kernels=frozenset({"unmeasured"}))))
    assert any("None of it has been measured" in getattr(b, "text", "") for b in none.blocks)
    assert Sources().asked.concerns(rows[0])
