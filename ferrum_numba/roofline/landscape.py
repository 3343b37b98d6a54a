"""The landscape of a search: what each value of a config's parameters makes of the time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MultipleLocator

from ferrum_numba.roofline.panels import grid_of, legend_below, legend_rows
from ferrum_numba.roofline.style import INK, RC, SMALL, design_styles

PANELS_A_ROW = 4
# a ratio beyond it is drawn at the edge
MOST = 3.0


@dataclass(frozen=True)
class Value:
    """What one value of a parameter made of a design's times.

    ratios:  of each config with it, the time over the design's best time for the same problem:
             least, lower quartile, median, upper quartile, most
    count:   configs (on a problem) with this value
    best:    problems whose best config has it
    default: problems whose default config has it; None where defaults are unknown
    """

    kernel: str
    parameter: str
    value: str
    ratios: tuple[float, float, float, float, float]
    count: int
    best: int
    default: int | None = None


def quartiles(ratios: Sequence[float]) -> tuple[float, float, float, float, float]:
    """Return least, lower quartile, median, upper quartile, most."""
    low, first, middle, third, high = np.percentile(ratios, (0, 25, 50, 75, 100))
    return float(low), float(first), float(middle), float(third), float(high)


def landscape_figure(values: Sequence[Value], title: str, designs: Sequence[str] = ()) -> Figure:
    """Return a panel a design and parameter: the spread of time / best for each of its values."""
    panels: dict[tuple[str, str], list[Value]] = {}
    for value in values:
        panels.setdefault((value.kernel, value.parameter), []).append(value)
    styles = design_styles([*designs, *(value.kernel for value in values)])
    with matplotlib.rc_context(RC):
        handles = _entries(values)
        figure, grid = grid_of(
            title, len(panels), legend_rows(handles), PANELS_A_ROW, panel_height=1.75
        )
        for i, ((kernel, parameter), found) in enumerate(panels.items()):
            row, column = divmod(i, PANELS_A_ROW)
            axes = figure.add_subplot(grid[row, column])
            axes.set_title(f"{kernel}: {parameter}", loc="left", fontsize=SMALL - 1)
            _panel(axes, found, styles[kernel][0])
            axes.tick_params(axis="y", labelleft=column == 0)
            axes.set_ylabel("time / best" if column == 0 else "")
        legend_below(figure, handles)
    return figure


def _panel(axes: Axes, found: Sequence[Value], colour: str) -> None:
    axes.grid(True, axis="y")
    axes.yaxis.set_major_locator(MultipleLocator(1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set(xlim=(-0.6, len(found) - 0.4), ylim=(0.8, MOST + 0.05))
    axes.set_xticks(range(len(found)), [value.value for value in found], fontsize=SMALL - 1)
    most_best = max(value.best for value in found)
    most_default = max(value.default or 0 for value in found)
    for x, value in enumerate(found):
        low, first, middle, third, high = (min(ratio, MOST) for ratio in value.ratios)
        axes.vlines(x, low, high, color=colour, linewidth=1.0, alpha=0.7)
        axes.vlines(x, first, third, color=colour, linewidth=5.0, alpha=0.75)
        axes.plot(x, middle, "_", color=INK, markersize=9, markeredgewidth=1.4)
        if value.best and value.best == most_best:
            axes.plot(x, 0.9, "*", color=INK, markersize=7)
        if value.default and value.default == most_default:
            axes.plot(x + 0.22, 0.9, "o", color=INK, markersize=5, markerfacecolor="none")


def _entries(values: Sequence[Value]) -> list[Line2D]:
    style: dict[str, Any] = {"color": INK, "linestyle": ""}
    entries = [
        Line2D([], [], color=INK, lw=5, alpha=0.5, label="half of the configs; line: all of them"),
        Line2D([], [], marker="_", markersize=9, label="median", **style),
        Line2D([], [], marker="*", label="wins most problems", **style),
    ]
    if any(value.default for value in values):
        entries.append(Line2D([], [], marker="o", markerfacecolor="none", label="default", **style))
    return entries


def values_of(
    kernel: str,
    timed: Sequence[tuple[Mapping[str, Any], float, bool]],
    defaults: Sequence[Mapping[str, Any]],
) -> list[Value]:
    """Return the landscape of one design, of the parameters that take more than one value.

    timed:    (config, time / the design's best on the problem, whether it is that best)
    defaults: config of each problem; empty where unknown
    """
    found = []
    names = list(dict.fromkeys(name for config, _, _ in timed for name in config))
    for name in names:
        values = {str(config.get(name)) for config, _, _ in timed}
        if len(values) < 2 or all(not math.isfinite(ratio) for _, ratio, _ in timed):
            continue
        for value in sorted(values, key=_order):
            own = [(ratio, best) for config, ratio, best in timed if str(config.get(name)) == value]
            default = sum(str(config.get(name)) == value for config in defaults)
            found.append(
                Value(
                    kernel, name, value, quartiles([ratio for ratio, _ in own]), len(own),
                    sum(best for _, best in own), default if defaults else None,
                )
            )  # fmt: skip
    return found


def _order(value: str) -> tuple[float, str]:
    return (float(value), "") if value.lstrip("-").isdecimal() else (math.inf, value)
