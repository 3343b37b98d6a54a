"""What a report consists of, whatever it is written as; and how its figures are printed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

WORDS = frozenset({
    "config", "problem", "reason", "value", "status", "reason (of the first)", "worst at",
    "command", "what limits", "before", "now", "target",
})  # fmt: skip
Emphasis = Literal["", "best", "tie", "bad"]


@dataclass(frozen=True)
class Heading:
    """The title of a section, or of a part of one; each is there once."""

    text: str
    level: int = 2


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
    of:       which board, date and commit its numbers are of
    folded:   shown as its title until it is opened
    """

    title: str
    regime: str
    units: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    emphasis: tuple[Emphasis, ...] = ()
    of: str = ""
    folded: bool = False

    @property
    def caption(self) -> str:
        """Return regime, units and origin in a sentence each."""
        origin = f" Of {self.of}." if self.of else ""
        return f"Regime: {self.regime}. Units: {self.units}.{origin}"

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
    """A figure: its file name without ending, what it shows, and all that is drawn.

    kind: which figure it is, one of `drawing.FIGURES`
    data: lists of flat objects by name, as JSON has them
    of:   which board, date and commit its numbers are of
    """

    name: str
    title: str
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    of: str = ""


Block = Heading | Paragraph | Table | Picture
KINDS: dict[str, type[Any]] = {
    "heading": Heading, "paragraph": Paragraph, "table": Table, "picture": Picture,
}  # fmt: skip


def to_json(block: Block) -> dict[str, Any]:
    """Return a block as JSON has it, its kind first."""
    (name,) = (name for name, kind in KINDS.items() if isinstance(block, kind))
    return {"block": name, **asdict(block)}


def from_json(found: Mapping[str, Any]) -> Block:
    """Return the block that `to_json` wrote."""
    values = {name: value for name, value in found.items() if name != "block"}
    if found["block"] == "table":
        values["columns"] = tuple(values["columns"])
        values["rows"] = tuple(map(tuple, values["rows"]))
        values["emphasis"] = tuple(values["emphasis"])
    block: Block = KINDS[found["block"]](**values)
    return block


def significant(value: float | None, digits: int = 4) -> str:
    """Return a number with this many significant digits and no exponent; nothing for None."""
    if value is None or not math.isfinite(value):
        return ""
    if value == 0:
        return "0"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def per_cent(fraction: float) -> str:
    """Return a fraction as whole per cent."""
    return f"{100 * fraction:.0f} %"


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
