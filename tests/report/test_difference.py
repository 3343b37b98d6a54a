"""What has changed since older results, and older results that say nothing."""

from dataclasses import asdict, replace

import pytest
from synthetic import synthetic_environment, synthetic_row

from ferrum_numba.errors import StoreError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.report import Sources, document, write
from ferrum_numba.results import ResultFile

BEFORE = "2026-11-01T00:00:00.000+00:00"


def around(us):
    return [us * (1 + i / 1000) for i in range(-4, 5)]


def row(size, us, kernel="decode", **changes):
    return synthetic_row(kernel, size, us, samples=around(us), **changes)


NOW = [row(1, 30.0), row(2, 40.0), row(4, 30.0), row(8, 35.0)]
OLD = [row(1, 30.0), row(2, 30.0, "older"), row(4, 40.0), row(16, 35.0)]


def changes(old, new=NOW, **environment):
    older = ResultFile(synthetic_environment(date=BEFORE, **environment), old)
    sources = Sources([ResultFile(synthetic_environment(), new)], compare=("old.json", older))
    return document(sources).blocks


def told(found):
    (table,) = [b for b in found if getattr(b, "title", "").startswith("Changes: ")]
    return {cells[1]: dict(zip(table.columns, cells, strict=True)) for cells in table.rows}, table


def test_every_problem_of_both_has_a_verdict():
    found, table = told(changes(OLD))
    verdicts = {size: cells["verdict"] for size, cells in found.items()}
    assert verdicts == {"1": "SAME", "2": "SLOWER", "4": "FASTER"}
    assert (found["2"]["before"], found["2"]["now"]) == ("30.00 older", "40.00 decode")
    assert found["2"]["now / before [low, high]"].startswith("1.333 [")
    # what got slower is seen first
    assert table.emphasis[0] == "bad"
    text = " ".join(getattr(b, "text", "") for b in changes(OLD))
    assert "1 FASTER, 1 SAME, 1 SLOWER of 3 problems; of 1 older problem there is no" in text


def test_arrows_lead_from_what_was_to_what_is_where_it_changed():
    found = changes(OLD)
    (picture,) = [b for b in found if getattr(b, "kind", "") == "arrows"]
    assert picture.name == "gemm-changes"
    moved = {p["size"]: (p["us"], p["kernel"]) for p in picture.data["before"]}
    assert moved == {2: (30.0, "older"), 4: (40.0, "decode")}
    assert {p["size"]: p["us"] for p in picture.data["points"]} == {2: 40.0, 4: 30.0}
    sizes = [[p["size"] for p in picture.data[name]] for name in ("before", "points")]
    assert sizes[0] == sizes[1]
    assert not [b for b in changes([row(1, 30.0)]) if getattr(b, "kind", "") == "arrows"]


def test_two_boards_differ_without_a_meaning():
    slightly = [row(1, 30.6)]
    assert told(changes(slightly))[0]["1"]["verdict"] == "FASTER"
    assert told(changes(slightly, uuid="GPU-other"))[0]["1"]["verdict"] == "SAME"


def test_the_comparison_follows_the_verdict_and_names_its_run():
    found = changes(OLD)
    headings = [b.text for b in found if hasattr(b, "level")]
    assert headings[:3] == ["Verdict", "What to do next", "Against old.json"]
    text = " ".join(getattr(b, "text", "") for b in found)
    assert "run 1: board A, 2026-11-01 00:00, commit 0123abc" in text


@pytest.mark.parametrize(
    ("old", "environment", "wanted"),
    [
        ([], {}, "old.json: it has no row of a kernel that was right"),
        ([replace(OLD[0], op="other")], {},
         "old.json: it is of the Op other; there are results of gemm"),
        (OLD, {"gpu": "NVIDIA A10", "gpu_facts": asdict(KNOWN["a10"])},
         "old.json: it is of the GPU NVIDIA A10; there are results of NVIDIA H200"),
        ([replace(OLD[0], regime="warm")], {},
         "old.json: it is of the regime warm; there are results of cold"),
    ],
    ids=["empty", "op", "gpu", "regime"],
)  # fmt: skip
def test_older_results_that_say_nothing_are_refused_and_nothing_is_written(
    old, environment, wanted, tmp_path
):
    older = ResultFile(synthetic_environment(date=BEFORE, **environment), old)
    sources = Sources([ResultFile(synthetic_environment(), NOW)], compare=("old.json", older))
    with pytest.raises(StoreError) as error:
        write(tmp_path / "report", sources)
    assert str(error.value) == wanted
    assert not (tmp_path / "report").exists()


def test_a_report_compared_with_itself_has_nothing_slower():
    found, _ = told(changes(NOW))
    assert {cells["verdict"] for cells in found.values()} == {"SAME"}
