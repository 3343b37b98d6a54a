"""The small formulas of an export: whole numbers as functions of M, and how they are found.

    formula = integer | "M" | [operator, formula, formula]      operator = "+" | "*" | "ceil_div"

`["+", ["*", 2, ["ceil_div", "M", 16]], 5]` is 2 * ceil(M / 16) + 5. A range of M gets a formula
only where that gives, for every M of the range, exactly what the kernel's own launch gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ferrum_numba.division import ceil_div
from ferrum_numba.errors import StoreError

# as JSON has it
Formula = Any
OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "ceil_div": ceil_div,
}


def evaluate(formula: Formula, M: int) -> int:
    """Return a formula's value.

    Raises:
        StoreError: it is no formula.
    """
    if isinstance(formula, int) and not isinstance(formula, bool):
        return formula
    if formula == "M":
        return M
    if isinstance(formula, list) and len(formula) == 3 and formula[0] in OPERATORS:
        operator, left, right = formula
        return OPERATORS[operator](evaluate(left, M), evaluate(right, M))
    raise StoreError(f"{formula!r} is no formula over M")


class Segment(NamedTuple):
    """A range of M, ends included, in which each value has one formula."""

    m_first: int
    m_last: int
    formulas: dict[Any, Formula]


def segments(
    values: Callable[[int], Mapping[Any, int]], first: int, last: int, units: Iterable[int]
) -> Iterator[Segment]:
    """Yield few ranges that cover first to last, with formulas that are exact in them.

    values: M -> a whole number by name, the same names for every M
    units:  what M may be divided by: sizes of tiles
    """
    units = sorted({1, *units})
    known = [values(first)]
    lines = _begin(known[0], first, units)
    for M in range(first + 1, last + 1):
        now = values(M)
        longer = {name: lines[name].through(M, value) for name, value in now.items()}
        if any(line is None for line in longer.values()):
            yield _segment(M - len(known), lines, known)
            known, longer = [], dict(_begin(now, M, units))
        lines = {name: line for name, line in longer.items() if line is not None}
        known.append(now)
    yield _segment(last + 1 - len(known), lines, known)


def _begin(values: Mapping[Any, int], M: int, units: Iterable[int]) -> dict[Any, _Line]:
    return {name: _Line(M, value, dict.fromkeys(units)) for name, value in values.items()}


def _segment(first: int, lines: Mapping[Any, _Line], known: list[Mapping[Any, int]]) -> Segment:
    formulas = {name: line.formula() for name, line in lines.items()}
    for M, values in enumerate(known, first):
        wrong = [name for name, formula in formulas.items() if evaluate(formula, M) != values[name]]
        assert not wrong, f"the formulas of {wrong} do not give {values} at M = {M}"
    return Segment(first, first + len(known) - 1, formulas)


@dataclass(frozen=True)
class _Line:
    """The lines slope * ceil_div(M, unit) + offset through all points of one value so far.

    M, value: the first point
    slopes:   of each unit that has such a line; None while all points have the same ceil_div
    """

    M: int
    value: int
    slopes: Mapping[int, int | None]

    def through(self, M: int, value: int) -> _Line | None:
        """Return the lines that go through one more point too, None where there are none."""
        rise = value - self.value
        slopes = {}
        for unit, slope in self.slopes.items():
            steps = ceil_div(M, unit) - ceil_div(self.M, unit)
            if slope is None and steps and rise % steps == 0:
                slope = rise // steps
            if rise == steps * (slope or 0):
                slopes[unit] = slope
        return replace(self, slopes=slopes) if slopes else None

    def formula(self) -> Formula:
        """Return the plainest of the lines."""
        unit, slope = next(iter(self.slopes.items()))
        if not slope:
            return self.value
        steps: Formula = "M" if unit == 1 else ["ceil_div", "M", unit]
        offset = self.value - slope * ceil_div(self.M, unit)
        product = steps if slope == 1 else ["*", slope, steps]
        return product if offset == 0 else ["+", product, offset]
