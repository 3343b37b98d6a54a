"""The Python of every page runs, on the CPU, in the order of the page; few blocks say why not."""

import re

import page_runs
import pages
import pytest

PAGES = [page for page in pages.RUN_HERE if pages.fenced(page, "python")]
BLOCKS = [block for page in PAGES for block in pages.fenced(page, "python")]
PARTS = [block for block in BLOCKS if block.part_of]
LEFT_OUT = [block for block in BLOCKS if block.not_run]
# more of them need a reason better than the ones that are here
MOST_LEFT_OUT = 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page, ran):
    ran(page)


@pytest.mark.parametrize("block", PARTS, ids=str)
def test_a_part_of_a_file_stands_in_it(block):
    # it may be indented there
    want = [line.strip() for line in block.text.splitlines()]
    file = (pages.ROOT / block.part_of).read_text()
    assert "\n".join(want) in "\n".join(line.strip() for line in file.splitlines())


@pytest.mark.parametrize("block", LEFT_OUT, ids=str)
def test_what_is_not_run_names_what_is_there(block):
    assert pages.unresolved(block.text) == []


def test_few_examples_are_not_run():
    assert len(LEFT_OUT) <= MOST_LEFT_OUT


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_no_python_stands_where_nobody_runs_it(page):
    texts = [*pages.indented(page), *(block.text for block in pages.fenced(page, ""))]
    assert [text for text in texts if re.search(r"^(import|from) \w+", text, re.M)] == []


def test_a_page_is_read(tmp_path):
    page = tmp_path / "page.md"
    code = "<!-- a part of a.py -->\n```python\n# b/c.py\nx = 1\n```"
    page.write_text(f"one\n\n{code}\n\n    make it\n")
    (block,) = pages.fenced(page)
    assert (block.line, block.language, block.note, block.file) == (
        5, "python", "a part of a.py", "b/c.py",
    )  # fmt: skip
    assert pages.indented(page) == ["make it"]


def test_a_mistake_is_told_with_its_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\ny = z\n```\n")
    with pytest.raises(NameError) as told:
        page_runs.run(pages.fenced(page), tmp_path)
    assert told.traceback[-1].path.name == "page_6.py"


def test_what_is_not_there_is_found():
    source = (
        "import nix\nimport ferrum_numba\nfrom ferrum_numba.ptx import lop9\nferrum_numba.Kernal"
    )
    assert pages.unresolved(source) == ["ferrum_numba.ptx.lop9", "ferrum_numba.Kernal"]
