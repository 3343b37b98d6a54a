"""The report as one HTML file: style and figures inside, nothing loaded from anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape as escaped
from importlib import resources

from ferrum_numba.report.blocks import Block, Heading, Paragraph, Picture, Table
from ferrum_numba.report.data import slug
from ferrum_numba.roofline.svg import short_name
from ferrum_numba.words import counted

DATE = re.compile(r"\b(\d{4})-(\d\d)-(\d\d)\b")


def render(title: str, blocks: Sequence[Block], svgs: Mapping[str, str]) -> str:
    """Return the report as one self-contained page.

    svgs: each picture as an `<svg>` element, by name
    """
    sections = [b.text for b in blocks if isinstance(b, Heading) and b.level == 2]
    links = "".join(f'<a href="#{slug(name)}">{escape(name)}</a>' for name in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_style()}{_columns(blocks)}</style>\n</head>\n"
        "<body>\n"
        f"<header><h1>{escape(title)}</h1><nav>{links}</nav></header>\n"
        f"<main>\n{_body(blocks, svgs)}\n</main>\n</body>\n</html>\n"
    )


def fragment(blocks: Sequence[Block], svgs: Mapping[str, str]) -> str:
    """Return blocks as an element of somebody else's page, a notebook's."""
    return f'<div class="ferrum-report">{_body(blocks, svgs)}</div>'


# a number and its unit, how many of how many, an interval
TOGETHER = re.compile(
    r"(?<=\d) (?=%|×|µs|ms|MHz|[GT]B/s|T?FLOP|10\^12)|(?<=\d) (?=of \d)|(?<=\d of) (?=\d)"
    r"|(?<=\d,) (?=[\d.]+\])"
)


def escape(text: str) -> str:
    """Return a text as HTML, whose numbers are not parted from what they are of."""
    # a word joiner keeps a date on one line
    return escaped(DATE.sub("\\1-\u2060\\2-\u2060\\3", TOGETHER.sub("\u00a0", text)))


def _style() -> str:
    return resources.files("ferrum_numba.report").joinpath("style.css").read_text("utf-8")


def _body(blocks: Sequence[Block], svgs: Mapping[str, str]) -> str:
    return "\n".join(map(partial(_block, svgs), blocks))


def _block(svgs: Mapping[str, str], block: Block) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level} id="{slug(text)}">{escape(text)}</h{level}>'
        case Paragraph(text, lead):
            strong = f"<strong>{escape(lead)}</strong> " if lead else ""
            return f"<p>{strong}{escape(text)}</p>"
        case Picture(name, title, _, _, of):
            data = f"drawn: {name}.csv, {name}.json"
            note = f"Of {escape(of)}; {data}" if of else data
            return (
                f"<figure>{svgs[name]}<figcaption><strong>{escape(title)}.</strong> "
                f"{note}.</figcaption></figure>"
            )
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    head = "".join(
        # a word joiner keeps `TFLOP/s` on one line
        f'<th scope="col"{_kind(table, i)}>{escape(name).replace("/", "/&#8288;")}</th>'
        for i, name in enumerate(table.columns)
    )
    emphasis = table.emphasis or ("",) * len(table.rows)
    rows = []
    for cells, emphatic in zip(table.rows, emphasis, strict=True):
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr class="{emphatic}">{row}</tr>' if emphatic else f"<tr>{row}</tr>")
    body = "\n".join(rows)
    content = (
        f'<p class="caption">{escape(table.caption)}</p><table id="{short_name(table.title)}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    )
    if table.folded:
        count = counted(len(table.rows), "row")
        summary = f"<summary>{escape(table.title)} ({count})</summary>"
        return f"<details>{summary}{content}</details>"
    return f"<section><h3>{escape(table.title)}</h3>{content}</section>"


def _kind(table: Table, column: int) -> str:
    return ' class="number"' if table.right(column) else ""


def _columns(blocks: Sequence[Block]) -> str:
    """Return the style of every column, said once and not of each of its cells.

    On a phone a row is a card, and each cell says which column it is of.
    """
    numbers: list[str] = []
    words: list[str] = []
    named: list[str] = []
    for table in (block for block in blocks if isinstance(block, Table)):
        for i, name in enumerate(table.columns):
            cell = f"#{short_name(table.title)} td:nth-child({i + 1})"
            if table.right(i):
                numbers.append(cell)
            elif table.words(i):
                words.append(cell)
            named.append(f'{cell}::before{{content:"{_css(name)}: "}}')
    rules = []
    if numbers:
        rules.append(f"{','.join(numbers)}{{text-align:var(--end);white-space:var(--number)}}")
    if words:
        looks = "overflow-wrap:anywhere;min-width:var(--words);column-span:var(--span)"
        rules.append(f"{','.join(words)}{{{looks}}}")
    return "\n".join([*rules, "@media screen and (max-width: 960px){", *named, "}\n"])


def _css(text: str) -> str:
    """Return a text as it stands in quotes in a style."""
    for character in ("\\", '"', "<"):
        text = text.replace(character, f"\\{ord(character):x} ")
    return text
