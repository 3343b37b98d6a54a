"""The navigation: appended to the front page, which a code host shows without it."""

import shutil
from collections.abc import Iterable
from pathlib import PurePosixPath

from sphinx.application import Sphinx

# caption -> pages in their order, `*` for all of a folder that were not named before
GROUPS = {
    "Start": ("Overview <self>", "docs/own_kernel"),
    "Tutorial": ("docs/tutorial/*", "docs/notebooks/*"),
    "Guides": (
        "docs/trace", "docs/tuning", "docs/measuring", "docs/report", "docs/checkpoints",
        "docs/conversion", "docs/torch", "docs/experts", "docs/export",
    ),
    "Designs": ("docs/designs/*", "docs/hardware", "docs/results"),
    "Reference": (
        "docs/instructions", "docs/reference/commands", "docs/reference/kernels",
        "docs/reference/instructions", "docs/reference/layers", "docs/reference/*",
    ),
    "Project": ("docs/design", "docs/reliability", "docs/*", "CONTRIBUTING", "CHANGELOG", "*"),
}  # fmt: skip
# of a folder the first
FIRST = ("README", "index")


def expanded(pattern: str, docnames: Iterable[str]) -> list[str]:
    """Return the pages that a pattern means; a page's own name stands for itself."""
    if "*" not in pattern:
        return [pattern]
    depth = pattern.count("/")
    found = (PurePosixPath(name) for name in docnames if name.count("/") == depth)
    matching = (path for path in found if path.match(pattern))
    ordered = sorted(matching, key=lambda path: (path.name not in FIRST, path))
    return [path.as_posix() for path in ordered]


def contents(docnames: Iterable[str], root: str) -> dict[str, list[str]]:
    """Return the pages by caption, without captions that have none; each page stands once."""
    named = {name for patterns in GROUPS.values() for name in patterns}
    left = set(docnames) - named - {root}
    groups: dict[str, list[str]] = {}
    for caption, patterns in GROUPS.items():
        for pattern in patterns:
            found = expanded(pattern, left)
            left -= set(found)
            groups.setdefault(caption, []).extend(found)
    return {caption: pages for caption, pages in groups.items() if pages}


def append(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the navigation to the text of the front page."""
    if docname == app.config.root_doc:
        for caption, pages in contents(app.env.found_docs, docname).items():
            lines = ("```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```")
            source[0] += "\n" + "\n".join(lines) + "\n"


def finish(app: Sphinx, error: Exception | None) -> None:
    """Copy the front page to where servers look for it, and let none of them drop `_static`."""
    if error is None and app.builder.format == "html":
        shutil.copyfile(app.outdir / f"{app.config.root_doc}.html", app.outdir / "index.html")
        (app.outdir / ".nojekyll").touch()


def setup(app: Sphinx) -> None:
    """Register both."""
    app.connect("source-read", append)
    app.connect("build-finished", finish)
