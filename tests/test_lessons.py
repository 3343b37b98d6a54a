"""Every pointer leads somewhere: from a source to a finding, from a page to a measurement."""

import json
import re
from pathlib import Path

import pytest

from ferrum_numba.errors import StoreError
from ferrum_numba.kernels import KERNELS, MOE, TOOLS
from ferrum_numba.perf import lessons

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DESIGNS = sorted((ROOT / "docs" / "designs").glob("*.md"))
FOLDERS = ("kernels", "ferrum_numba", "perf", "reference", "tests")
# tests of pages make pages of their own
OTHERS = {Path(__file__), *(ROOT / "tests" / "docs").rglob("*.py")}
SOURCES = [
    path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))
    if path not in OTHERS
]  # fmt: skip
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
HEADINGS = (
    "Picture", "What bounds it", "What won", "What lost", "Fitted constants",
    "Misses against goals",
)  # fmt: skip
# the rows of the table that the measurements were, each at least once; what came later comes after
OLD_ROWS = 108
MEASUREMENTS = lessons.load()


def lost(root, source, text):
    """Return a sentence for every pointer of a source's text that leads nowhere."""
    found = []
    for page, anchor in lessons.pointers(text):
        path = root / page
        if not path.is_file():
            found.append(f"{source}: there is no {page}")
        elif source.endswith(".py") and not anchor:
            found.append(f"{source}: {page} without an anchor")
        elif anchor and anchor not in lessons.anchors(path.read_text()):
            found.append(f"{source}: {page} has no anchor {anchor}")
    return found


@pytest.mark.parametrize("path", [*SOURCES, *TEXTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_pointers_lead_to_a_finding(path):
    assert lost(ROOT, path.name, path.read_text()) == []


def test_some_sources_point():
    pointing = [path.name for path in SOURCES if lessons.pointers(path.read_text())]
    assert len(pointing) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_an_anchor_stands_once(page):
    found = lessons.anchors(page.read_text())
    assert len(found) == len(set(found))


@pytest.mark.parametrize("page", DESIGNS, ids=lambda p: p.stem)
def test_designs_have_the_same_headings(page):
    found = re.findall(r"^## (?:<a [^>]*></a>)?(.*)$", page.read_text(), re.MULTILINE)
    assert tuple(found) == HEADINGS


@pytest.mark.parametrize("kernel", [*KERNELS, *TOOLS, *MOE], ids=lambda k: k.name)
def test_every_kernel_has_a_page(kernel):
    assert any(f"`{kernel.name}`" in p.read_text() or p.stem == kernel.name for p in DESIGNS)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_finding_has_its_four_parts(page):
    findings = re.split(r"^### ", page.read_text(), flags=re.MULTILINE)[1:]
    texts = [re.split(r"^#", finding, maxsplit=1, flags=re.MULTILINE)[0] for finding in findings]
    begun = [text for text in texts if "**Problem.**" in text]
    for text in begun:
        parts = [text.find(f"**{part}.**") for part in ("Problem", "Cause", "Remedy", "Verify")]
        assert parts == sorted(parts), text
        assert parts[0] >= 0, text
        assert lessons.anchors(text), text
        assert lessons.named(text) or "No comparison" in text, text


def test_pages_and_measurements_name_each_other():
    named = {name for page in PAGES for name in lessons.named(page.read_text())}
    assert named == {measurement.id for measurement in MEASUREMENTS}


def test_every_row_of_the_old_table_is_there():
    assert [m.row for m in MEASUREMENTS][:OLD_ROWS] == list(range(1, OLD_ROWS + 1))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("see docs/none.md#bound", "a.py: there is no docs/none.md"),
        ("see docs/page.md", "a.py: docs/page.md without an anchor"),
        ("see docs/page.md#unbound.", "a.py: docs/page.md has no anchor unbound"),
    ],
)
def test_a_lost_pointer_is_found(tmp_path, text, sentence):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text('## <a id="bound"></a>What bounds it')
    assert lost(tmp_path, "a.py", text) == [sentence]
    assert lost(tmp_path, "a.py", "(docs/page.md#bound).") == []


def test_named_reads_lists_of_ids():
    assert lessons.named("so [m:a-b] and [m:c-d, e-f]; `[m:…]` is the form") == {
        "a-b",
        "c-d",
        "e-f",
    }


GOOD = {
    "id": "tools-copy", "row": 1, "date": "2026-11-29", "gpu": None, "where": "none",
    "driver": None, "commits": None, "command": "none", "kernels": [], "problem": None,
    "measured": "a copy", "text": "a copy took 1,200 ns, then 1.5 µs",
    "values": [{"what": "a copy", "value": 1200, "unit": "ns"}],
}  # fmt: skip


def stored(folder, *items):
    (folder / "tools.json").write_text(json.dumps({"schema": 1, "measurements": items}))
    return folder


def test_a_measurement_is_read(tmp_path):
    (found,) = lessons.load(stored(tmp_path, GOOD))
    assert (found.id, found.values) == ("tools-copy", (lessons.Value("a copy", 1200, "ns"),))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "repack-copy"}, r"measurement repack-copy: an id is tools-<words>"),
        ({"date": "29.11.2026"}, r"date must be as 2026-11-29; got '29\.11\.2026'"),
        ({"commits": ["main"]}, r"commits must be hexadecimal; got \['main'\]"),
        ({"row": "1", "gpu": 3}, r"gpu, row: of the wrong type"),
        ({"extra": 1}, r"differs in \['extra'\]"),
        ({"values": [{"what": "a copy", "value": 1.5}]}, r"a value has what, value and unit"),
        ({"text": "a copy took 12,000 ns"}, r"a copy: 1200 is no number of its text"),
        ({"values": GOOD["values"] * 2}, r"a value stands twice: \('a copy', 'ns'\)"),
    ],
)
def test_a_wrong_measurement_is_refused(tmp_path, change, words):
    with pytest.raises(StoreError, match=words):
        lessons.load(stored(tmp_path, GOOD | change))


def test_ids_and_rows_stand_once(tmp_path):
    with pytest.raises(StoreError, match="id stands twice: tools-copy"):
        lessons.load(stored(tmp_path, GOOD, GOOD | {"row": 2}))
    with pytest.raises(StoreError, match="row stands twice: 1"):
        lessons.load(stored(tmp_path, GOOD, GOOD | {"id": "tools-other"}))
