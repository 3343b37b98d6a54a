"""Layers of experts over tokens: the part of the bound reached, and how many experts are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MultipleLocator

from ferrum_numba.roofline.panels import grid_of, legend_below, legend_rows, log_sizes
from ferrum_numba.roofline.points import Peer, Point, natural
from ferrum_numba.roofline.style import INK, RC, design_styles
from ferrum_numba.roofline.times import (
    design_entries,
    draw_designs,
    draw_peers,
    peer_entries,
    peer_markers,
)

HIT: dict[str, Any] = {"color": INK, "alpha": 0.1}


def experts_figure(
    points: Sequence[Point], peers: Sequence[Peer], title: str, designs: Iterable[str] = ()
) -> Figure:
    """Return a panel a layer: per cent of the bound over tokens, designs and peers.

    The shade behind is the part of the layer's experts that the tokens hit, as to expect of a
    uniform routing: the weights that have to be read.
    """
    points = [p for p in points if p.size is not None and p.hit is not None and p.bound_us]
    shapes = sorted({p.shape for p in points}, key=natural)
    styles = design_styles([*designs, *(p.kernel for p in points)])
    markers = peer_markers(peers)
    bounds = {(p.shape, p.size): p.bound_us or 0.0 for p in points}
    with matplotlib.rc_context(RC):
        shade = Line2D([], [], lw=7, label="experts hit, of all (expected)", **HIT)
        handles = [*design_entries(points, styles), *peer_entries(peers, markers), shade]
        figure, grid = grid_of(title, len(shapes), legend_rows(handles))
        for i, shape in enumerate(shapes):
            axes = figure.add_subplot(grid[i // 2, i % 2])
            axes.set_title(shape, loc="left", fontsize=9)
            own = [p for p in points if p.shape == shape]
            _shade(axes, own)
            draw_designs(axes, [(p, _reached(p)) for p in own], styles)
            beside = [p for p in peers if (p.shape, p.size) in bounds and p.shape == shape]
            draw_peers(axes, [(p, 100 * bounds[p.shape, p.size] / p.us) for p in beside], markers)
            log_sizes(axes, [p.size or 0 for p in own])
            axes.set_ylim(0, 105)
            axes.yaxis.set_major_locator(MultipleLocator(20))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
            axes.grid(True)
            axes.set_ylabel("of the bound" if i % 2 == 0 else "")
            axes.set_xlabel(points[0].size_name if i + 2 >= len(shapes) else "")
        legend_below(figure, handles)
    return figure


def _reached(p: Point) -> tuple[float, float, float]:
    """Return the per cent of the bound and its interval."""
    bound_us = 100 * (p.bound_us or 0.0)
    return bound_us / p.us, bound_us / p.us_high, bound_us / p.us_low


def _shade(axes: Axes, points: Sequence[Point]) -> None:
    """Shade the part of the experts that is hit; all of them at the most tokens."""
    by_size = {p.size or 0: p.hit or 0.0 for p in sorted(points, key=lambda p: p.size or 0)}
    num_experts = _num_experts(points[0].shape)
    hit = [100 * value / num_experts for value in by_size.values()]
    axes.fill_between(list(by_size), hit, color=INK, alpha=HIT["alpha"], lw=0)


def _num_experts(shape: str) -> int:
    """Return E of `E128 k8 2048→1536`."""
    return int(shape.split()[0].removeprefix("E"))
