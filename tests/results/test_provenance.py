"""Where a result comes from: everything it needs to be believed."""

import pytest
from result_rows import Policy

from ferrum_numba import results
from ferrum_numba.gpu import KNOWN
from ferrum_numba.results import provenance


def test_environment_names_everything_a_result_needs(monkeypatch):
    found = results.environment(KNOWN["h200"], Policy(), ["ferrum-numba", "tune", "--m", "1"])
    assert set(found) == set(results.ENVIRONMENT)
    assert found["gpu"] == "NVIDIA H200"
    assert found["command"] == "ferrum-numba tune --m 1"
    assert found["policy"] == {"samples": 3}
    assert found["gpu_facts"]["num_sms"] == 132
    assert found["date"].endswith("+00:00")
    for package in ("python", "numpy", "numba", "numba-cuda", "cuda-core"):
        assert found["versions"][package]


@pytest.mark.parametrize(
    ("given", "want"),
    [("1a2b3c", ("1a2b3c", False)), ("1a2b3c-dirty", ("1a2b3c", True)), ("", (None, None))],
)
def test_commit_is_given_where_there_is_no_git(monkeypatch, given, want):
    monkeypatch.setattr(provenance, "_git", lambda folder, *words: None)
    monkeypatch.setenv("FERRUM_NUMBA_COMMIT", given)
    found = results.environment(KNOWN["h200"], Policy(), [])
    assert (found["commit"], found["dirty"]) == want


def test_commit_of_the_checkout_wins(monkeypatch):
    answers = {"ls-files": "errors.py", "rev-parse": "feed", "status": " M errors.py"}
    monkeypatch.setattr(provenance, "_git", lambda folder, *words: answers[words[0]])
    monkeypatch.setenv("FERRUM_NUMBA_COMMIT", "1a2b3c")
    found = results.environment(KNOWN["h200"], Policy(), [])
    assert (found["commit"], found["dirty"]) == ("feed", True)
