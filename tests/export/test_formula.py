"""Formulas over M: what they are worth, and that those which are found are exact."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum_numba.division import ceil_div
from ferrum_numba.errors import StoreError
from ferrum_numba.export.formula import evaluate, segments

UNITS = (1, 16)


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        (7, 7),
        ("M", 33),
        (["+", "M", -2], 31),
        (["*", 3, "M"], 99),
        (["ceil_div", "M", 16], 3),
        (["+", ["*", 2, ["ceil_div", "M", 32]], 5], 9),
    ],
)
def test_a_formula_has_a_value(formula, value):
    assert evaluate(formula, 33) == value


@pytest.mark.parametrize("formula", ["N", True, 1.5, ["-", 1, 2], ["+", 1], None, ["+", 1, "x"]])
def test_what_is_no_formula_is_refused(formula):
    with pytest.raises(StoreError, match="is no formula over M"):
        evaluate(formula, 1)


@pytest.mark.parametrize(
    ("value", "formula"),
    [
        (lambda M: 5, 5),
        (lambda M: M, "M"),
        (lambda M: 2 * M + 1, ["+", ["*", 2, "M"], 1]),
        (lambda M: ceil_div(M, 16), ["ceil_div", "M", 16]),
        (lambda M: 3 - 2 * ceil_div(M, 16), ["+", ["*", -2, ["ceil_div", "M", 16]], 3]),
    ],
)
def test_a_line_is_one_formula(value, formula):
    assert list(segments(lambda M: {"a": value(M)}, 1, 100, UNITS)) == [(1, 100, {"a": formula})]


def test_a_bend_divides_the_range():
    bent = segments(lambda M: {"a": M, "b": min(M, 20)}, 1, 40, UNITS)
    assert list(bent) == [(1, 20, {"a": "M", "b": "M"}), (21, 40, {"a": "M", "b": 20})]


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=60),
    st.lists(st.sampled_from([1, 2, 3, 8]), min_size=1, max_size=3),
    st.integers(1, 50),
)
def test_formulas_are_exact_and_leave_no_gap(values, units, first):
    last = first + len(values) - 1
    found = list(segments(lambda M: {"a": values[M - first]}, first, last, units))
    covered = [range(segment.m_first, segment.m_last + 1) for segment in found]
    assert list(itertools.chain(*covered)) == list(range(first, last + 1))
    for segment in found:
        for M in range(segment.m_first, segment.m_last + 1):
            assert evaluate(segment.formulas["a"], M) == values[M - first]
