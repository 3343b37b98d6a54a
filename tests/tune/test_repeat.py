"""What repeated finals agree on."""

import pytest
from result_rows import make_row

from ferrum_numba.tune.repeat import repeats


def final(contest, us, M=1):
    """Return the rows of a final from the times of its configs, which stay as they are."""
    return [
        make_row(us=one, samples=[one] * 48, rounds=[[one]] * 48, contest=contest, stage="final",
                 config={"tile_m": place}, M=M)
        for place, one in enumerate(us)
    ]  # fmt: skip


def test_finals_that_agree_have_neither_flips_nor_regret():
    found = repeats([final(name, [10.0, 10.5, 12.0]) for name in "abc"])
    assert (found.problems, found.finals) == (1, 3)
    assert found.apart == (0.0,) * 3
    assert found.regrets == (0.0,) * 3
    assert str(found) == (
        "3 finals of 1 problems: of 3 pairs of winners differ 0 (0.0%) by more than 1%, 0 (0.0%) "
        "by more than 3%; regret 0.00% on average, 0.00% at most"
    )


def test_a_flip_is_as_wide_as_the_winners_are_apart():
    # the second config is 4 % slower in one final and 2 % faster in another
    found = repeats([final("a", [10.0, 10.4]), final("b", [10.0, 9.8]), final("c", [10.0, 10.4])])
    slower = (1.04 * 0.98 * 1.04) ** (1 / 3) - 1
    assert found.apart == pytest.approx((slower, 0.0, slower))
    assert found.regrets == pytest.approx((0.0, slower, 0.0))
    assert (found.flips(0.01), found.flips(0.03)) == (2, 0)


def test_a_flip_within_a_tie_is_none():
    found = repeats([final("a", [10.0, 10.2]), final("b", [10.2, 10.0])])
    assert found.flips(0.01) == 0


def test_problems_that_one_tune_did_not_reach_do_not_count():
    both = [*final("a", [10.0]), *final("b", [20.0], M=2)]
    found = repeats([both, final("c", [10.0])])
    assert found.problems == 1
    assert repeats([]).problems == 0
