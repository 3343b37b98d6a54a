"""Writes a report into a folder: HTML, Markdown, JSON, every figure, and what is drawn in it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ferrum_numba.errors import StoreError
from ferrum_numba.report import html, markdown
from ferrum_numba.report.document import Document, document
from ferrum_numba.report.drawing import Drawer, as_csv, as_json
from ferrum_numba.report.sources import Sources

Contents = dict[str, bytes]
# a file while it is written, with the number of the process that does
HALF = re.compile(r"\..+\.(?:html|md|json|svg|png|csv)\.(\d+)")


class Writer:
    """Writes a report again and again into one folder; a reader sees one version or the next.

    Pictures whose data stayed the same are not drawn again.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._drawer = Drawer()
        self._written: Contents = {}

    def write(self, found: Document) -> list[Path]:
        """Write report.html, report.md, report.json, the figures and their data.

        Raises:
            StoreError: the folder cannot be written.
        """
        contents = self._contents(found)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._written:
                _clear(self.folder)
            for name, content in contents.items():
                if self._written.get(name) != content:
                    _replace(self.folder / name, content)
            for name in self._written.keys() - contents.keys():
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be written: {error.strerror}") from error
        self._written = contents
        ends = ("report.html", "report.md", "report.json")
        return [self.folder / name for name in sorted(contents, key=lambda n: n not in ends)]

    def _contents(self, found: Document) -> Contents:
        """Return the files by name, those that name others last."""
        contents: Contents = {}
        svgs = {}
        for picture in found.pictures:
            svg, png = self._drawer.draw(picture)
            svgs[picture.name] = svg
            contents[f"{picture.name}.svg"] = svg.encode()
            contents[f"{picture.name}.png"] = png
            contents[f"{picture.name}.csv"] = as_csv(picture).encode()
            contents[f"{picture.name}.json"] = as_json(picture).encode()
        contents["report.html"] = html.render(found.title, found.blocks, svgs).encode()
        contents["report.md"] = markdown.render(found.title, found.blocks).encode()
        contents["report.json"] = (_json(found) + "\n").encode()
        return contents


def _json(found: Document) -> str:
    return json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False)


def _clear(folder: Path) -> None:
    """Remove what processes left behind that were killed while they wrote here."""
    for path in folder.iterdir():
        found = HALF.fullmatch(path.name)
        if found and not _runs(int(found[1])):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _replace(path: Path, content: bytes) -> None:
    """Write a file at once: killed in between, what was there before stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(folder: str | Path, sources: Sources) -> list[Path]:
    """Write a report of what is known; return the paths, those for people first.

    folder:  made if it is not there; files of the same names are replaced
    sources: what is known; each part may be missing

    Raises:
        StoreError: the folder cannot be written, or older results to compare with do not fit.
    """
    return Writer(folder).write(document(sources))
