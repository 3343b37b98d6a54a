"""Comparisons of large results: in pieces, and the same verdict as element by element."""

import numpy as np
import pytest

from ferrum_numba import tolerance
from ferrum_numba.tolerance import Tolerance

BOUNDS = Tolerance(rel=5e-4, max=2e-3, reason="")


@pytest.fixture
def results():
    """Return a reference, and a result that is off by its rounding to fp16."""
    want = np.random.default_rng(0).standard_normal((300, 1000), np.float32)
    return want.astype(np.float16), want


def both(monkeypatch, got, want):
    """Return the comparison in pieces and the one in a whole."""
    found = []
    for large in (1, 1 << 60):
        monkeypatch.setattr(tolerance, "LARGE", large)
        monkeypatch.setattr(tolerance, "PIECE", 7000)
        found.append(BOUNDS.compare(got, want))
    return found


def test_pieces_say_what_the_whole_says(monkeypatch, results):
    got, want = results
    got = got.copy()
    got[123, 456] += 0.003
    pieces, whole = both(monkeypatch, got, want)
    assert pieces.ok
    assert whole.ok
    assert pieces.worst == whole.worst == (123, 456)
    for name in ("rel_error", "mean_error", "max_error"):
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), rel=1e-4)


@pytest.mark.parametrize("fault", [1.0, np.nan, np.inf])
def test_a_fault_in_one_element_is_told_in_full(monkeypatch, results, fault):
    got, want = results
    got = got.copy()
    got[299, 999] = fault + want[299, 999]
    pieces, whole = both(monkeypatch, got, want)
    assert not pieces.ok
    assert pieces.message == whole.message != ""
    assert "(299, 999)" in pieces.message


def test_what_nobody_writes_stays_nobodys(monkeypatch, results):
    got, want = results
    got, want = got.copy(), want.copy()
    got[5], want[5] = np.nan, np.nan
    pieces, _ = both(monkeypatch, got, want)
    assert pieces.ok
    got[5, 5] = 1.0
    pieces, _ = both(monkeypatch, got, want)
    assert "1 elements are written that nobody owns" in pieces.message


def test_a_result_of_zeros_that_must_be_zeros(monkeypatch):
    zeros = np.zeros((100, 100), np.float32)
    pieces, _ = both(monkeypatch, zeros, zeros)
    assert (pieces.ok, pieces.rel_error) == (True, 0.0)
    pieces, _ = both(monkeypatch, zeros + np.float32(1e-6), zeros)
    assert not pieces.ok
