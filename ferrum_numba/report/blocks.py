"""What a report consists of, whatever it is written as; and how its figures are printed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

WORDS = frozenset({"config", "problem", "reason", "value", "status", "reason (of the first)"})
Emphasis = Literal["", "best", "tie", "bad"]


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more, the first words of which may stand out."""

    text: str
    lead: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its regime and units, without which a figure means nothing.

    regime:   "cold", "warm", "eager", or why there is none
    emphasis: of each row; all plain if empty
    """

    title: str
    regime: str
    units: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    emphasis: tuple[Emphasis, ...] = ()

    @property
    def caption(self) -> str:
        """Return regime and units in a sentence."""
        return f"Regime: {self.regime}. Units: {self.units}."

    def words(self, column: int) -> bool:
        """Return whether a column holds sentences or lists, which may wrap."""
        return self.columns[column].removesuffix(" (modelled)") in WORDS

    def right(self, column: int) -> bool:
        """Return whether a column holds numbers, which are aligned at the right."""
        cells = [row[column] for row in self.rows if row[column]]
        numbers = bool(cells) and not self.words(column)
        return numbers and all(cell[0].isdigit() or cell[0] in "-<" for cell in cells)


@dataclass(frozen=True)
class Picture:
    """A figure: its file name without ending, what it shows, and it itself."""

    name: str
    title: str
    svg: str
    png: bytes


Block = Heading | Paragraph | Table | Picture


def significant(value: float | None, digits: int = 4) -> str:
    """Return a number with this many significant digits and no exponent; nothing for None."""
    if value is None or not math.isfinite(value):
        return ""
    if value == 0:
        return "0"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def span(values: list[float], digits: int = 4) -> str:
    """Return the range of some numbers, or the one number they all are."""
    if not values:
        return ""
    ends = (min(values), max(values))
    if all(value.is_integer() for value in values):
        low, high = (f"{end:.0f}" for end in ends)
    else:
        low, high = (significant(end, digits) for end in ends)
    return low if low == high else f"{low} to {high}"


def pairs(values: Mapping[str, Any]) -> str:
    """Return a config or problem as `name=value` words."""
    return " ".join(f"{name}={value}" for name, value in values.items())
