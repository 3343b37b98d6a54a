"""Writes a report into a folder: HTML, Markdown, JSON, and every figure as SVG and PNG."""

from __future__ import annotations

import json
from pathlib import Path

from ferrum_numba.errors import StoreError
from ferrum_numba.report import html, markdown
from ferrum_numba.report.blocks import Picture
from ferrum_numba.report.data import Sources, boards
from ferrum_numba.report.document import data, document

TITLE = "ferrum-numba report"


def write(folder: str | Path, sources: Sources) -> list[Path]:
    """Write report.html, report.md, report.json and the figures; return their paths.

    folder:  made if it is not there; files of the same names are replaced
    sources: what is known; each part may be missing

    Raises:
        StoreError: the folder cannot be written.
    """
    folder = Path(folder)
    found = boards(sources)
    blocks = document(sources, found)
    machines = sorted({board.gpu for board in found})
    title = f"{TITLE}: {', '.join(machines)}" if machines else TITLE
    facts = json.dumps(data(sources, found, blocks), indent=1, ensure_ascii=False, allow_nan=False)
    contents: dict[str, bytes] = {
        "report.html": html.render(title, blocks).encode(),
        "report.md": markdown.render(title, blocks).encode(),
        "report.json": (facts + "\n").encode(),
    }
    for block in blocks:
        if isinstance(block, Picture):
            contents[f"{block.name}.svg"] = block.svg.encode()
            contents[f"{block.name}.png"] = block.png
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}") from error
    return [folder / name for name in contents]
