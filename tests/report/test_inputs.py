"""Result files that a report refuses, each in one sentence."""

import json
from dataclasses import replace

import pytest
from synthetic import ROWS, synthetic_environment, synthetic_row

from ferrum_numba.errors import StoreError
from ferrum_numba.report import Document, checked_results
from ferrum_numba.results import ResultFile, save

SAMPLES = [40.0, 41.0, 42.0, 43.0, 90.0]


@pytest.fixture
def stored(tmp_path):
    """Return a function that stores rows and returns the file's path."""

    def store(*rows):
        save(tmp_path / "gemm.json", ResultFile(synthetic_environment(), [*rows]))
        return tmp_path / "gemm.json"

    return store


def test_a_file_that_is_what_it_says_is_read(stored):
    assert len(checked_results(stored(*ROWS), "h200").rows) == len(ROWS)


@pytest.mark.parametrize("us", [41.0, 42.0, 43.0])
def test_a_time_in_the_middle_of_its_samples_is_believed(stored, us):
    row = synthetic_row(us=us, samples=SAMPLES)
    assert checked_results(stored(row)).rows[0].us == us


@pytest.mark.parametrize("us", [20.0, 40.5, 60.0, 100.0])
def test_samples_that_contradict_their_median_are_refused(stored, us):
    path = stored(synthetic_row(), synthetic_row("b", us=us, samples=SAMPLES))
    with pytest.raises(StoreError) as error:
        checked_results(path)
    assert str(error.value) == (
        f"{path}: row 1: us is {us:g}, and half of its samples are between 41 and 43: "
        "they contradict each other"
    )


def test_results_of_another_gpu_are_refused(stored):
    with pytest.raises(StoreError, match="it is of the GPU h200, where results of a10 belong"):
        checked_results(stored(synthetic_row()), "a10")


def test_results_of_another_op_are_refused(stored):
    assert checked_results(stored(synthetic_row()), op="gemm").rows
    with pytest.raises(StoreError, match="it is of the Op gemm, where results of axpy belong"):
        checked_results(stored(synthetic_row()), op="axpy")


def test_a_file_without_rows_is_refused(stored):
    with pytest.raises(StoreError, match=r"gemm\.json: has no rows"):
        checked_results(stored())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ("{}", "needs schema 1, got None"),
        (json.dumps({"schema": 7, "rows": []}), "needs schema 1, got 7"),
        (json.dumps({"schema": 1, "rows": []}), "environment has no gpu"),
    ],
    ids=["empty", "no-json", "no-schema", "another-schema", "no-environment"],
)
def test_what_is_no_result_file_is_refused(tmp_path, text, wanted):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(StoreError, match=wanted) as error:
        checked_results(tmp_path / "bad.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "found",
    [
        {"schema": 1, "title": "t", "blocks": []},
        {"schema": 2, "title": "t"},
        {"schema": 2, "title": "t", "blocks": [{"block": "poem"}]},
        {"schema": 2, "title": "t", "blocks": [{"block": "heading", "words": "x"}]},
    ],
    ids=["schema", "no-blocks", "unknown-block", "unknown-field"],
)
def test_what_is_no_report_is_refused(tmp_path, found):
    (tmp_path / "report.json").write_text(json.dumps(found))
    with pytest.raises(StoreError) as error:
        Document.load(tmp_path / "report.json")
    assert str(error.value).startswith(str(tmp_path / "report.json"))
    assert "\n" not in str(error.value)


def test_the_recorded_results_contradict_nothing():
    from ferrum_numba import shipped

    paths = sorted((shipped.results_folder() / "h200").glob("*.json"))
    assert len(paths) >= 2
    for path in paths:
        assert checked_results(path, "h200").rows


def test_a_row_without_samples_cannot_contradict_them(stored):
    row = replace(synthetic_row(), status="slow", samples=())
    assert checked_results(stored(row)).rows
