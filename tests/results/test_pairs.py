"""Two files, problem by problem: what is slower, what is one moment's, what cannot be compared."""

import json
import re
from dataclasses import replace

import pytest
from result_rows import json_row, make_environment, make_row

from ferrum_numba.errors import StoreError
from ferrum_numba.results import ResultFile, save
from ferrum_numba.results.pairs import contradiction, load_measured, pair_files, verdict_of

SAMPLES = (9.9, 9.95, 10.0, 10.0, 10.0, 10.0, 10.05, 10.1, 10.1)


def scaled(factor, run="new", **changes):
    samples = [us * factor for us in SAMPLES]
    return make_row(us=10.0 * factor, samples=samples, run=run, **changes)


def files(old, new, gpus=("NVIDIA H200", "NVIDIA H200")):
    return [
        ResultFile({**make_environment(), "gpu": gpu}, list(rows))
        for gpu, rows in zip(gpus, (old, new), strict=True)
    ]


def names(old, new, **options):
    return [pair.verdict.name for pair in pair_files(*files(old, new), **options).pairs]


@pytest.mark.parametrize(
    ("factor", "name"), [(1.2, "SLOWER"), (0.8, "FASTER"), (1.004, "SAME"), (1.03, "UNDECIDED")]
)
def test_the_verdict_is_of_the_new_against_the_old(factor, name):
    assert names([scaled(1.0, "old")], [scaled(factor)]) == [name]
    assert verdict_of(scaled(factor), scaled(1.0, "old")).ratio == pytest.approx(factor)


def test_what_two_moments_differ_by_is_no_difference():
    old, new = scaled(1.0, "old"), scaled(1.045)
    assert verdict_of(new, old).name == "SLOWER"
    # another board differs by more than that
    assert verdict_of(replace(new, board="GPU-2"), old).name == "UNDECIDED"
    compared = replace(new, board="GPU-2", board_factor=1.045), replace(old, board_factor=1.0)
    assert verdict_of(*compared).name == "SAME"


def test_the_same_measurement_is_the_same_however_few_samples_it_has():
    row = make_row(samples=[10.0])
    assert verdict_of(row, row).name == "SAME"
    assert verdict_of(replace(row, run="another"), row).name == "UNDECIDED"


def test_few_samples_tell_what_their_whole_range_tells():
    old = make_row(us=10.0, samples=[9.9, 10.0, 10.1], run="old")
    assert verdict_of(make_row(us=12.0, samples=[11.9, 12.0, 12.1]), old).name == "SLOWER"
    assert verdict_of(make_row(us=12.0, samples=[10.0, 12.0, 12.1]), old).name == "UNDECIDED"


def test_rows_of_one_final_compare_round_by_round():
    rounds = tuple((10.0 + i / 10,) * 3 for i in range(16))
    old = replace(
        scaled(1.0), rounds=rounds, samples=sum(rounds, ()), contest="c", stage="final", run="x"
    )
    faster = tuple(tuple(us * 0.97 for us in one) for one in rounds)
    # as far as the rounds drift, each of them says the same
    new = replace(old, rounds=faster, samples=sum(faster, ()))
    assert verdict_of(new, old).name == "FASTER"
    assert verdict_of(replace(new, contest="d", run="y"), old).name != "FASTER"


def test_the_winner_of_each_problem_is_compared_or_each_kernel():
    old = [scaled(1.0, "old"), scaled(2.0, "old", kernel="decode")]
    new = [scaled(1.0), scaled(3.0, kernel="decode")]
    assert names(old, new) == ["SAME"]
    assert names(old, new, part="kernel") == ["SAME", "SLOWER"]


def test_what_no_longer_has_a_right_row_got_slower():
    compared = pair_files(*files([scaled(1.0)], [scaled(1.0, status="wrong", ok=False)]))
    (pair,) = compared.slower
    assert (pair.new, pair.why) == (None, "no row that counts: 1 wrong")


def test_problems_of_one_file_alone_are_counted():
    old = [scaled(1.0, "old"), scaled(1.0, "old", M=2)]
    new = [scaled(1.0), scaled(1.0, M=3), scaled(1.0, M=4)]
    compared = pair_files(*files(old, new))
    assert (len(compared.pairs), compared.only_old, compared.only_new) == (1, 1, 2)


@pytest.mark.parametrize(
    ("old", "new", "gpus", "words"),
    [
        ([scaled(1.0)], [scaled(1.0)], ("H200", "A10"), "of H200, .* A10: another GPU"),
        ([scaled(1.0)], [scaled(1.0, op="gemm")], ("a", "a"), "of w4a16_gemm, .*gemm: another Op"),
        ([scaled(1.0)], [scaled(1.0, M=7)], ("a", "a"), "no problem in common"),
    ],
    ids=["gpu", "op", "problems"],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(old, new, gpus, words):
    with pytest.raises(StoreError, match=words):
        pair_files(*files(old, new, gpus))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"us": 5.0, "us_low": 5.0, "us_high": 5.0, "samples": [10.0] * 3}, "median .* is 10"),
        ({"us_low": 11.0, "us_high": 12.0}, "us is 10, but its interval is 11 to 12"),
    ],
)
def test_samples_that_contradict_the_median_are_found(changes, words):
    assert contradiction(make_row()) is None
    assert re.search(words, contradiction(make_row(**changes)))


def written(path, *rows):
    save(path, ResultFile(make_environment(), list(rows)))
    return path


def test_bad_files_are_one_sentence(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("")
    with pytest.raises(StoreError, match=r"rows\.json: is empty"):
        load_measured(path)
    with pytest.raises(StoreError, match="has no rows"):
        load_measured(written(path))
    with pytest.raises(StoreError, match="none of its rows counts as measured: 1 wrong"):
        load_measured(written(path, make_row(status="wrong", ok=False)))
    with pytest.raises(StoreError, match="row 1: us is 5, but the median of its samples is 10"):
        load_measured(written(path, make_row(), make_row(M=2, us=5.0, samples=[10.0] * 3)))
    path.write_text(json.dumps({"schema": 7, "rows": [json_row()]}))
    with pytest.raises(StoreError, match="needs schema 1, got 7"):
        load_measured(path)
