"""The tutorial's pages: what they quote is in the files, what they type prints what they show."""

import json
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from ferrum_numba import cli, gpu, shipped
from ferrum_numba.kernels import KERNELS, MOE, TOOLS
from ferrum_numba.kernels.ceilings import CEILINGS
from ferrum_numba.perf import tutorial_table
from ferrum_numba.perf.peers import PEERS
from ferrum_numba.perf.problems import PROBLEM_SETS
from ferrum_numba.perf.tutorial_table import STEPS, TUTORIAL

PAGES = sorted(TUTORIAL.glob("[0-9]*.md"))
BLOCK = re.compile(r"^```(python|diff|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# what is elided
GAP = "…"


class Case(NamedTuple):
    """A command of a page, the changes that were made before it, and what it prints."""

    page: str
    changes: tuple[str, ...]
    command: str
    shown: str


def blocks(page):
    """Return (kind, text) of a page's blocks, in their order."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def quotes():
    """Return (page, file, code) of all code that is quoted of the ladder."""
    found = []
    for page in PAGES:
        for kind, text in blocks(page):
            name, _, code = text.partition("\n")
            if kind == "python" and name.startswith("# ladder/"):
                found.append((page.stem, name.removeprefix("# "), code))
    return found


def cases():
    """Return every command of every page; changes hold until the next console block has ended."""
    found = []
    for page in PAGES:
        changes = ()
        for kind, text in blocks(page):
            if kind == "diff":
                changes = (*changes, text)
            elif kind == "console":
                for one in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                    command, _, shown = one.partition("\n")
                    found.append(Case(page.stem, changes, command, shown))
                changes = ()
    return found


def is_long(case):
    """Return whether a command checks a whole step or compiles: too long for every run."""
    quick = any(word in case.command for word in ("--trace", "--arch", "export")) or case.changes
    return "M=16" in case.command or not (quick or "compare" in case.command)


def marked(case):
    number = sum(one[:3] == case[:3] for one in CASES[: CASES.index(case)])
    name = f"{case.page}-{'mistake-' if case.changes else ''}{case.command.split()[1]}-{number}"
    marks = [pytest.mark.slow] if is_long(case) else []
    return pytest.param(case, id=name, marks=marks)


def changed(text, diff, file):
    """Return a file's text with the lines of a diff changed; each hunk stands there once."""
    lines = diff.splitlines()
    old = "\n".join(line[1:] for line in lines if line[:1] in (" ", "-"))
    new = "\n".join(line[1:] for line in lines if line[:1] in (" ", "+"))
    assert text.count(old) == 1, f"{file} does not have once:\n{old}"
    return text.replace(old, new)


def apply(folder, diff):
    """Change files as a block of hunks says, each after the line `--- FILE`."""
    for hunk in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, _, lines = hunk.partition("\n")
        file = folder / name
        file.write_text(changed(file.read_text(), lines, name))


def pattern(shown):
    """Return what matches a command's output: words as they are shown, anything for a gap.

    A gap is one word or more, or the beginning of one; at the end of a word it is what a table
    printed.
    """
    words = [re.sub(f"^{GAP}", ".*?", re.escape(word)) for word in shown.split()]
    return re.compile(r"\s*" + r"\s+".join(words) + r"\s*", re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Copy the ladder and go there; what is imported of it goes again."""
    shutil.copytree(
        TUTORIAL / "ladder", tmp_path / "ladder", ignore=shutil.ignore_patterns("__*__")
    )
    (tmp_path / "ladder" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(TUTORIAL)])
    # the pages are read, and written, where there is none
    monkeypatch.setattr(gpu, "driver_present", lambda: False)
    forget()
    yield tmp_path
    forget()


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "ladder"]:
        del sys.modules[name]


def run(command, capsys):
    """Run a command as the shell would; return its status and what it prints."""
    recorded = shipped.results_folder()
    words = command.split()
    assert words[0] == "ferrum-numba"
    tools = (*TOOLS, *MOE)
    status = cli.main(KERNELS, PROBLEM_SETS, words[1:], CEILINGS, recorded, PEERS, tools=tools)
    out, err = capsys.readouterr()
    return status, (err if status == 2 else out).replace(f"{os.getcwd()}/", "")


CASES = cases()


@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_commands_print_what_is_shown(case, folder, capsys):
    if "compare" in case.command and Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    for diff in case.changes:
        apply(folder, diff)
    status, out = run(case.command, capsys)
    assert pattern(case.shown).fullmatch(out), out
    failed = re.search(r"^0 of", case.shown, re.MULTILINE) is not None
    refused = case.shown.startswith("ferrum-numba: ")
    assert status == (2 if refused else int(failed))


@pytest.mark.parametrize(("page", "file", "code"), quotes())
def test_code_is_quoted_as_it_is(page, file, code):
    text = (TUTORIAL / file).read_text()
    assert textwrap.dedent(code) in textwrap.dedent(text) or code in text


def test_no_code_is_there_that_nobody_tries():
    others = [text.partition("\n")[0] for page in PAGES for kind, text in blocks(page)
              if kind == "python" and not text.startswith("# ladder/")]  # fmt: skip
    assert others == ["# export_step.py"]
    fences = sum(len(re.findall(r"^```\w", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert fences == sum(len(blocks(page)) for page in PAGES)


def test_every_step_quotes_its_file_and_shows_a_mistake():
    for page, step in zip(PAGES, (*STEPS, tutorial_table.GROUPED), strict=False):
        assert f"# ladder/{step}.py" in page.read_text()
    assert len(PAGES) == 10
    for page in PAGES:
        assert any(case.page == page.stem and case.changes for case in CASES), page
        assert "## In the kernels that ship" in page.read_text() or page == PAGES[-1]


def test_the_export_is_what_a_host_needs(folder):
    (code,) = (text for kind, text in blocks(PAGES[-1]) if text.startswith("# export_step.py"))
    sys.path.append(str(folder))
    exec(code, {})
    how = json.loads((folder / "step7.json").read_text())
    assert (folder / "step7.cubin").read_bytes()[:4] == b"\x7fELF"
    pointers = [f"pointer {name}" for name in ("x", "qweight", "scales", "out")]
    assert how["parameters"] == [*pointers, "uint32 M", "uint32 N", "uint32 K"]
    assert (how["grid"], how["scalars"]) == ([128, 1, 1], {"M": 1, "N": 4096, "K": 4096})


def test_a_gap_stands_for_anything_and_words_for_themselves():
    shown = "…\nb  2\n…\nd …)\n"
    assert pattern(shown).fullmatch("a 1\n b\t2 \nc 3\nd 8)\n")
    assert not pattern(shown).fullmatch("a 1\nb 3\nc\nd 8)")
    assert not pattern("b 2").fullmatch("b 2 3")
