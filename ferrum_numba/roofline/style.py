"""How the figures look and how they are written: colours, markers, deterministic SVG and PNG."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ferrum_numba.roofline.svg import compact

# text and axes: nearly black in a PNG, `currentColor` in an SVG, which then follows the page
INK = "#010203"
# Okabe and Ito's colour-blind-safe hues that read on white and on black, and two that eyes of each
# kind tell from them: tests/roofline/test_colours.py
COLOURS = ("#1f83c4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7800f0", "#783c14")
MARKERS = ("o", "s", "^", "D", "v", "P", "h", "X")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (9, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (7, 1.5, 2, 1.5)),
    (0, (2, 2.5)),
)
SMALL = 8.5
POINTS_PER_PIXEL = 0.72
# contrast 4.35 both on white and on GitHub's dark page
NEUTRAL = "#727a84"
# matplotlib names the type of every key in its own stubs: Any spares repeating them
RC: Any = {
    "svg.hashsalt": "ferrum-numba",
    # text stays text: a tenth of the size of outlines, and a reader can search and copy it
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.minor.visible": False,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.4,
    "lines.markersize": 5.5,
}


def design_styles(designs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return (colour, marker) of every design, by sorted name: given all of an Op, all differ."""
    names = sorted(set(designs))
    return {
        name: (COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
        for i, name in enumerate(names)
    }


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, 100 pixels each, with a canvas to measure."""
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def text_size(figure: Figure, text: str, fontsize: float) -> tuple[float, float]:
    """Return the width and height in pixels that a text takes."""
    probe = figure.text(0, 0, text, fontsize=fontsize)
    box = probe.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    probe.remove()
    return box.width, box.height


def to_svg(figure: Figure, name: str, title: str) -> str:
    """Return a figure as one `<svg>` element: no date, no links, ids that start with `name`."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = compact(svg[svg.index("<svg") :].replace(INK, "currentColor"), name)
    # a font as wide where this one is not
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg ", f'<svg color="{NEUTRAL}" role="img" aria-label="{label}" ', 1)


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG on white, at twice the screen's resolution."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="png", dpi=200, facecolor="white", metadata={"Software": ""})
    return buffer.getvalue()
