"""The page as a browser lays it out: nothing sticks out, no label covers another, on paper too."""

import re
import struct
from dataclasses import replace

import browser
import pytest
from synthetic import CHECKS
from test_drawing import SOURCES

from ferrum_numba import report

pytestmark = browser.NEEDED

# px, the second as narrow as tables are not yet cards
WIDTHS = {"desktop": 1280, "tablet": 961, "phone": 390}
# what the page is asked, in a frame of the width to look at: what sticks out of it, which texts of
# a picture overlap (turned ones as they are turned), and how wide and high all of it is
PROBE = """
<script>
function corners(text) {
  const b = text.getBBox(), m = text.getScreenCTM();
  return [[b.x, b.y], [b.x + b.width, b.y], [b.x + b.width, b.y + b.height], [b.x, b.y + b.height]]
    .map(([x, y]) => [m.a * x + m.c * y + m.e, m.b * x + m.d * y + m.f]);
}
function apart(p, q, slack) {
  for (const box of [p, q]) for (let i = 0; i < 4; i++) {
    const [a, b] = [box[i], box[(i + 1) % 4]], n = [b[1] - a[1], a[0] - b[0]];
    const long = Math.hypot(...n) || 1, on = (c) => (c[0] * n[0] + c[1] * n[1]) / long;
    const [s, t] = [p.map(on), q.map(on)];
    if (Math.max(...s) <= Math.min(...t) + slack || Math.max(...t) <= Math.min(...s) + slack)
      return true;
  }
  return false;
}
addEventListener('load', () => {
  document.querySelectorAll('details').forEach((d) => d.open = true);
  const wide = document.documentElement.clientWidth, out = [], covered = [];
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('svg') && e.tagName !== 'svg') continue;
    const box = e.getBoundingClientRect();
    if (box.right > wide + 1 || box.left < -1 || e.scrollWidth > e.clientWidth + 1 && e.clientWidth)
      out.push(e.tagName + ' ' + e.textContent.slice(0, 40));
  }
  for (const svg of document.querySelectorAll('svg')) {
    const texts = [...svg.querySelectorAll('text')].map((t) => [t.textContent, corners(t)]);
    const slack = 1.5 * svg.getBoundingClientRect().width / 1000;
    texts.forEach(([a, p], i) => texts.slice(0, i).forEach(([b, q]) => {
      if (!apart(p, q, slack)) covered.push([svg.id, a, b]);
    }));
  }
  const found = {out, covered, wide, inside: innerWidth, high: document.body.scrollHeight,
    pictures: document.querySelectorAll('svg').length};
  parent.postMessage(found, '*');
});
</script>
"""
# as many kernels as a house has, on problems with many fields
MANY_CHECKS = [
    replace(CHECKS[0], kernel=f"a_kernel_of_many_{i}", problem={
        "M": 2**i, "N": 28672, "K": 8192, "group_size": 128, "zero_points": "gptq_v2",
        "act_order": False, "bias": True, "dtype": "bf16", "routing": "uniform",
    })
    for i in range(12)
]  # fmt: skip


def probed(folder, width, html):
    """Return what the page finds of itself at a width."""
    page = folder / "page.html"
    page.write_text(html.replace("</head>", PROBE + "</head>"))
    (found,) = browser.said([page.name], folder, width)
    return found


def printed(html):
    """Return a page that shows on a screen what it prints."""
    return html.replace("@media print", "@media all").replace("@media screen", "@media not all")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Return a folder with a report of every kind of picture."""
    found = tmp_path_factory.mktemp("synthetic")
    report.write(found, replace(SOURCES, checks=MANY_CHECKS))
    return found


@pytest.mark.parametrize("which", ["recorded", "synthetic"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_sticks_out_and_no_label_covers_another(which, width, request, tmp_path):
    where = request.getfixturevalue(which)
    found = probed(tmp_path, width, (where / "report.html").read_text())
    assert found["wide"] == found["inside"] == width
    assert found["out"] == []
    assert found["covered"] == []
    assert found["pictures"] >= 5


@pytest.mark.parametrize("which", ["recorded", "synthetic"])
def test_nor_when_it_is_printed(which, request, tmp_path):
    where = request.getfixturevalue(which)
    # A4 landscape without its margins, at 96 px an inch
    found = probed(tmp_path, 1032, printed((where / "report.html").read_text()))
    assert found["out"] == []
    assert found["covered"] == []


def test_the_probe_finds_what_sticks_out_and_what_is_covered(tmp_path):
    wide = '<div style="width: 2000px">wide</div>'
    box = '<div style="width: 50px; white-space: nowrap; overflow: auto">scrolls sideways</div>'
    words = {"one": 0, "over": 9, "apart": 90}
    texts = "".join(f'<text x="{x}" y="20">{word}</text>' for word, x in words.items())
    svg = f'<svg id="s" width="200" height="40">{texts}</svg>'
    html = f"<!DOCTYPE html><html><head></head><body>{wide}{box}{svg}</body></html>"
    found = probed(tmp_path, 390, html)
    assert [words for words in found["out"] if words.startswith("DIV")] == [
        "DIV wide", "DIV scrolls sideways",
    ]  # fmt: skip
    assert found["covered"] == [["s", "over", "one"]]


def test_a_screenshot_shows_the_page(recorded, tmp_path):
    page, picture = recorded / "report.html", tmp_path / "screen.png"
    browser.chromium("--window-size=1280,1600", f"--screenshot={picture}", page=page)
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1280, 1600)
    # an empty page is some kilobytes
    assert len(content) > 50_000


def test_a_print_is_a_few_pages(recorded, tmp_path):
    page, paper = recorded / "report.html", tmp_path / "report.pdf"
    browser.chromium("--no-pdf-header-footer", f"--print-to-pdf={paper}", page=page)
    pages = len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))
    assert 3 <= pages <= 30


def test_the_first_page_has_verdict_and_next_steps(recorded, tmp_path):
    found = probed(tmp_path, 1280, _first_page((recorded / "report.html").read_text()))
    # two Ops, each by what binds it
    assert found["high"] < 2000


def _first_page(html: str) -> str:
    """Return the page up to its first Op."""
    second = [match.start() for match in re.finditer("<h2 ", html)][2]
    return html[:second] + "</main></body></html>"
