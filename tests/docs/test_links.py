"""Every link of a page leads to a file of the tree and to a place that is there, on every page."""

import pages
import pytest

from ferrum_numba.perf.lessons import ANCHOR


def lost(page):
    """Return every link of a page that leads nowhere."""
    found = []
    for path, place in pages.LINK.findall(pages.prose(page)):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (
            place and target.suffix == ".md" and place not in pages.places(target)
        ):
            found.append(f"{path}#{place}" if place else path)
    return found


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    assert lost(page) == []


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_a_place_is_one(page):
    headings = pages.HEADING.findall(pages.prose(page))
    # by an anchor of its own, else by its words, of which the first heading that has them is meant
    anchors = {name for heading in headings for name in ANCHOR.findall(heading)}
    words = {pages.slug(heading) for heading in headings if not ANCHOR.search(heading)}
    assert anchors & words == set()


def test_lost_links_are_found(tmp_path):
    other, page = tmp_path / "other.md", tmp_path / "page.md"
    other.write_text('# One\n\n## <a id="two"></a>Two `and` three\n')
    links = ["other.md", "other.md#one", "other.md#two", "other.md#two-and-three", "#here"]
    wrong = ["another.md", "other.md#three", "#there"]
    page.write_text("# Here\n\n" + " ".join(f"[it]({link})" for link in links + wrong))
    assert lost(page) == wrong
