"""Who won: one rule, whoever asks."""

import pytest
from result_rows import make_row

from ferrum_numba import results


def row(us, *, spread=0.0, stage="final", **changes):
    samples = [us - spread, us - spread, us, us, us, us, us + spread, us + spread]
    return make_row(us=us, samples=samples, stage=stage, **changes)


def test_a_winner_comes_with_those_it_cannot_be_told_from():
    fast, tie = row(10.0), row(10.05, config={"tile_m": 2})
    open_, slower = row(10.2, config={"tile_m": 3}, spread=0.6), row(10.9, config={"tile_m": 4})
    (found,) = results.winners([slower, tie, open_, fast, row(30.0)])
    assert found.row is fast
    assert found.ties == [tie]
    assert found.undecided == [open_]


def test_the_final_decides_not_the_heats():
    heat, final = row(9.9, stage="full"), row(10.0, config={"tile_m": 2})
    assert results.winners([heat, final])[0].row is final


def test_regimes_are_never_mixed():
    found = results.winners([row(10.0), row(5.0, regime="warm")])
    assert [winner.row.us for winner in found] == [10.0, 5.0]


def test_best_is_the_fastest_correct_row_of_a_kernel_and_problem():
    rows = [
        make_row(us=10.0),
        make_row(us=8.0, ok=False, status="wrong"),
        make_row(us=7.0, status="slow"),
        make_row(us=6.0, untrusted="1 other process"),
        make_row(us=9.0, config={"tile_m": 32}),
        make_row(us=5.0, kernel="gptq"),
        make_row(us=4.0, M=2),
        make_row(us=3.0, regime="warm"),
    ]
    assert [row.us for row in results.best(rows)] == [9.0, 5.0, 4.0, 3.0]


@pytest.mark.parametrize(
    "change",
    [
        {"ok": False}, {"status": "slow"}, {"status": "wrong"}, {"untrusted": "1 other process"},
        {"peer": "humming", "kind": "4-bit"},
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_count_wins_nowhere(change):
    rows = [row(1.0, **change), row(2.0, kernel="other")]
    assert [r.us for r in results.best(rows)] == [2.0]
    assert [winner.row.us for winner in results.winners(rows)] == [2.0]
    assert [decision.us for decision in results.decide(rows)] == [2.0]


def test_every_rule_names_the_same_winner():
    rows = [
        row(9.0, stage="full"), row(10.0), row(9.5, kernel="other", stage="full"),
        row(8.0, M=2, kernel="other", stage="full"), row(8.5, M=2, stage="full"),
    ]  # fmt: skip
    (first, second) = results.winners(rows)
    assert (first.row.us, second.row.us) == (10.0, 8.0)
    for winner in (first, second):
        of_problem = [one for one in results.best(rows) if one.problem == winner.row.problem]
        assert min(of_problem, key=results.rank) is winner.row
