"""An explanation as one picture: the map of shared memory, and who holds what of each tile."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from ferrum_numba.explain.crop import cropped
from ferrum_numba.explain.text import (
    bound_words,
    launch_words,
    memory_words,
    thread_words,
)
from ferrum_numba.layout import Region, Tile
from ferrum_numba.shown import words

if TYPE_CHECKING:
    from ferrum_numba.explain.facts import Explanation

WARP = 32
WIDTH, MARGIN, LINE = 880, 20, 18
BAR = 34
# of a line that fits
LETTERS = 130
# a cell of a picture, and the names of its rows, in pixels
CELL_WIDTH, CELL_HEIGHT, NAMES = 26, 20, 60
MOST_ROWS, MOST_COLUMNS = 16, 64
INK, PALE, LINES = "#1b1f24", "#57606a", "#ffffff"
STYLE = (
    "text{{font:12px system-ui,sans-serif;fill:{ink}}}.h{{font-weight:600;font-size:14px}}"
    ".p{{fill:{pale}}}.c,.c text{{font-size:{cell}px;text-anchor:middle}}"
)


class _Page:
    """Elements from top to bottom."""

    def __init__(self) -> None:
        self.y = float(MARGIN)
        self.elements: list[str] = []

    def line(self, text: str, kind: str = "") -> None:
        """Write a line of text."""
        self.y += LINE
        given = f' class="{kind}"' if kind else ""
        self.elements.append(f'<text x="{MARGIN}" y="{self.y:g}"{given}>{escape(text)}</text>')

    def gap(self, height: float = LINE / 2) -> None:
        """Leave some room."""
        self.y += height


def as_svg(found: Explanation, facts: bool) -> str:
    """Return one `<svg>` element, WIDTH pixels wide; `facts`: with what is said in words, too."""
    page = _Page()
    if facts:
        differs = words(found.differs) or "default config"
        page.line(f"{found.kernel}: {differs}", "h")
        page.line(f"{words(found.sizes)}; {found.gpu.name}, {found.arch}", "p")
        for line in (*launch_words(found), thread_words(found), *bound_words(found)):
            for part in textwrap.wrap(line, LETTERS):
                page.line(part)
    _memory(page, found)
    if found.tiles:
        page.gap(LINE)
        page.line("Who holds what: the lane of each element; lane 0 is framed", "h")
    for tile in found.tiles:
        _tile(page, tile)
    height = page.y + MARGIN
    style = STYLE.format(ink=INK, pale=PALE, cell=9)
    title = escape(f"{found.kernel}, explained")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}" role="img"><title>{title}</title>'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(page.elements)}</svg>"
    )


def _memory(page: _Page, found: Explanation) -> None:
    page.gap(LINE)
    page.line(f"Shared memory of a block: {found.smem_bytes} bytes", "h")
    if not found.regions:
        page.line(memory_words(found))
        return
    page.gap()
    scale = (WIDTH - 2 * MARGIN) / found.smem_bytes
    for i, region in enumerate(found.regions):
        page.elements += _places(region, page.y, scale, _hue(i, len(found.regions)))
    page.y += BAR
    for i, region in enumerate(found.regions):
        _region(page, region, _hue(i, len(found.regions)), 0)
        for part in region.parts:
            _region(page, part, "", 20)


def _places(region: Region, y: float, scale: float, colour: str) -> list[str]:
    """Return a rectangle for each of a region's places, with its name where there is room."""
    each, found = region.size_bytes / region.places, []
    for place in range(region.places):
        x = MARGIN + (region.offset + place * each) * scale
        found.append(
            f'<rect x="{x:.1f}" y="{y:g}" width="{each * scale:.1f}" height="{BAR}" '
            f'fill="{colour}" stroke="{LINES}"><title>{escape(_says(region))}</title></rect>'
        )
    if region.size_bytes * scale > 7 * len(region.name) + 6:
        x = MARGIN + region.offset * scale + 4
        found.append(f'<text x="{x:.1f}" y="{y + 21:g}">{escape(region.name)}</text>')
    return found


def _region(page: _Page, region: Region, colour: str, indent: int) -> None:
    page.y += LINE
    x = MARGIN + indent
    if colour:
        page.elements.append(
            f'<rect x="{x}" y="{page.y - 10:g}" width="10" height="10" fill="{colour}"/>'
        )
    page.elements.append(f'<text x="{x + 16}" y="{page.y:g}">{escape(_says(region))}</text>')


def _says(region: Region) -> str:
    size = f"{region.size_bytes} bytes"
    if region.places > 1:
        size += f" ({region.places} × {region.size_bytes // region.places})"
    return f"{region.name}, at {region.offset}, {size}" + (
        f": {region.what}" if region.what else ""
    )


def _tile(page: _Page, tile: Tile) -> None:
    lanes, left_out = cropped(tile, MOST_ROWS, MOST_COLUMNS)
    rows, columns = lanes.shape
    page.gap(LINE)
    page.line(f"{tile.name}, [{tile.rows}, {tile.columns}]; a place is {tile.place_is}", "h")
    page.gap(LINE)
    width = min(CELL_WIDTH, (WIDTH - 2 * MARGIN - NAMES) / columns)
    left, top = MARGIN + NAMES, page.y + 4
    for c in range(columns):
        if width >= 18 or c % 4 == 0:
            x = left + (c + 0.5) * width
            page.elements.append(f'<text class="c p" x="{x:.1f}" y="{top - 3:g}">{c}</text>')
    for r in range(rows):
        y = top + (r + 0.7) * CELL_HEIGHT
        name = f"{tile.rows} = {r}"
        page.elements.append(f'<text class="p" x="{MARGIN}" y="{y:g}">{escape(name)}</text>')
    # lane 0 last: its frame lies over its neighbours
    for lane in sorted({int(lane) for lane in lanes.flat}, reverse=True):
        cells = [(left + c * width, top + r * CELL_HEIGHT) for r, c in np.argwhere(lanes == lane)]
        page.elements.append(_lane(tile, lane, cells, width))
    page.y = top + rows * CELL_HEIGHT
    if left_out:
        page.line(left_out, "p")


def _lane(tile: Tile, lane: int, cells: Sequence[tuple[float, float]], width: float) -> str:
    """Return the cells of a lane, with its number in each and all that it holds as a title."""
    frame = f'stroke="{INK}" stroke-width="1.5"' if lane == 0 else f'stroke="{LINES}"'
    box = f"h{width:.1f}v{CELL_HEIGHT}h-{width:.1f}z"
    path = "".join(f"M{x:.1f} {y:g}{box}" for x, y in cells)
    held = ", ".join(f"{place}: ({r}, {c})" for place, r, c in tile.held_by(lane))
    says = f"lane {lane}, {tile.place_is}: ({tile.rows}, {tile.columns}) = {held}"
    numbers = "".join(
        f'<text x="{x + width / 2:.1f}" y="{y + 14:g}">{lane}</text>' for x, y in cells
    )
    return (
        f'<g class="c"><title>{escape(says)}</title>'
        f'<path d="{path}" fill="{_of_lane(lane)}" {frame}/>{numbers}</g>'
    )


def _of_lane(lane: int) -> str:
    """Return a colour: quads of lanes have one hue, the lanes of a quad its shades."""
    return _hex(lane % WARP // 4 / 8, 0.72 + 0.06 * (lane % 4))


def _hue(i: int, count: int) -> str:
    return _hex(i / max(1, count), 0.75)


def _hex(hue: float, lightness: float) -> str:
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.6)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
