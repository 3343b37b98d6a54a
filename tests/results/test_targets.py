"""Targets: what is reached, what is missed by how much, and what nobody measured."""

from dataclasses import replace
from pathlib import Path

import pytest
from result_rows import make_row

from ferrum_numba import results
from ferrum_numba.errors import StoreError
from ferrum_numba.results.targets import Target, evaluate, load_targets

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = [10.0] * 9


def row(us, M=1, kernel="marlin", **changes):
    """Return a row of 40 MB and 2 GFLOP, whose bound is 8 us."""
    about = {"samples": [us] * 9, "bytes": 4e7, "flops": 2e9, "bound_us": 8.0, **changes}
    return make_row(kernel, us, M, **about)


def peer(us, kind="4-bit", M=1):
    return row(us, M, kernel="x", peer="humming", kind=kind)


CEILINGS = [
    make_row("dram_read", gbps=4000.0), make_row("dram_read_bulk", gbps=5000.0),
    make_row("wgmma", tflops=800.0), make_row("wgmma_fp8", tflops=1600.0),
    make_row("dram_read", gbps=9000.0, ok=False, status="wrong"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("of", "share"),
    [("bound", 0.8), ("DRAM", 0.8), ("tensor", 0.25), ("4-bit", 1.2), ("fp16", 3.0)],
)
def test_the_winner_is_held_against_each_limit(of, share):
    rows = [row(10.0), row(20.0, kernel="decode"), peer(12.0), peer(13.0), peer(30.0, "fp16")]
    (found,) = evaluate([Target("t", "w4a16_gemm", of, share)], rows, CEILINGS)
    ((winner, got),) = found.shares
    assert (winner.kernel, got) == ("marlin", pytest.approx(share))
    (found,) = evaluate([Target("t", "w4a16_gemm", of, share * 1.01)], rows, CEILINGS)
    assert found.met is False


def test_a_share_of_the_problems_must_reach_it():
    rows = [row(us, M) for M, us in ((1, 10.0), (2, 10.0), (3, 16.0), (99, 100.0))]
    target = Target("decode", "w4a16_gemm", "bound", 0.75, (1, 16), share=0.6)
    (found,) = evaluate([target], rows)
    assert (found.good, len(found.shares), found.met) == (2, 3, True)
    assert found.text == (
        "met: decode: at least 75% of bound on 2 of 3 problems (needs 60%); median 80%, worst 50% "
        "(marlin, M=3 N=64 K=64)"
    )
    (found,) = evaluate([Target("all", "w4a16_gemm", "bound", 0.75, (1, 16))], rows)
    assert found.text.startswith("MISSED: all: at least 75% of bound on 2 of 3 problems")


def test_a_target_is_of_some_problems():
    rows = [row(10.0), row(10.0, problem={"M": 1, "N": 128, "K": 64}), row(9.0, regime="warm")]
    (found,) = evaluate([Target("t", "w4a16_gemm", "bound", 0.5, where={"N": 128})], rows)
    assert [one.problem["N"] for one, _ in found.shares] == [128]
    (found,) = evaluate([Target("t", "w4a16_gemm", "bound", 0.5, regime="warm")], rows)
    assert [one.us for one, _ in found.shares] == [9.0]
    assert evaluate([Target("t", "other", "bound", 0.5)], rows)[0].met is None


def test_a_problem_without_a_size_is_of_a_target_that_states_none():
    rows = [row(10.0, problem={"n": 64})]
    (found,) = evaluate([Target("t", "w4a16_gemm", "bound", 0.5)], rows)
    assert found.met is True
    assert evaluate([Target("t", "w4a16_gemm", "bound", 0.5, (1, 16))], rows)[0].met is None


def test_a_row_is_held_against_the_ceilings_of_its_own_board():
    ceilings = [replace(CEILINGS[0], board="here"), replace(CEILINGS[1], board="there")]
    rows = [replace(row(10.0, M), board=board) for M, board in ((1, "here"), (2, "there"), (3, ""))]
    (found,) = evaluate([Target("t", "w4a16_gemm", "DRAM", 0.5)], rows, ceilings)
    shares = {one.board: share for one, share in found.shares}
    assert shares == pytest.approx({"here": 1.0, "there": 0.8, "": 0.8})


def test_what_nobody_measured_is_not_missed():
    (found,) = evaluate([Target("t", "w4a16_gemm", "DRAM", 0.9)], [row(10.0)])
    assert (found.met, found.unknown) == (None, 1)
    assert found.text == "t: nothing was measured to hold against DRAM"


GOOD = '[[target]]\nname = "t"\nop = "gemm"\nof = "bound"\nat_least = 0.5\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"has no \[\[target\]\]"),
        ("[[target]", "is not TOML"),
        ('[[target]]\nname = "t"\n', "target 1 has no op"),
        (GOOD + "least = 3", "target 1 has no field least: known are name, op"),
        (GOOD.replace('"bound"', '"roof"'), "target 1: of cannot be 'roof'"),
        (GOOD + "sizes = [4, 2]", r"target 1: sizes cannot be \[4, 2\]"),
        (GOOD + "share = 1.5", "target 1: share cannot be 1.5"),
        (GOOD + "where = 3", "target 1: where cannot be 3"),
        ("target = 3", r"has no \[\[target\]\]"),
        ("target = [3]", "target 1 must be a table, got 3"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "targets.toml"
    path.write_text(text)
    with pytest.raises(StoreError, match=words):
        load_targets(path)
    with pytest.raises(StoreError, match="cannot be read"):
        load_targets(tmp_path / "none.toml")


def test_the_recorded_results_reach_the_targets_of_the_house():
    recorded = ROOT / "perf" / "results" / "h200"
    rows, ceilings = (
        results.load(recorded / f"{name}.json").rows for name in ("w4a16_gemm", "ceilings")
    )
    found = evaluate(load_targets(ROOT / "perf" / "targets.toml"), rows, ceilings)
    missed = [one.text for one in found if one.met is False]
    assert not missed
    assert sum(one.met is True for one in found) >= 7
