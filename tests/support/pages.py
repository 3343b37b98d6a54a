"""What stands in the pages of the tree: blocks of code, command lines, links, places."""

import ast
import re
import shlex
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ferrum_numba.perf.lessons import ANCHOR

ROOT = Path(__file__).resolve().parents[2]
TOP = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
# those of the tutorial run in a copy of its ladder, mistakes put in: tests/tutorial/test_pages.py
RUN_HERE = [page for page in PAGES if page.parent.name != "tutorial"]
# a comment right before a block says why it is not run, or of which file it is a part
FENCED = re.compile(
    r"(?:^<!-- (?P<note>[^>]*?) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
HEADING = re.compile(r"^#{1,6} +(.*)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
# the path of a file that a block is, in its first line
FILE = re.compile(r"# ([\w/]+\.py)\n")


@dataclass(frozen=True)
class Block:
    """Fenced code: its page, line, language, text, and the comment before it."""

    page: Path
    line: int
    language: str
    text: str
    note: str

    @property
    def part_of(self) -> str | None:
        """The file of the tree that this is copied from, where the comment says one."""
        return _after("a part of ", self.note)

    @property
    def not_run(self) -> str | None:
        """Why nothing runs this, where the comment says why."""
        return _after("not run here: ", self.note)

    @property
    def file(self) -> str | None:
        """The path of the file that this is, where the first line says one."""
        found = FILE.match(self.text)
        return found[1] if found else None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _after(begin: str, text: str) -> str | None:
    return text.removeprefix(begin) if text.startswith(begin) else None


@cache
def read(page: Path) -> str:
    return page.read_text()


def fenced(page: Path, language: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page, in a language or in any."""
    text = read(page)
    found = [
        Block(
            page, text.count("\n", 0, match.start("text")) + 1,
            match["language"], match["text"], match["note"] or "",
        )
        for match in FENCED.finditer(text)
    ]  # fmt: skip
    return [block for block in found if language in (None, block.language)]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks, its lines kept."""
    return FENCED.sub(lambda match: "\n" * match[0].count("\n"), read(page))


def indented(page: Path) -> list[str]:
    """Return the indented blocks of a page, which stand after an empty line."""
    blocks, block, before = [], [], ""
    for line in (*prose(page).splitlines(), "end"):
        if line.startswith("    ") and (block or not before.strip()):
            block.append(line[4:])
        elif line.strip() and block:
            blocks.append("\n".join(block))
            block = []
        before = line
    return blocks


def slug(heading: str) -> str:
    """Return the place of a heading as code hosts name it."""
    plain = re.sub(r"<[^>]+>|[^\w\- ]", "", heading.lower())
    return plain.strip().replace(" ", "-")


@cache
def places(page: Path) -> frozenset[str]:
    """Return what a link may lead to in a page: its anchors and its headings."""
    text = prose(page)
    return frozenset([*ANCHOR.findall(text), *map(slug, HEADING.findall(text))])


def code(page: Path) -> list[str]:
    """Return every line of code of a page that a person may type: in blocks and within text."""
    lines = [line for block in fenced(page) for line in block.text.splitlines()]
    # a line that goes on is further to the right
    lines += [
        re.sub(r"\n +", " ", line) for block in indented(page)
        for line in re.split(r"\n(?=\S)", block)
    ]  # fmt: skip
    return lines + [" ".join(text.split()) for text in INLINE.findall(prose(page))]


def command(line: str) -> list[str] | None:
    """Return the words after `ferrum-numba` of a line that calls it, as the parser takes them.

    What stands for something keeps its place: `KERNEL…`, `[--like decode]`, `gptq|awq`. What the
    line is for, two columns to the right, is left out.
    """
    found = re.match(r"(?:\$ )?ferrum-numba ([\w-]+)(.*)", line)
    if found is None:
        return None
    rest = re.split(r" {2,}(?=\S)|\s#", found[2], maxsplit=1)
    text = rest[0] if rest[0].strip() or len(rest) == 1 else ""
    words = shlex.split(re.sub(r"[\[\]]", "", text))
    return [found[1], *(word.rstrip("…") or "X" for word in (w.partition("|")[0] for w in words))]


def unresolved(source: str) -> list[str]:
    """Return what code imports, or takes from what it imports, that is not there.

    What is of a package that is not installed is not looked at.
    """
    lost: list[str] = []
    names: dict[str, object] = {}

    def take(name: str, module: str, attribute: str | None = None) -> None:
        if find_spec(module.partition(".")[0]) is None:
            return
        try:
            found = import_module(module)
        except ModuleNotFoundError as error:
            # of an extra that is not installed
            if (error.name or "").startswith("ferrum_numba"):
                lost.append(module)
            return
        if attribute and not hasattr(found, attribute):
            lost.append(f"{module}.{attribute}")
            return
        names[name] = getattr(found, attribute) if attribute else found

    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                take(alias.asname or alias.name.partition(".")[0], alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                take(alias.asname or alias.name, node.module or "", alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = names.get(node.value.id)
            if owner is not None and not hasattr(owner, node.attr):
                lost.append(f"{node.value.id}.{node.attr}")
    return lost
