"""The report as one HTML file: style and figures inside, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

from ferrum_numba.report.blocks import Block, Heading, Paragraph, Picture, Table
from ferrum_numba.report.data import slug


def render(title: str, blocks: Sequence[Block]) -> str:
    """Return the report as one self-contained page."""
    style = resources.files("ferrum_numba.report").joinpath("style.css").read_text("utf-8")
    sections = [block.text for block in blocks if isinstance(block, Heading)]
    links = "".join(f'<a href="#{slug(name)}">{escape(name)}</a>' for name in sections)
    body = "\n".join(map(_block, blocks))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1><nav>{links}</nav></header>\n"
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Heading():
            return f'<h2 id="{slug(block.text)}">{escape(block.text)}</h2>'
        case Paragraph():
            lead = f"<strong>{escape(block.lead)}</strong> " if block.lead else ""
            return f"<p>{lead}{escape(block.text)}</p>"
        case Picture():
            return f'<figure><div class="wide">{block.svg}</div></figure>'
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    kinds = [_kind(table, column) for column in range(len(table.columns))]
    head = "".join(
        # a word joiner keeps `TFLOP/s` on one line
        f'<th scope="col"{kind}>{escape(name).replace("/", "/&#8288;")}</th>'
        for name, kind in zip(table.columns, kinds, strict=True)
    )
    emphasis = table.emphasis or ("",) * len(table.rows)
    rows = []
    for cells, emphatic in zip(table.rows, emphasis, strict=True):
        row = "".join(f"<td{k}>{escape(c)}</td>" for c, k in zip(cells, kinds, strict=True))
        rows.append(f'<tr class="{emphatic}">{row}</tr>' if emphatic else f"<tr>{row}</tr>")
    body = "\n".join(rows)
    return (
        f"<section><h3>{escape(table.title)}</h3><p class='caption'>{escape(table.caption)}</p>"
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div></section>"
    )


def _kind(table: Table, column: int) -> str:
    if table.right(column):
        return ' class="number"'
    return ' class="words"' if table.words(column) else ""
