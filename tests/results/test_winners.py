"""Who won: one rule, whoever asks."""

import math
from dataclasses import replace

import numpy as np
import pytest
from result_rows import make_row

from ferrum_numba import results


def row(us, *, spread=0.0, stage="final", **changes):
    samples = [us - spread, us - spread, us, us, us, us, us + spread, us + spread]
    return make_row(us=us, samples=samples, stage=stage, **changes)


def in_final(rounds, config, contest="a", **changes):
    """Return a row of a final from the time it took in each of its rounds."""
    samples = [us for us in rounds for _ in range(3)]
    return make_row(
        us=float(np.median(rounds)), samples=samples, rounds=[[us] * 3 for us in rounds],
        contest=contest, stage="final", config={"tile_m": config}, **changes,
    )  # fmt: skip


# a board that gets slower by 8 % in the midst of it
BOARD = np.repeat([10.0, 10.8], 24)


def test_who_is_ahead_round_by_round_wins():
    # dropped while the board was fast: its median is the lowest
    dropped = in_final(BOARD[:16] * 1.03, 1)
    first, behind = in_final(BOARD, 2), in_final(BOARD * 1.03, 3)
    assert dropped.us < first.us
    (found,) = results.winners([dropped, behind, first])
    assert found.row is first
    assert (found.ties, found.undecided) == ([], [])
    assert results.best([dropped, behind, first]) == [first]
    assert [results.compare_rows(row, first).name for row in (dropped, behind)] == ["SLOWER"] * 2


def test_ties_go_to_what_needs_least_of_a_multiprocessor():
    first = in_final(BOARD, 1, registers=128, smem_bytes=9)
    equal = in_final(BOARD * 1.003, 2, registers=96, smem_bytes=9)
    lean = in_final(BOARD * 1.004, 3, registers=96, smem_bytes=5)
    slower = in_final(BOARD * 1.03, 4, registers=8, smem_bytes=0)
    unknown = in_final(BOARD * 1.001, 5, registers=None, smem_bytes=None)
    (found,) = results.winners([first, unknown, equal, slower, lean])
    assert found.row is lean
    assert found.ties == [first, unknown, equal]
    # of the same needs, always the same one
    twins = [in_final(BOARD, 9), in_final(BOARD, 10)]
    assert results.winners(twins)[0].row is results.winners(twins[::-1])[0].row


def test_of_finals_that_took_as_long_the_same_one_wins_in_any_order():
    one = in_final(BOARD, 1, registers=96)
    other = in_final(BOARD, 2, contest="b", registers=64)
    for rows in ([one, other], [other, one]):
        assert results.winners(rows)[0].row is other
    # as two boards have it whose finals began in one millisecond
    there = replace(one, board="GPU-2"), replace(other, board="GPU-1")
    for rows in (there, there[::-1]):
        assert results.winners(rows)[0].row is there[0]


def test_finals_compare_with_no_others():
    one, other = in_final(BOARD, 1), in_final(BOARD * 1.05, 2, contest="b")
    heat = row(10.5, stage="full", config={"tile_m": 3})
    for late in (other, heat):
        verdict = results.compare_rows(late, one)
        assert (verdict.name, verdict.low, verdict.high) == ("UNDECIDED", 0.0, math.inf)
    (found,) = results.winners([other, heat, one])
    assert found.row is one
    assert found.undecided == [other, heat]


def test_what_was_left_out_of_a_newer_final_does_not_win():
    # by now the board is slower
    left = in_final(BOARD, 1, contest="a", run="2026-01")
    others = [in_final(BOARD * 1.05, 2 + i, contest="b", run="2026-02") for i in range(2)]
    assert results.winners([left, *others])[0].row in others
    # another kernel's final, on the same board, is not about it
    other_kernel = replace(left, kernel="other")
    assert results.winners([other_kernel, *others])[0].row is other_kernel


def test_finals_from_before_rounds_were_kept_are_four_rounds():
    us = [10.0] * 8 + [11.0] * 8 + [10.0] * 16
    earlier = [row(10.0, config={"tile_m": i}, run="2026") for i in range(2)]
    earlier = [replace(one, samples=tuple(factor * x for x in us))
               for one, factor in zip(earlier, (1.0, 1.02), strict=True)]  # fmt: skip
    verdict = results.compare_rows(earlier[1], earlier[0])
    assert verdict.ratio == pytest.approx(1.02)
    # four rounds are too few to decide by
    assert verdict.name == "UNDECIDED"
    assert results.winners(earlier)[0].row is earlier[0]


def test_boards_are_not_compared_without_a_yardstick():
    old = row(9.0, board="fast", run="2026-01", config={"tile_m": 1})
    new = row(10.0, board="slow", run="2026-02", config={"tile_m": 2})
    heat = row(8.0, board="third", run="2026-03", stage="full", config={"tile_m": 3})
    for rows in ([old, new, heat], [heat, new, old]):
        assert results.winners(rows)[0].row is new
        assert results.winners(rows)[0].undecided == []
        assert results.best(rows) == [new]
    assert results.compare_rows(old, new).name == "UNDECIDED"


@pytest.mark.parametrize(("factors", "wins"), [((0.85, 1.0), 1), ((0.95, 1.0), 0)])
def test_boards_are_compared_by_their_factors(factors, wins):
    # 9 us on a board that takes 0.85 of the time are 10.6 on the other
    rows = [
        row(us, board=board, run=run, board_factor=factor, config={"tile_m": i})
        for i, (us, board, run, factor) in enumerate(
            zip((9.0, 10.0), ("fast", "slow"), ("2026-02", "2026-01"), factors, strict=True)
        )
    ]
    assert results.winners(rows)[0].row is rows[wins]


def test_kernels_stand_in_the_order_in_which_they_win():
    rows = [
        in_final(BOARD * 1.05, 1, kernel="third"), in_final(BOARD, 2, kernel="second"),
        in_final(BOARD * 1.002, 3, kernel="first", registers=8),
        row(1.0, kernel="other board", board="b", run="2025"), row(7.0, M=2),
    ]  # fmt: skip
    rows = [replace(one, run="2026") if not one.run else one for one in rows]
    decided = results.decide(rows)
    assert [(d.kernel, d.place) for d in decided] == [
        ("first", 0), ("second", 1), ("third", 2), ("other board", 3), ("marlin", 0)
    ]  # fmt: skip


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
