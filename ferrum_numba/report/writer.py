"""Writes a report into a folder: HTML, Markdown, JSON, every figure, and what is drawn in it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

from ferrum_numba import whole
from ferrum_numba.errors import StoreError
from ferrum_numba.report import html, markdown
from ferrum_numba.report.document import Document, document
from ferrum_numba.report.drawing import Drawer, as_csv, as_json
from ferrum_numba.report.sources import Sources

Contents = dict[str, bytes]


class Writer:
    """Writes a report again and again into one folder; a reader sees one version or the next.

    Pictures whose data stayed the same are not drawn again. Those of the report that was in the
    folder before, of another GPU perhaps, go when the first version is there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._drawer = Drawer()
        self._written = _of_before(self.folder)

    def write(self, found: Document) -> list[Path]:
        """Write report.html, report.md, report.json, the figures and their data.

        Raises:
            StoreError: the folder cannot be written.
        """
        contents = self._contents(found)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # all are written before one is replaced: on a full disk the last report stays
            with ExitStack() as writing:
                for name, content in reversed(contents.items()):
                    if self._written.get(name) != content:
                        file = writing.enter_context(whole.writing(self.folder / name))
                        file.write(content)
                        file.flush()
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
            drawn = (svg.encode(), png, as_csv(picture).encode(), as_json(picture).encode())
            contents |= dict(zip(_files(picture.name), drawn, strict=True))
        contents["report.html"] = html.render(found.title, found.blocks, svgs).encode()
        contents["report.md"] = markdown.render(found.title, found.blocks).encode()
        contents["report.json"] = (_json(found) + "\n").encode()
        return contents


def _files(picture: str) -> list[str]:
    """Return the names of a picture's files."""
    return [f"{picture}.{kind}" for kind in ("svg", "png", "csv", "json")]


def _of_before(folder: Path) -> Contents:
    """Return the pictures' files of the report that a folder has, each as if it were empty."""
    try:
        pictures = Document.load(folder / "report.json").pictures
    except StoreError:
        return {}
    # a file says which: it names none of another folder
    names = [picture.name for picture in pictures if Path(picture.name).name == picture.name]
    return {file: b"" for name in names for file in _files(name)}


def _json(found: Document) -> str:
    return json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False)


def write(folder: str | Path, sources: Sources) -> list[Path]:
    """Write a report of what is known; return the paths, those for people first.

    folder:  made if it is not there; files of the same names are replaced
    sources: what is known; each part may be missing

    Raises:
        StoreError: the folder cannot be written, or older results to compare with do not fit.
    """
    return Writer(folder).write(document(sources))
