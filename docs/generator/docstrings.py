"""The house's docstrings as reStructuredText.

They are plain text: paragraphs, `code`, tables of `name: what it is`, headed by `Args:` and the
like or, of a class, by nothing. CONTRIBUTING.md has the form.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from sphinx.application import Sphinx

from ferrum_numba import errors

HEADING = re.compile(r"(Args|Returns|Raises|Yields):(?: (.*))?$")
# one name or several, and what they are
ENTRY = re.compile(r"([\w*]+(?:, [\w*]+)*):\s+(\S.*)$")
# columns that are only meant to stand below each other
COLUMNS = re.compile(r"\S {2,}\S")
CODE = re.compile(r"(`+)(.+?)\1")
# what `Array` of contract.py stands for
ARRAY = "~numpy.ndarray[tuple[~typing.Any, ...], ~numpy.dtype[~typing.Any]]"
SPECIAL = re.compile(r"([*|\\_])")


def inline(text: str) -> str:
    """Return a line whose `code` is literal and whose other signs stand for themselves."""
    text = re.sub(r"\b(docs/[\w/]+)\.md(?:#[\w-]+)?", r"`\g<0>`", text)
    done, at = [], 0
    for found in CODE.finditer(text):
        done += [SPECIAL.sub(r"\\\1", text[at : found.start()]), f"``{found[2]}``"]
        at = found.end()
        # a literal ends at a sign that ends a word
        done += ["\\ "] if text[at : at + 1].isalnum() else []
    return "".join((*done, SPECIAL.sub(r"\\\1", text[at:])))


def term(names: str) -> str:
    """Return the names of an entry: an error's is a link."""
    if isinstance(getattr(errors, names, None), type):
        return f":py:exc:`~ferrum_numba.errors.{names}`"
    return ", ".join(f"``{name}``" for name in names.split(", "))


def blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield runs of lines without an empty one; a heading keeps what is indented below it."""
    block: list[str] = []
    for line in (*lines, ""):
        inside = bool(block) and HEADING.match(block[0]) and line.startswith("    ")
        if block and not inside and (not line or HEADING.match(line)):
            yield block
            block = []
        if line:
            block.append(line)


def entries(block: list[str]) -> list[tuple[str, str]] | None:
    """Return a table's names and texts; None if the block is something else."""
    found: list[tuple[str, str]] = []
    for line in block:
        entry = ENTRY.match(line)
        if entry:
            found.append((entry[1], entry[2]))
        elif found and line.startswith(" "):
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        else:
            return None
    return found


def indented(lines: Iterable[str]) -> list[str]:
    """Return lines three further to the right."""
    return [f"   {line}" if line else "" for line in lines]


def table(block: list[str]) -> list[str]:
    """Return a block as a list of definitions, as it is, or as a paragraph."""
    found = entries(block)
    if found is not None:
        items = [line for names, text in found for line in (term(names), f"   {inline(text)}")]
        return [".. rst-class:: names", "", *items]
    if all(line.startswith("    ") for line in block):
        return ["::", "", *indented(line[4:] for line in block)]
    if len(block) > 1 and any(COLUMNS.search(line) for line in block):
        return ["::", "", *indented(block)]
    return [inline(line.strip()) for line in block]


def restructured(lines: Iterable[str]) -> list[str]:
    """Return the lines of a docstring as reStructuredText."""
    done: list[str] = []
    for block in blocks(line.rstrip() for line in lines):
        heading = HEADING.match(block[0])
        if heading is None:
            done += [*table(block), ""]
            continue
        below = [line.removeprefix("    ") for line in block[1:]]
        below = [heading[2], *below] if heading[2] else below
        if heading[1] in ("Returns", "Yields") and not any(map(COLUMNS.search, below)):
            below = [inline(line) for line in below]
        else:
            below = table(below)
        done += [f":{heading[1]}:", *indented(below), ""]
    return done


def process(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Replace the lines of a docstring that autodoc found."""
    lines[:] = restructured(lines)


def shorten(
    app: Sphinx, what: str, name: str, item: Any, options: Any, signature: str, returns: str
) -> tuple[str | None, str | None] | None:
    """Write a type by the name that sources have for it, which Python no longer knows."""
    short = [text and text.replace(ARRAY, "Array") for text in (signature, returns)]
    return short[0], short[1]


def setup(app: Sphinx) -> None:
    """Register the changes."""
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", shorten)
