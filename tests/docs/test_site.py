"""The site that `make site` has built: nothing missing, nothing from elsewhere, at any width.

`make site` builds it and runs these.
"""

import re
import shutil
import struct
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import pages
import pytest

SITE = pages.ROOT / "build" / "site"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="`make site` builds it"),
]
HTML = sorted(SITE.rglob("*.html"))
# px
WIDTHS = {"wide": 1900, "desktop": 1280, "phone": 390}
# what a page is asked: how wide it is, what sticks out that no box of its own lets scroll, which
# pictures did not load, and how much there is to read
PROBE = """
<script>
addEventListener('load', () => setTimeout(() => {
  const wide = document.documentElement.clientWidth, out = [];
  const boxed = (e) => {
    for (; e && e !== document.body; e = e.parentElement) {
      if (getComputedStyle(e).overflowX !== 'visible' || e.matches('.sidebar-drawer, .toc-drawer'))
        return true;
    }
    return false;
  };
  for (const e of document.querySelectorAll('body *')) {
    const box = e.getBoundingClientRect();
    if (box.width && (box.right > wide + 1 || box.left < -1) && !boxed(e))
      out.push(e.tagName + ' ' + e.textContent.trim().slice(0, 40));
  }
  const pictures = [...document.images];
  const text = (document.querySelector('article') || document.body).innerText;
  parent.postMessage({
    name: document.title, wide, inside: innerWidth, out,
    scrolls: document.documentElement.scrollWidth,
    lost: pictures.filter((i) => !i.naturalWidth).map((i) => i.src),
    words: text.split(/\\s+/).length,
  }, '*');
}, 0));
</script>
"""


class Links(HTMLParser):
    """What a page links to, what it loads, and the ids that are in it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        if "href" in found:
            (self.links if tag == "a" else self.loads).append(found["href"])
        if "src" in found:
            self.loads.append(found["src"])


@pytest.fixture(scope="module")
def parsed():
    """Return what every page links to."""
    return {page: Links(page.read_text()) for page in HTML}


def lost(uri, page, parsed):
    """Return whether what a page of the site links to is not on it."""
    parts = urlsplit(uri)
    if parts.scheme:
        return False
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_file() or not target.is_relative_to(SITE):
        return True
    place = unquote(parts.fragment)
    return bool(place) and target in parsed and place not in parsed[target].ids


def test_what_pages_link_to_is_there(parsed):
    found = {
        f"{page.relative_to(SITE)} -> {uri}"
        for page, links in parsed.items() for uri in (*links.links, *links.loads)
        if lost(uri, page, parsed)
    }  # fmt: skip
    assert found == set()


def test_nothing_is_loaded_from_elsewhere(parsed):
    loads = {uri for links in parsed.values() for uri in links.loads}
    styles = {
        uri for style in SITE.rglob("*.css")
        for uri in re.findall(r"url\(['\"]?(\w+:[^)]{,40})", style.read_text())
    }  # fmt: skip
    assert {uri for uri in loads | styles if urlsplit(uri).scheme not in ("", "data")} == set()


def test_an_id_stands_once(parsed):
    twice = {
        (page.name, one) for page, links in parsed.items()
        for one in links.ids if links.ids.count(one) > 1
    }  # fmt: skip
    assert twice == set()


def test_every_page_of_the_tree_is_on_it():
    for page in pages.PAGES:
        assert (SITE / page.relative_to(pages.ROOT)).with_suffix(".html").is_file()
    assert (SITE / ".nojekyll").is_file()
    assert (SITE / "index.html").read_text() == (SITE / "README.html").read_text()


def test_types_are_short():
    text = (SITE / "docs" / "reference" / "kernels.html").read_text()
    assert "dict[str, Array]" in re.sub(r"<[^>]+>", "", text)


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """Return a copy of the site whose pages say what they find of themselves."""
    folder = tmp_path_factory.mktemp("site") / "site"
    shutil.copytree(SITE, folder)
    for page in folder.rglob("*.html"):
        text = page.read_text()
        page.write_text(text.replace("</head>", f"{PROBE}</head>", 1))
    return folder


@browser.NEEDED
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_is_wider_than_the_page(width, probed):
    names = [page.relative_to(SITE).as_posix() for page in HTML]
    found = dict(zip(names, browser.said(names, probed, width), strict=True))
    assert {one["inside"] for one in found.values()} == {width}
    assert {name: one for name, one in found.items() if one["scrolls"] > width} == {}
    assert {name: one["out"] for name, one in found.items() if one["out"]} == {}
    assert {name: one["lost"] for name, one in found.items() if one["lost"]} == {}
    # a search shows nothing before it is asked
    empty = {name for name, one in found.items() if one["words"] < 5} - {"search.html"}
    assert empty == set()


@browser.NEEDED
def test_the_probe_finds_what_sticks_out(tmp_path):
    wide = '<div style="width: 2000px">wide</div>'
    box = '<div style="overflow-x: auto"><pre style="width: 900px">scrolls</pre></div>'
    body = f'<body style="overflow-x: auto"><article>{wide}{box}<img src="no.png"></article></body>'
    (tmp_path / "a.html").write_text(f"<!DOCTYPE html><html><head>{PROBE}</head>{body}</html>")
    (found,) = browser.said(["a.html"], tmp_path, 390)
    assert found["out"] == ["DIV wide"]
    assert [Path(src).name for src in found["lost"]] == ["no.png"]
    assert found["words"] < 5


@browser.NEEDED
def test_a_screenshot_shows_the_front_page(tmp_path):
    picture = tmp_path / "screen.png"
    options = ("--window-size=1280,1600", f"--screenshot={picture}")
    browser.chromium(*options, page=SITE / "index.html")
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1280, 1600)
    # an empty page is some kilobytes
    assert len(content) > 100_000
