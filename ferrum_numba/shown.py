"""How results look where nobody asked for a file: as HTML in a notebook, as text in a terminal.

A result says once what is to be seen of it, as parts; both forms are made of these. Every text of
the HTML is escaped, and nearly none has a style of its own: a notebook's own table is good enough.
"""

from __future__ import annotations

import math
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from html import escape
from typing import Any

WIDTH = 100
# a notebook puts cells to the right, as numbers
LEFT = '<td style="text-align:left">'
# of a table, rows at either end where there are many more
MOST_ROWS = 60


@dataclass(frozen=True)
class Grid:
    """A table whose cells are texts; columns in which nothing stands are left out."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def trimmed(self) -> tuple[tuple[str, ...], list[tuple[str, ...]], int]:
        """Return the columns and rows that are shown, and how many rows are not."""
        left = max(0, len(self.rows) - MOST_ROWS)
        rows = self.rows[: MOST_ROWS // 2] + self.rows[-MOST_ROWS // 2 :] if left else self.rows
        places = [i for i in range(len(self.columns)) if not rows or any(row[i] for row in rows)]
        return (
            tuple(self.columns[i] for i in places),
            [tuple(row[i] for i in places) for row in rows],
            left,
        )


@dataclass(frozen=True)
class Facts:
    """What is known of one thing, by name, in lines; what is empty is left out."""

    title: str
    known: Mapping[str, str]


@dataclass(frozen=True)
class Sentences:
    """Sentences below each other."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """An `<svg>` element, and what stands in its place as text."""

    svg: str
    words: str = ""


Part = Grid | Facts | Sentences | Drawing


class Shown(ABC):
    """What is shown by its parts: by `str` and in a terminal's IPython as text, else as HTML."""

    @abstractmethod
    def parts(self) -> Iterable[Part]:
        """Return what is to be seen of it."""

    def __str__(self) -> str:
        return as_text(self.parts())

    def _repr_html_(self) -> str:
        return as_html(self.parts())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def as_html(parts: Iterable[Part]) -> str:
    """Return parts as elements of somebody else's page."""
    return "\n".join(map(_html, parts))


def as_text(parts: Iterable[Part], width: int = WIDTH) -> str:
    """Return parts as lines, those of sentences of at most `width` characters."""
    blocks = ("\n".join(_text(part, width)) for part in parts)
    return "\n\n".join(block for block in blocks if block)


def words(values: Mapping[str, Any]) -> str:
    """Return fields by name in words: `M=16 N=4096`."""
    return " ".join(f"{name}={value}" for name, value in values.items())


def differences(config: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Return in words what of a config is not as usual; `default` if nothing is."""
    return (words(unlike(config, usual)) or "default") if config else ""


def unlike(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are not as usual."""
    return {name: v for name, v in values.items() if name not in usual or usual[name] != v}


def usual_fields(kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass that have a default, with it."""
    return {one.name: one.default for one in fields(kind) if one.default is not MISSING}


def shared(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields that all of several configs have alike; of one there is none."""
    if len(values) < 2:
        return {}
    first, *others = values
    return {
        name: value
        for name, value in first.items()
        if all(name in one and one[name] == value for one in others)
    }


def number(value: float | None, digits: int = 4) -> str:
    """Return a number in so many digits; nothing for what nobody knows."""
    if value is None or not math.isfinite(value):
        return ""
    if isinstance(value, int):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:.{digits}g}"


def _html(part: Part) -> str:
    match part:
        case Grid():
            return _table(part)
        case Facts(title, known):
            lines = (
                f'<tr><th scope="row">{escape(name)}</th>{LEFT}{_lines(value)}</td></tr>'
                for name, value in known.items()
                if value
            )
            return f"<table>{_caption(title)}<tbody>{''.join(lines)}</tbody></table>"
        case Sentences(texts):
            items = "".join(f"<li>{escape(text)}</li>" for text in texts)
            return f"<ul>{items}</ul>" if items else ""
        case Drawing(svg):
            return svg


def _lines(value: str) -> str:
    return "<br>".join(map(escape, value.split("\n")))


def _table(grid: Grid) -> str:
    columns, rows, left = grid.trimmed()
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = [f"<tr>{line}</tr>" for line in lines]
    if left:
        gap = f'<tr><td colspan="{len(columns)}">{left} rows more</td></tr>'
        body.insert(MOST_ROWS // 2, gap)
    return (
        f"<table>{_caption(grid.title)}<thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _caption(title: str) -> str:
    return f"<caption>{escape(title)}</caption>" if title else ""


def _text(part: Part, width: int) -> list[str]:
    match part:
        case Grid(title):
            columns, rows, left = part.trimmed()
            lines = _aligned([columns, *rows])
            if left:
                lines.insert(1 + MOST_ROWS // 2, f"  … {left} rows more")
            return [*([title] if title else []), *lines]
        case Facts(title, known):
            pairs = [(name, "; ".join(value.split("\n"))) for name, value in known.items() if value]
            return [*([title] if title else []), *_aligned(pairs, header=False)]
        case Sentences(texts):
            found = (
                textwrap.wrap(printable(text), width, subsequent_indent="  ") for text in texts
            )
            return [line for lines in found for line in lines]
        case Drawing(_, said):
            return [said] if said else []


def _aligned(rows: Sequence[Sequence[str]], header: bool = True) -> list[str]:
    """Return rows as lines whose columns lie below each other; those of numbers to the right."""
    if not rows:
        return []
    texts = [[printable(cell) for cell in row] for row in rows]
    columns = list(zip(*texts, strict=True))
    cells = [column[1:] if header else column for column in columns]
    right = [header and any(one) and all(_is_number(cell) for cell in one) for one in cells]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  "
        + "  ".join(
            f"{cell:>{width}}" if to_right else f"{cell:<{width}}"
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in texts
    ]


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit()


def printable(text: str) -> str:
    """Return a text in which what a terminal takes for a command is written in its escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
