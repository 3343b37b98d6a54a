"""What is said shorter in an SVG, and what has to stay as it is."""

import re

import pytest

from ferrum_numba.roofline.svg import compact, short_name

LINE = "fill: none; stroke: #000; stroke-width: 0.8"


def said(*elements):
    """Return what is left of some elements, without the start, the style and the end."""
    head = '<svg xmlns:xlink="http://x"><defs><style type="text/css">*{a: b}</style></defs>'
    clip = '<defs>\n<clipPath id="c"><rect x="1.2345" y="0"/></clipPath>\n</defs>'
    found = compact("\n".join([head, *elements, clip, "</svg>"]), "one")
    style, body = re.search(r"<style>(.*?)</style></defs>\n(.*)<defs>", found, re.DOTALL).groups()
    return body.strip().splitlines(), style


def line(d, style=LINE, clip=""):
    return f'<path d="{d}"{clip} style="{style}"/>'


def test_neighbours_of_one_style_are_one_path():
    body, style = said(line("M 1 2 L 3 4 "), line("M 10.111 2 L 10.111 40.55 "))
    assert body == ['<path d="M1 2 3 4M10.1 2V40.5" class="s0"/>']
    assert f".{short_name('one')} .s0{{fill:none;stroke:#000;stroke-width:0.8}}" in style


@pytest.mark.parametrize(
    "style", ["fill: #123; stroke: #000", "fill: none; stroke: #000; stroke-dasharray: 1,2"]
)
def test_what_is_filled_or_dashed_stays_apart(style):
    body, _ = said(line("M 1 2 L 3 4 ", style), line("M 5 6 L 7 8 ", style))
    assert len(body) == 2


def test_what_is_clipped_is_clipped_by_its_class():
    body, style = said(line("M 1 2 L 3 4 ", clip=' clip-path="url(#c)"'))
    assert body == ['<path d="M1 2 3 4" class="s0 s1"/>']
    (target,) = re.findall(r"\.s1{clip-path:url\(#(\w+)\)}", style)
    assert target.startswith(short_name("one"))


def marks(*styles):
    each = [f'<use xlink:href="#c" x="{i}" y="2" style="{s}"/>' for i, s in enumerate(styles)]
    return ['<g clip-path="url(#c)">', *each, "</g>"]


def test_marks_of_one_look_say_it_together():
    body, _ = said(*marks("fill: #123", "fill: #123"), *marks("fill: #123"))
    assert body[0] == '<g class="s0 s1">'
    assert [re.search("class", one) is None for one in body[1:]] == [True] * 4
    body, _ = said(*marks("fill: #123", "fill: #456"))
    assert ['class="s1"' in body[1], 'class="s2"' in body[2]] == [True, True]


def test_pictures_of_one_page_share_no_name():
    assert short_name("a-roofline") != short_name("b-roofline")
    assert re.fullmatch(r"k[0-9a-z]{1,7}", short_name("a-roofline"))
