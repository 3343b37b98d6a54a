"""Time against size, a panel a shape: every design, every peer and the bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ferrum_numba.roofline.panels import grid_of, legend_below, legend_rows, log_sizes, log_times
from ferrum_numba.roofline.points import Peer, Point, natural, titled
from ferrum_numba.roofline.style import INK, MARKERS, RC, design_styles

FP16 = "fp16"
BOUND: dict[str, Any] = {"color": INK, "linewidth": 1.6, "alpha": 0.85, "zorder": 2}
SHEET: dict[str, Any] = {"color": INK, "linewidth": 1.1, "alpha": 0.55, "ls": "--", "zorder": 2}
Styles = Mapping[str, tuple[str, str]]
# a point with its height and the ends of its interval
Placed = tuple[Point, tuple[float, float, float]]


def time_figure(
    points: Sequence[Point], peers: Sequence[Peer], title: str, designs: Iterable[str] = ()
) -> Figure:
    """Return time against size, log-log, a panel a shape: designs, peers and the bound.

    points:  measured; hollow where in doubt
    peers:   of the same shapes, all of them: 4-bit ones hollow and dotted, fp16 ones dash-dotted
    designs: all that colours must tell apart in other figures too
    """
    points = [p for p in points if p.size is not None and not p.modelled]
    shapes = sorted({p.shape for p in points}, key=natural)
    styles = design_styles([*designs, *(p.kernel for p in points)])
    markers = peer_markers(peers)
    with matplotlib.rc_context(RC):
        handles = [
            *design_entries(points, styles), *_bound_entries(points), *peer_entries(peers, markers)
        ]  # fmt: skip
        figure, grid = grid_of(title, len(shapes), legend_rows(handles))
        for i, shape in enumerate(shapes):
            axes = figure.add_subplot(grid[i // 2, i % 2])
            axes.set_title(titled(shape), loc="left", fontsize=9)
            own = [p for p in points if p.shape == shape]
            _draw_bounds(axes, own)
            draw_designs(axes, [(p, (p.us, p.us_low, p.us_high)) for p in own], styles)
            draw_peers(axes, [(p, p.us) for p in peers if p.shape == shape], markers)
            log_sizes(axes, [p.size or 0 for p in own])
            log_times(axes)
            axes.grid(True)
            axes.set_ylabel("µs per call" if i % 2 == 0 else "")
            axes.set_xlabel(points[0].size_name if i + 2 >= len(shapes) else "")
        legend_below(figure, handles)
    return figure


def draw_designs(axes: Axes, found: Sequence[Placed], styles: Styles) -> None:
    """Draw a line and markers a design, at a height and interval a point; hollow where in doubt."""
    for kernel in sorted({p.kernel for p, _ in found}):
        colour, marker = styles[kernel]
        own = sorted((pair for pair in found if pair[0].kernel == kernel), key=_by_size)
        good = [(p.size or 0, y[0]) for p, y in own if not p.doubt]
        if good:
            axes.plot(*zip(*good, strict=True), color=colour, linewidth=1.1, zorder=4)
        x, low, high = zip(*[(p.size or 0, y[1], y[2]) for p, y in own], strict=True)
        axes.vlines(x, low, high, color=colour, linewidth=1.0, zorder=4)
        for doubted in (False, True):
            some = [(p.size or 0, y[0]) for p, y in own if bool(p.doubt) == doubted]
            face, edge = ("none", 1.2) if doubted else (colour, 0.0)
            if some:
                axes.plot(
                    *zip(*some, strict=True), marker, color=colour, markersize=5,
                    markerfacecolor=face, markeredgewidth=edge, zorder=5,
                )  # fmt: skip


def _by_size(pair: Placed) -> tuple[int, float]:
    return pair[0].size or 0, pair[1][0]


def _draw_bounds(axes: Axes, points: Sequence[Point]) -> None:
    """Draw the least time a problem needs: under the board's ceilings, and the datasheet's."""
    by_size = {p.size or 0: p for p in sorted(points, key=lambda p: p.size or 0)}
    for style, ends in (
        (BOUND, {size: p.bound_us for size, p in by_size.items()}),
        (SHEET, {size: p.sheet_us for size, p in by_size.items()}),
    ):
        line = [(size, us) for size, us in ends.items() if us is not None]
        if line:
            axes.plot(*zip(*line, strict=True), **style)


def peer_markers(peers: Sequence[Peer]) -> dict[str, str]:
    """Return a marker a peer of 4 bits."""
    names = sorted({p.name for p in peers if p.kind != FP16})
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def draw_peers(axes: Axes, found: Sequence[tuple[Peer, float]], markers: Mapping[str, str]) -> None:
    """Draw each peer in the ink's colour, at a height a time."""
    for name in sorted({p.name for p, _ in found}):
        own = sorted((pair for pair in found if pair[0].name == name), key=lambda f: f[0].size or 0)
        x, y = [p.size or 0 for p, _ in own], [height for _, height in own]
        style = "-." if own[0][0].kind == FP16 else ":"
        axes.plot(
            x, y, linestyle=style, marker=markers.get(name, ""), color=INK, markerfacecolor="none",
            linewidth=1.0, markersize=5, markeredgewidth=0.8, alpha=0.65, zorder=3,
        )  # fmt: skip


def design_entries(points: Sequence[Point], styles: Styles) -> list[Line2D]:
    """Return a legend entry a design, and one for hollow markers if there are any."""
    entries = [
        Line2D([], [], color=styles[name][0], marker=styles[name][1], lw=1.1, label=name)
        for name in sorted({p.kernel for p in points})
    ]
    if any(p.doubt for p in points):
        hollow: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "linestyle": ""}
        entries.append(Line2D([], [], color=INK, label="hollow: failed or untrusted", **hollow))
    return entries


def _bound_entries(points: Sequence[Point]) -> list[Line2D]:
    entries = []
    if any(p.bound_us is not None and p.bound_us != p.sheet_us for p in points):
        entries.append(Line2D([], [], **BOUND, label="bound, measured ceilings (modelled)"))
    if any(p.sheet_us is not None for p in points):
        entries.append(Line2D([], [], **SHEET, label="bound, datasheet (modelled)"))
    return entries


def peer_entries(peers: Sequence[Peer], markers: Mapping[str, str]) -> list[Line2D]:
    """Return a legend entry a peer."""
    kinds = {p.name: p.kind for p in sorted(peers, key=lambda p: p.name)}
    style: dict[str, Any] = {"color": INK, "lw": 1.0, "markerfacecolor": "none", "alpha": 0.65}
    return [
        Line2D(
            [], [], linestyle="-." if kind == FP16 else ":", marker=markers.get(name, ""),
            label=f"{name} ({kind})" if kind not in name else name, **style,
        )
        for name, kind in kinds.items()
    ]  # fmt: skip
