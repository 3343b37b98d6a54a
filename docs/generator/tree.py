"""Links to files of the tree that are no pages: the site has copies of them, in the same places."""

import shutil
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

# in a folder whose files are shown
NOT_SHOWN = ("__pycache__", ".ipynb_checkpoints")


def linked(target: str, page: Path, root: Path) -> Path | None:
    """Return what a link of a page leads to below a root, relative to that; None: nothing."""
    path = (page.parent / unquote(target.partition("#")[0])).resolve()
    return path.relative_to(root) if path.exists() and path.is_relative_to(root) else None


def files(folder: Path) -> list[Path]:
    """Return the files below a folder, relative to it."""
    below = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in below if not set(path.parts) & set(NOT_SHOWN)]


class Tree(SphinxTransform):
    """Leave links as they are that lead to what is no page, and note where they lead."""

    # before Sphinx collects downloads
    default_priority = 100

    def apply(self) -> None:
        """Replace what MyST made of the links."""
        root, page = Path(self.env.srcdir), Path(self.env.doc2path(self.env.docname))
        found = [
            *self.document.findall(addnodes.download_reference),
            *(n for n in self.document.findall(addnodes.pending_xref) if n["reftype"] == "myst"),
        ]
        for node in found:
            if "/" not in node["reftarget"] and "." not in node["reftarget"]:
                continue
            path = linked(node["reftarget"], page, root)
            if path is None or self.env.path2doc(root / path) in self.env.found_docs:
                continue
            noted(self.env).setdefault(path.as_posix(), set()).add(self.env.docname)
            uri = "/".join([".."] * (len(page.relative_to(root).parts) - 1) + [path.as_posix()])
            uri += "/index.html" if (root / path).is_dir() else ""
            node.replace_self(nodes.reference("", "", *node.children, refuri=uri))


def noted(env: BuildEnvironment) -> dict[str, set[str]]:
    """Return which paths are linked, each from which pages."""
    if not hasattr(env, "tree_paths"):
        env.tree_paths = {}
    return env.tree_paths


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget the links of a page that is read again."""
    for pages in noted(env).values():
        pages.discard(docname)


def merge(app: Sphinx, env: BuildEnvironment, names: Any, other: BuildEnvironment) -> None:
    """Note what another process read."""
    for path, pages in noted(other).items():
        noted(env).setdefault(path, set()).update(pages)


def listings(app: Sphinx) -> Any:
    """Yield a page for every folder that is linked: its pages and its files."""
    for path, pages in noted(app.env).items():
        folder = Path(app.srcdir) / path
        if pages and folder.is_dir():
            items = []
            for file in files(folder):
                docname = app.env.path2doc(folder / file)
                page = docname in app.env.found_docs
                uri = file.with_suffix(".html") if page else file
                name = app.env.titles[docname].astext() if page else file.as_posix()
                items.append(f'<li><a href="{escape(uri.as_posix())}">{escape(name)}</a></li>')
            body = f"<h1><code>{escape(path)}</code></h1><ul>{''.join(items)}</ul>"
            yield f"{path}/index", {"title": path, "body": body}, "page.html"


def copy(app: Sphinx, error: Exception | None) -> None:
    """Copy the files that are linked, and those of the folders, to where they lie in the tree."""
    if error is not None or app.builder.format != "html":
        return
    for path, pages in noted(app.env).items():
        source = Path(app.srcdir) / path
        for file in files(source) if source.is_dir() else [Path()]:
            if pages and app.env.path2doc(source / file) not in app.env.found_docs:
                target = app.outdir / path / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / file, target)


def setup(app: Sphinx) -> None:
    """Register the transform and what follows from it."""
    app.add_transform(Tree)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("html-collect-pages", listings)
    app.connect("build-finished", copy)
