"""The final without a GPU: who meets, for how many rounds, and what is kept of them."""

import random
from dataclasses import replace

import pytest
from result_rows import make_row

from ferrum_numba.measure import Policy
from ferrum_numba.tune.finals import contest, due, finalists
from ferrum_numba.tune.worker import Candidate, Outcome

POLICY = Policy(round_samples=2)


class Board:
    """Measures by a formula of the candidate's place and of the round."""

    def __init__(self, us_of, lost_at=None):
        self.us_of, self.lost_at = us_of, lost_at
        self.asked = []

    def round(self, candidates, turn, samples):
        self.asked.append([one.config for one in candidates])
        if turn == self.lost_at:
            return None
        extra = {"clock_mhz": [1.0, 1000.0 + turn], "throttle": ["power cap"] * (turn == 1),
                 "power_w": 7.0 if turn == 0 else None, "busy_us": 5.0}  # fmt: skip
        return [
            Outcome("measured", us=(self.us_of(one.config, turn),) * samples, extra=extra)
            for one in candidates
        ]


def held(us_of, count, policy=POLICY, lost_at=None, **rest):
    board = Board(us_of, lost_at)
    candidates = [Candidate(None, place, None, None) for place in range(count)]
    return board, contest(board, candidates, policy, **rest)


def behind(place, turn):
    return 10.0 * (1 + place)


def test_what_is_far_behind_is_soon_timed_no_more():
    board, found = held(behind, 4)
    assert [len(one.rounds) for one in found] == [6, 6, 6, 6]
    assert [set(asked) for asked in board.asked] == [{0, 1, 2, 3}] * 6
    near = held(lambda place, turn: (10.0, 10.05, 30.0)[place], 3)[1]
    # the third is behind; of the others none can be faster by more than a tie
    assert [len(one.rounds) for one in near] == [32, 32, 6]


def test_what_cannot_be_decided_ends_with_the_rounds():
    noisy = held(lambda place, turn: 10.0 + random.Random(f"{place} {turn}").random(), 2)[1]
    assert {len(one.rounds) for one in noisy} == {POLICY.most_rounds}
    few = held(lambda *_: 10.0, 2, replace(POLICY, most_rounds=10))[1]
    assert {len(one.rounds) for one in few} == {10}


def test_the_second_round_of_a_pair_has_the_same_candidates_in_an_order_of_its_own():
    asked = held(lambda *_: 10.0, 8)[0].asked
    pairs = list(zip(asked[::2], asked[1::2], strict=True))
    # the measurer turns the second one round
    assert all(first == second for first, second in pairs)
    assert len({tuple(first) for first, _ in pairs}) == len(pairs)
    # of two, any order but the same and its reverse is out of balance
    assert held(lambda *_: 10.0, 2)[0].asked[:3] == [[0, 1]] * 3


def test_a_deadline_ends_a_final_with_a_pair_of_rounds():
    times = iter([False, False, True])
    found = held(lambda *_: 10.0, 2, deadline=lambda: next(times))[1]
    assert [len(one.rounds) for one in found] == [6, 6]


def test_rounds_become_one_outcome():
    found = held(behind, 2, name="mine")[1][1]
    assert found.us == (20.0,) * 12
    assert found.rounds == ((20.0, 20.0),) * 6
    assert found.contest == "mine"
    assert found.round_mhz == tuple(1000.0 + turn for turn in range(6))
    assert found.throttled == (2, 3)
    assert found.extra == {
        "clock_mhz": [1.0, 1005.0], "throttle": ["power cap"], "power_w": 7.0, "busy_us": 30.0
    }  # fmt: skip


def test_no_two_finals_have_the_same_name():
    names = {held(behind, 2)[1][0].contest for _ in range(3)}
    assert len(names) == 3
    assert all(names)


@pytest.mark.parametrize(("lost_at", "rounds"), [(0, []), (1, []), (2, [2, 2]), (5, [4, 4])])
def test_a_lost_process_leaves_whole_pairs_of_rounds(lost_at, rounds):
    found = held(behind, 2, lost_at=lost_at)[1]
    assert [len(one.rounds) for one in found] == rounds


def heat(us, config, **changes):
    return make_row(us=us, config={"tile_m": config}, stage="full", **changes)


def test_the_best_the_first_of_each_kernel_and_those_set_in_meet():
    rows = [heat(20.0 - i, i) for i in range(12)]
    rows += [heat(50.0, 1, kernel="gptq"), heat(40.0, 2, kernel="gptq")]
    rows += [heat(60.0, 99), heat(1.0, 3, status="slow"), heat(70.0, 98, status="wrong")]
    best = list(range(11, 3, -1))
    assert finalists(rows) == [*best, 13]
    # the default was measured; what was not cannot be in a final
    assert finalists(rows, {rows[14].key, rows[16].key, rows[11].key}) == [*best, 13, 14]


def test_what_was_left_out_of_a_final_stays_out_of_the_next():
    # in a final they take longer than the heats that lost
    finals = [replace(heat(30.0 + i, i, run="2026-01"), stage="final") for i in range(10)]
    lost = [heat(29.0, 20 + i, run="2026-01") for i in range(3)]
    new = [heat(31.5, 30, run="2026-02"), heat(90.0, 31, run="2026-02", kernel="gptq")]
    assert finalists([*finals, *lost]) == list(range(8))
    assert finalists([*finals, *lost, *new]) == [*range(8), 13, 14]


def test_a_final_is_due_where_something_is_newer_than_the_last():
    old, new = heat(10.0, 1, run="2026-01"), heat(11.0, 2, run="2026-02")
    final = replace(heat(10.5, 3, run="2026-01"), stage="final")
    assert due([old, new], [0, 1])
    assert not due([old], [0])
    assert not due([old, final, final], [0, 1, 2])
    assert due([old, final, new], [0, 1, 2])
