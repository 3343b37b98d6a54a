"""Most tests ask for results; that nothing races is asked in test_races.py, at twice the time."""

from functools import partial

import pytest

from ferrum_numba import check


@pytest.fixture(autouse=True)
def _results_only(monkeypatch):
    monkeypatch.setattr(check, "on_interpreter", partial(check.on_interpreter, races=False))
