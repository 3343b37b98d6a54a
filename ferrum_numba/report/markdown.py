"""The report as Markdown, its figures in files beside it."""

from __future__ import annotations

from collections.abc import Sequence

from ferrum_numba.report.blocks import Block, Heading, Paragraph, Picture, Table


def render(title: str, blocks: Sequence[Block]) -> str:
    """Return the report as GitHub Markdown."""
    parts = [f"# {title}", *map(_block, blocks)]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escape(text)}"
        case Paragraph():
            lead = f"**{_escape(block.lead)}** " if block.lead else ""
            return lead + _escape(block.text)
        case Picture(name, title, _, _, of):
            data = f"drawn: [{name}.csv]({name}.csv), [{name}.json]({name}.json)"
            note = f"Of {_escape(of)}; {data}" if of else data
            return f"![{title}]({name}.svg)\n\n**{_escape(title)}.** {note}."
        case Table():
            return _table(block)


def _escape(text: str) -> str:
    """Return a text whose characters mean themselves; a table cell holds one line."""
    for old, new in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("*", "\\*")):
        text = text.replace(old, new)
    return " ".join(text.split())


def _table(table: Table) -> str:
    """Return a table whose columns are aligned in the source too."""
    cells = [[_escape(name) for name in table.columns]]
    cells += [[_escape(cell) for cell in row] for row in table.rows]
    right = [table.right(column) for column in range(len(table.columns))]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(right))]
    rule = [
        "-" * (width - 1) + ":" if is_right else "-" * width
        for width, is_right in zip(widths, right, strict=True)
    ]
    lines = [cells[0], rule, *cells[1:]]
    text = "\n".join(_line(line, widths, right) for line in lines)
    return f"### {_escape(table.title)}\n\n{_escape(table.caption)}\n\n{text}"


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if is_right else cell.ljust(width)
        for cell, width, is_right in zip(cells, widths, right, strict=True)
    ]
    return f"| {' | '.join(padded)} |"
