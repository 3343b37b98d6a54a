"""Finals on boards whose noise is known: what the tuner's own rules make of it."""

import numpy as np
import pytest

from ferrum_numba.measure import Policy
from ferrum_numba.results import compare_rows, winners
from ferrum_numba.tune import noise
from ferrum_numba.tune.noise import NOISES, Noise, equals, figures, rivals

# a share of 1 % is met: the finals of all noises together are 120 of each kind
FINALS = 12
BY_NAME = {one.name: one for one in NOISES}


@pytest.fixture(scope="module")
def told():
    """Return the figures of every noise, by its name: of rivals, of two equals and of eight."""
    fields = rivals(8, FINALS), equals(2, FINALS), equals(8, FINALS)
    return {one.name: [figures(one, field) for field in fields] for one in NOISES}


def test_winners_are_hardly_ever_wrong(told):
    assert [name for name, (found, *_) in told.items() if found.wrong] == []


def test_equals_are_hardly_ever_told_apart(told):
    falsely = [FINALS * one.falsely for found in told.values() for one in found[1:]]
    assert sum(falsely) <= 0.01 * 2 * FINALS * len(NOISES)


def test_intervals_hold_the_truth(told):
    held = [one.held for found in told.values() for one in found]
    assert np.mean(held) >= noise.LEVEL


def test_what_can_be_decided_is_decided(told):
    quiet = [found for name, found in told.items() if "residual" not in name]
    assert len(quiet) == 7
    open_, rounds = (np.array([[getattr(one, name) for one in found] for found in quiet])
                     for name in ("undecided", "rounds"))  # fmt: skip
    assert open_[:, 0].mean() < 0.1
    assert rounds[:, 0].mean() < 64
    # on a board as quiet as this all are decided, and equals are ties
    assert [one.undecided for one in told["white, 0.3 %"]] == [0, 0, 0]


def test_the_rule_before_names_wrong_winners_on_these_boards():
    """Show that the boards are hard: the median of all samples of four rounds errs on them."""
    one, wrong = BY_NAME["round residuals of 4 %"], 0
    for seed, true_us in enumerate(rivals(8, 100)):
        rows = noise.final(true_us, one, seed, Policy(round_samples=8, most_rounds=4))
        first = min(rows, key=lambda row: np.median(row.samples))
        wrong += true_us[first.config["place"]] > 1.01 * min(true_us)
    assert wrong > 10


@pytest.mark.parametrize(("behind", "named"), [(1.0, "SAME"), (1.05, "SLOWER")])
def test_on_a_board_without_noise_two_are_told_as_they_are(behind, named):
    rows = noise.final([10.0, 10.0 * behind], Noise("none", white=0.0), 0)
    assert compare_rows(rows[1], rows[0]).name == named
    assert winners(rows)[0].row is rows[0]


def test_a_seed_makes_the_same_final():
    one = BY_NAME["heavy tails"]
    assert noise.final([1.0, 1.1], one, 3) == noise.final([1.0, 1.1], one, 3)
    assert noise.final([1.0, 1.1], one, 3) != noise.final([1.0, 1.1], one, 4)
