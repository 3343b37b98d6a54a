"""The fraction of the bound that the fastest design reaches, as colours: shapes against sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ferrum_numba.roofline.panels import WIDTH
from ferrum_numba.roofline.points import Point, natural, titled
from ferrum_numba.roofline.roofs import figure_of
from ferrum_numba.roofline.style import RC, SMALL, design_styles, new_figure

CELL, CELL_WIDTH = 0.36, 0.34
# of a 9 point font, on average
INCHES_A_LETTER = 0.078
# of the map, which goes from dark blue to yellow for any eye
MAP = "cividis"
# below it all is as dark
DARKEST = 0.3


def fraction_figure(points: Sequence[Point], title: str, designs: Iterable[str] = ()) -> Figure:
    """Return per cent of the bound as coloured cells: shapes against sizes, the fastest design's.

    points: measured ones with a fraction; where all of a problem's are in doubt there is a cross
    """
    points = [p for p in points if p.fraction is not None and not p.modelled]
    shapes = sorted({p.shape for p in points}, key=natural)
    sizes: list[int | None] = [*sorted({p.size for p in points if p.size is not None})] or [None]
    styles = design_styles([*designs, *(p.kernel for p in points)])
    with matplotlib.rc_context(RC):
        axes = _cells(shapes, ["" if size is None else str(size) for size in sizes], title)
        axes.set_xlabel(points[0].size_name if points and sizes[0] is not None else "", loc="left")
        found = fastest(points)
        for (shape, size), p in found.items():
            _cell(axes, p, (sizes.index(size), shapes.index(shape)), styles[p.kernel])
        names = sorted({p.kernel for p in found.values() if not p.doubt})
        handles = [
            Line2D([], [], color=styles[n][0], marker=styles[n][1], linestyle="", label=n)
            for n in names
        ]
        figure = figure_of(axes)
        figure.legend(handles=handles, loc="lower left", ncols=6, bbox_to_anchor=(0.01, 0))
    return figure


def fastest(points: Sequence[Point]) -> dict[tuple[str, int | None], Point]:
    """Return the fastest point of every problem; one in doubt only where there is no other."""
    best: dict[tuple[str, int | None], Point] = {}
    for p in sorted(points, key=lambda p: (bool(p.doubt), p.us)):
        best.setdefault((p.shape, p.size), p)
    return best


def _cells(rows: Sequence[str], columns: Sequence[str], title: str) -> Axes:
    """Return axes with a unit cell a row and column: shapes left, sizes above."""
    names = [titled(row) for row in rows]
    left = 0.35 + INCHES_A_LETTER * max((len(name) for name in names), default=1)
    height = 1.35 + CELL * len(rows)
    width = max(WIDTH, left + CELL_WIDTH * len(columns) + 0.15)
    figure = new_figure(width, height)
    figure.text(0.2 / width, 1 - 0.25 / height, title, fontsize=10)
    used = min(width - left - 0.15, 0.8 * len(columns))
    size = (used / width, CELL * len(rows) / height)
    axes = figure.add_axes((left / width, 0.45 / height, *size))
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False, bottom=False)
    axes.xaxis.set_label_position("top")
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.tick_params(axis="x", labelsize=SMALL - (len(columns) > 20))
    axes.set_yticks(np.arange(len(rows)) + 0.5, names)
    return axes


def _cell(axes: Axes, p: Point, place: tuple[int, int], style: tuple[str, str]) -> None:
    """Draw one fraction on its colour with its design's marker, or a cross if it is in doubt."""
    x, y = place
    assert p.fraction is not None
    if p.doubt:
        axes.text(x + 0.5, y + 0.5, "×", ha="center", va="center", fontsize=SMALL)
        return
    shade = (min(max(p.fraction, DARKEST), 1.0) - DARKEST) / (1 - DARKEST)
    red, green, blue, _ = matplotlib.colormaps[MAP](shade)
    axes.fill([x, x + 1, x + 1, x], [y, y, y + 1, y + 1], color=(red, green, blue), lw=0)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    ink = "#ffffff" if dark else "#000000"
    axes.text(
        x + 0.5, y + 0.36, f"{100 * p.fraction:.0f}", ha="center", va="center", fontsize=SMALL,
        color=ink,
    )  # fmt: skip
    colour, marker = style
    axes.plot(
        x + 0.5, y + 0.78, marker, color=colour, markersize=4, markeredgecolor=ink,
        markeredgewidth=0.6,
    )  # fmt: skip
