"""One table of decisions from many boards: the same in any order, and who decides."""

import itertools
from dataclasses import replace

import pytest
from result_rows import make_environment, make_row

from ferrum_numba import results
from ferrum_numba.errors import StoreError
from ferrum_numba.gpu import KNOWN
from ferrum_numba.results.decisions import load_decisions, save_decisions
from ferrum_numba.results.merging import merge_decisions

DATES = [f"2026-01-0{day}T00:00:00.000+00:00" for day in range(1, 5)]
MEMORY = {"kernel": "read", "program": "abc", "bound": "memory"}
TENSOR = {"kernel": "mma", "program": "def", "bound": "tensor"}


def file_of(board, date, *rows, yardstick=None, **changes):
    """Return the results of one board: of it, rows of one moment."""
    environment = {**make_environment(date), "uuid": f"GPU-{board}", "driver": "580.1", **changes}
    if yardstick:
        pairs = zip((MEMORY, TENSOR), yardstick, strict=False)
        environment["yardstick"] = [{**one, "us": us} for one, us in pairs]
    made = [replace(row, run=date, board=f"GPU-{board}") for row in rows]
    return results.ResultFile(environment, made)


def config(tile_m, us, stage="final", **changes):
    return make_row(us=us, config={"tile_m": tile_m}, stage=stage, **changes)


def decided(*files):
    _, found = merge_decisions(files)
    return {(one.kernel, one.problem["M"]): (one.config["tile_m"], one.us) for one in found}


def test_each_board_decides_what_it_alone_measured():
    one = file_of(1, DATES[0], config(16, 10.0), config(32, 11.0))
    two = file_of(2, DATES[1], config(16, 20.0, M=2))
    assert decided(one, two) == {("marlin", 1): (16, 10.0), ("marlin", 2): (16, 20.0)}


def test_boards_with_a_yardstick_compare_by_it():
    """The second board is a tenth slower at everything: its 10.5 are 9.55 on the first."""
    one = file_of(1, DATES[0], config(16, 10.0), yardstick=[100.0])
    two = file_of(2, DATES[1], config(32, 10.5), yardstick=[110.0])
    assert decided(one, two) == {("marlin", 1): (32, 10.5)}
    assert decided(one, file_of(2, DATES[1], config(32, 11.5), yardstick=[110.0])) == {
        ("marlin", 1): (16, 10.0)
    }


def test_the_yardstick_is_that_of_what_bounds_the_work():
    """By memory the second board is slower, by the tensor cores it is faster."""
    heavy = {"flops": 1e12, "bytes": 1.0}
    one = file_of(1, DATES[0], config(16, 10.0, **heavy), yardstick=[100.0, 100.0])
    two = file_of(2, DATES[1], config(32, 9.9, **heavy), yardstick=[110.0, 90.0])
    assert decided(one, two) == {("marlin", 1): (16, 10.0)}


def test_without_a_yardstick_the_newest_final_decides():
    one = file_of(1, DATES[1], config(16, 10.0))
    two = file_of(2, DATES[0], config(32, 5.0))
    assert decided(one, two) == {("marlin", 1): (16, 10.0)}


def test_factors_that_two_stores_counted_from_other_boards_are_counted_anew():
    """Each store's first board has factor 1; here the second is a tenth slower than the first."""
    one = file_of(1, DATES[0], config(16, 10.0, board_factor=1.0), yardstick=[100.0])
    two = file_of(2, DATES[1], config(32, 10.5, board_factor=1.0), yardstick=[110.0])
    assert decided(one, two) == {("marlin", 1): (32, 10.5)}


@pytest.fixture
def many():
    """Return four files of three boards, whose rows overlap."""
    old = config(16, 9.0)
    return [
        file_of(1, DATES[0], old, config(32, 11.0), config(16, 3.0, M=2), yardstick=[100.0]),
        file_of(1, DATES[2], config(16, 10.0), config(64, 10.0, kernel="decode")),
        file_of(2, DATES[1], config(32, 10.0), config(8, 3.0, M=2), yardstick=[104.0]),
        file_of(3, DATES[3], config(32, 8.0), config(16, 8.0), driver="610.2"),
    ]


def test_the_order_of_the_files_makes_no_difference(many, tmp_path):
    written = set()
    for files in itertools.permutations(many):
        head, found = merge_decisions(files)
        save_decisions(tmp_path / "table.json", head, found)
        written.add((tmp_path / "table.json").read_bytes())
    assert len(written) == 1
    assert [one.kernel for one in load_decisions(tmp_path / "table.json")] == [
        "decode", "marlin", "marlin"
    ]  # fmt: skip


def test_the_same_rows_twice_decide_as_once(many):
    assert merge_decisions(many + many) == merge_decisions(many)


def test_the_head_says_which_boards_and_drivers(many):
    head, _ = merge_decisions(many)
    assert (head["gpu"], head["regime"]) == ("h200", "cold")
    assert head["boards"] == ["GPU-1", "GPU-2", "GPU-3"]
    assert head["drivers"] == ["580.1", "610.2"]


def test_other_regimes_decide_nothing():
    assert merge_decisions([file_of(1, DATES[0], config(16, 1.0, regime="warm"))])[1] == []


def test_several_models_are_refused(many):
    facts = {**make_environment()["gpu_facts"], "num_sms": KNOWN["h100"].num_sms - 2}
    other = file_of(4, DATES[0], config(16, 1.0), gpu_facts=facts, gpu="NVIDIA H100 PCIe")
    with pytest.raises(StoreError, match="got NVIDIA H100 PCIe, NVIDIA H200"):
        merge_decisions([*many, other])
