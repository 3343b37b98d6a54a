"""Figures of many panels: a grid of them under one title, and axes over the sizes measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from ferrum_numba.roofline.style import new_figure

WIDTH, PANEL_HEIGHT = 10.0, 2.9
LEGEND_ROW, LEGEND_COLUMNS = 0.2, 3


def grid_of(
    title: str, count: int, legend_rows: int, columns: int = 2, panel_height: float = PANEL_HEIGHT
) -> tuple[Figure, GridSpec]:
    """Return a figure with room for this many panels, some a row, and a legend below."""
    rows = max(1, math.ceil(count / columns))
    bottom, top = 0.6 + LEGEND_ROW * legend_rows, 0.65
    height = top + panel_height * rows + bottom
    figure = new_figure(WIDTH, height)
    figure.text(0.06, 1 - 0.25 / height, title, fontsize=10)
    edges = {"left": 0.085, "right": 0.985, "top": 1 - top / height, "bottom": bottom / height}
    return figure, figure.add_gridspec(rows, columns, hspace=0.32, wspace=0.14, **edges)


def legend_below(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Put the legend where `grid_of` left room for it."""
    figure.legend(handles=handles, loc="lower left", ncols=LEGEND_COLUMNS, bbox_to_anchor=(0.06, 0))


def legend_rows(handles: Sequence[Line2D]) -> int:
    """Return how many rows a legend of these entries has."""
    return math.ceil(len(handles) / LEGEND_COLUMNS)


def log_sizes(axes: Axes, sizes: Iterable[int]) -> None:
    """Make x logarithmic and label sizes measured, but those too close to the last label."""
    axes.set_xscale("log")
    ticks: list[int] = []
    ordered = sorted(set(sizes))
    span = math.log(max(ordered) / min(ordered)) if ordered and min(ordered) > 0 else 0.0
    for size in ordered:
        if not ticks or math.log(size / ticks[-1]) > 0.1 * span:
            ticks.append(size)
    axes.xaxis.set_major_locator(FixedLocator([float(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))


def log_times(axes: Axes) -> None:
    """Make y logarithmic with plain numbers; show a factor of four at least.

    Where all take about as long, noise is no mountain.
    """
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axes.get_ylim()
    middle = math.sqrt(low * high)
    axes.set_ylim(min(low, middle / 2), max(high, middle * 2))
