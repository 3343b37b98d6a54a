"""Searchers on landscapes that are known: what they ask for, and when they stop."""

import importlib.util
import sys
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace

import pytest

from ferrum_numba.errors import ConfigError
from ferrum_numba.tune.searchers import (
    FIRST,
    SMALL,
    STEP,
    Exhaustive,
    ModelFirst,
    OptunaSearcher,
    make_searcher,
)


@dataclass(frozen=True)
class Config:
    tile: int
    stages: int
    split: bool = False


SPACE = [Config(*one) for one in product((1, 2, 4, 8, 16), (2, 3, 4, 5), (False, True))]


def us_of(config):
    """Return a time with one valley: tile 8, four stages, split."""
    return 10 + abs(config.tile - 8) + 2 * abs(config.stages - 4) + 3 * (not config.split)


def run(searcher, us=us_of, most=1000):
    """Ask and tell until the searcher is done, and return what it asked for."""
    asked = []
    while batch := searcher.ask():
        for config in batch:
            asked.append(config)
            searcher.tell(config, us(config))
            assert len(asked) <= most
    return asked


def test_the_exhaustive_one_asks_for_all_in_their_order():
    assert run(Exhaustive(SPACE)) == SPACE


def test_what_was_told_before_is_not_asked_for():
    for searcher in (Exhaustive(SPACE), ModelFirst(SPACE)):
        searcher.tell(SPACE[0], 5.0)
        assert SPACE[0] not in run(searcher)


def test_the_models_picks_come_first_and_the_valley_is_found_from_far_away():
    # a model that is wrong: the likeliest first are the farthest from the valley
    wrong = sorted(SPACE, key=us_of, reverse=True)
    asked = run(ModelFirst(wrong))
    assert asked[:FIRST] == wrong[:FIRST]
    assert min(asked, key=us_of) == Config(8, 4, True)
    assert len(asked) == len(set(asked)) < len(SPACE)


def test_a_model_that_is_right_costs_its_picks_and_the_neighbours():
    right = sorted(SPACE, key=us_of)
    asked = run(ModelFirst(right))
    assert min(asked, key=us_of) == Config(8, 4, True)
    # one field each: four tiles, three stages, one split, less what the model picked
    assert len(asked) <= FIRST + 8


def test_neighbours_are_asked_for_a_few_at_a_time_the_likeliest_first():
    searcher = ModelFirst(SPACE, first=1)
    searcher.tell(SPACE[0], 1.0)
    batch = searcher.ask()
    assert len(batch) == STEP
    assert batch == sorted(batch, key=SPACE.index)


def test_where_the_models_picks_fail_others_are_tried():
    works = SPACE[-1]
    asked = run(ModelFirst(SPACE), lambda config: 1.0 if config == works else None)
    assert works in asked


def test_a_space_without_neighbours_in_one_field_goes_on_to_those_in_two():
    diagonal = [Config(tile, stages) for tile, stages in ((1, 2), (2, 3), (4, 4), (8, 5))]
    asked = run(ModelFirst(diagonal, first=1), lambda config: float(config.tile))
    assert asked == diagonal


def test_auto_measures_small_spaces_whole():
    assert isinstance(make_searcher("auto", SPACE[:SMALL]), Exhaustive)
    assert isinstance(make_searcher("auto", SPACE), ModelFirst)
    assert isinstance(make_searcher("exhaustive", SPACE), Exhaustive)
    with pytest.raises(ConfigError, match="one of auto, exhaustive, model, optuna; got 'luck'"):
        make_searcher("luck", SPACE)


@pytest.mark.skipif(importlib.util.find_spec("optuna") is not None, reason="Optuna is installed")
def test_without_optuna_the_searcher_says_what_to_install():
    with pytest.raises(ConfigError, match=r"pip install 'ferrum-numba\[optuna\]'"):
        make_searcher("optuna", SPACE)


class FakeStudy:
    """Proposes the last value of every axis, and remembers what it is told."""

    def __init__(self):
        self.told, self.added = [], []

    def ask(self, axes):
        return SimpleNamespace(params={name: axis[-1] for name, axis in axes.items()})

    def tell(self, trial, value=None, state=None):
        self.told.append((trial.params, value, state))

    def add_trial(self, trial):
        self.added.append(trial)


@pytest.fixture
def study(monkeypatch):
    found = FakeStudy()
    fake = SimpleNamespace(
        logging=SimpleNamespace(set_verbosity=lambda level: None, WARNING=30),
        create_study=lambda sampler: found,
        samplers=SimpleNamespace(TPESampler=lambda seed: None),
        distributions=SimpleNamespace(CategoricalDistribution=list),
        trial=SimpleNamespace(
            create_trial=lambda **facts: facts, TrialState=SimpleNamespace(FAIL="fail")
        ),
    )
    monkeypatch.setitem(sys.modules, "optuna", fake)
    return found


def test_optunas_proposals_are_rounded_to_configs_that_there_are(study):
    searcher = OptunaSearcher(SPACE, trials=3)
    searcher.tell(SPACE[0], 7.0)
    asked = run(searcher, lambda config: None if config.stages == 5 else us_of(config))
    # what it proposes is taken once; then what is nearest to it
    assert asked[0] == Config(16, 5, True)
    assert len(asked) == len(set(asked)) == 3
    assert all(config in SPACE and config != SPACE[0] for config in asked)
    # the default was told without being asked for
    assert [(one["params"], one["value"]) for one in study.added] == [
        ({"tile": 1, "stages": 2, "split": False}, 7.0)
    ]
    assert study.told[0][1:] == (None, "fail")


def test_optuna_itself_finds_the_valley():
    pytest.importorskip("optuna")
    asked = run(OptunaSearcher(SPACE, trials=24))
    assert len(asked) == 24
    assert min(map(us_of, asked)) <= us_of(Config(8, 4, True)) + 2
