"""Time against size, a panel a shape, and the fraction of the bound as a table of colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from ferrum_numba.roofline.model import (
    Ceiling,
    Peer,
    Point,
    memory_floor_us,
    natural,
    roof,
    tensor_floor_us,
    titled,
)
from ferrum_numba.roofline.style import INK, MARKERS, RC, kernel_styles, new_figure

WIDTH, PANEL_HEIGHT = 10.0, 2.9
LEGEND_ROW, LEGEND_COLUMNS = 0.2, 3
CELL, CELL_WIDTH = 0.3, 0.42
# of a 9 point font, on average
INCHES_A_LETTER = 0.075
SMALL = 8.5
FOUR_BIT, FP16 = "4-bit", "fp16"


def time_figure(
    points: Sequence[Point], peers: Sequence[Peer], ceilings: Sequence[Ceiling], title: str
) -> Figure:
    """Return time against size, log-log, a panel a shape: kernels, peers and the two floors.

    points: measured; hollow where in doubt
    peers:  of the same shapes; the best one of each kind at each size is drawn, a 4-bit one with
            its name's marker
    """
    points = [p for p in points if p.size is not None and not p.modelled]
    shapes = sorted({p.shape for p in points}, key=natural)
    styles, markers = kernel_styles(p.kernel for p in points), _peer_markers(peers)
    with matplotlib.rc_context(RC):
        handles = [*_kernel_entries(points), *_floor_entries(ceilings), *_peer_entries(peers)]
        figure, grid = _panels(title, len(shapes), math.ceil(len(handles) / LEGEND_COLUMNS))
        for i, shape in enumerate(shapes):
            axes = figure.add_subplot(grid[i // 2, i % 2])
            axes.set_title(titled(shape), loc="left", fontsize=9)
            _panel(axes, [p for p in points if p.shape == shape], styles, ceilings)
            _draw_peers(axes, [p for p in peers if p.shape == shape], markers)
            _widen(axes)
            axes.set_ylabel("µs per call" if i % 2 == 0 else "")
            axes.set_xlabel(points[0].size_name if i + 2 >= len(shapes) else "")
        place = (0.06, 0)
        figure.legend(handles=handles, loc="lower left", ncols=LEGEND_COLUMNS, bbox_to_anchor=place)
    return figure


def _panels(title: str, count: int, legend_rows: int) -> tuple[Figure, GridSpec]:
    """Return a figure with room for this many panels, two a row, and a legend below."""
    rows = max(1, math.ceil(count / 2))
    bottom, top = 0.6 + LEGEND_ROW * legend_rows, 0.65
    height = top + PANEL_HEIGHT * rows + bottom
    figure = new_figure(WIDTH, height)
    figure.text(0.07, 1 - 0.25 / height, title, fontsize=10)
    edges = {"left": 0.07, "right": 0.985, "top": 1 - top / height, "bottom": bottom / height}
    return figure, figure.add_gridspec(rows, 2, hspace=0.3, wspace=0.14, **edges)


def _widen(axes: Axes) -> None:
    """Show a factor of four at least: where all take about as long, noise is no mountain."""
    low, high = axes.get_ylim()
    middle = math.sqrt(low * high)
    axes.set_ylim(min(low, middle / 2), max(high, middle * 2))


def _panel(
    axes: Axes,
    points: Sequence[Point],
    styles: Mapping[str, tuple[str, str]],
    ceilings: Sequence[Ceiling],
) -> None:
    """Draw one shape's floors and kernels."""
    axes.set(xscale="log", yscale="log")
    axes.grid(True)
    _size_ticks(axes, sorted({p.size for p in points if p.size is not None}))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _draw_floors(axes, points, ceilings)
    for kernel in sorted({p.kernel for p in points}):
        colour, marker = styles[kernel]
        own = sorted((p for p in points if p.kernel == kernel), key=lambda p: (p.size or 0, p.us))
        good = [(p.size, p.us) for p in own if not p.doubt]
        if good:
            axes.plot(*zip(*good, strict=True), color=colour, linewidth=1.1, zorder=4)
        for p in own:
            _time_marker(axes, p, colour, marker)


def _time_marker(axes: Axes, p: Point, colour: str, marker: str) -> None:
    axes.errorbar(
        p.size or 0,
        p.us,
        yerr=[[max(p.us - p.us_low, 0.0)], [max(p.us_high - p.us, 0.0)]],
        fmt=marker,
        color=colour,
        markersize=5,
        markerfacecolor="none" if p.doubt else colour,
        markeredgewidth=1.2 if p.doubt else 0.0,
        elinewidth=1.0,
        capsize=2.0,
        zorder=5,
    )


def _size_ticks(axes: Axes, sizes: Sequence[int]) -> None:
    """Label the sizes that were measured, leaving out those too close to the last label."""
    ticks: list[int] = []
    span = math.log(max(sizes) / min(sizes)) if sizes and min(sizes) > 0 else 0.0
    for size in sizes:
        if not ticks or math.log(size / ticks[-1]) > 0.1 * span:
            ticks.append(size)
    axes.xaxis.set_major_locator(FixedLocator([float(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))


def _draw_floors(axes: Axes, points: Sequence[Point], ceilings: Sequence[Ceiling]) -> None:
    """Draw the least time the bytes and the FLOPs need, solid if from measured ceilings."""
    by_size = {p.size or 0: p for p in sorted(points, key=lambda p: p.size or 0)}
    memory, tensor = roof(ceilings, "memory"), roof(ceilings, "tensor")
    lowest = min((p.us for p in points), default=1.0) / 4
    if memory is not None:
        floor = [memory_floor_us(p.bytes, memory) for p in by_size.values()]
        axes.plot(list(by_size), floor, **_floor_style("memory", memory))
    if tensor is not None:
        floor = [tensor_floor_us(p.flops, tensor) for p in by_size.values()]
        # far below the memory floor it only stretches the axis
        shown = [(size, us) for size, us in zip(by_size, floor, strict=True) if us > lowest]
        if shown:
            axes.plot(*zip(*shown, strict=True), **_floor_style("tensor", tensor))


def _floor_style(kind: str, ceiling: Ceiling) -> dict[str, Any]:
    colour = {"color": INK, "alpha": 0.85 if kind == "memory" else 0.45, "zorder": 2}
    width = 1.2 if kind == "memory" else 2.4
    return {
        **colour,
        "linewidth": width,
        "linestyle": "-" if ceiling.source == "measured" else "--",
    }


def _peer_markers(peers: Sequence[Peer]) -> dict[str, str]:
    names = sorted({p.name for p in _best(peers, FOUR_BIT)})
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def _best(peers: Sequence[Peer], kind: str) -> list[Peer]:
    """Return the fastest peer of a kind on every problem."""
    best: dict[tuple[str, int | None], Peer] = {}
    for peer in sorted((p for p in peers if p.kind == kind), key=lambda p: p.us):
        best.setdefault((peer.shape, peer.size), peer)
    return sorted(best.values(), key=lambda p: (p.shape, p.size or 0))


def _draw_peers(axes: Axes, peers: Sequence[Peer], markers: Mapping[str, str]) -> None:
    """Draw peers in the ink's colour: the best 4-bit one dotted, dense fp16 dash-dotted."""
    best, dense = _best(peers, FOUR_BIT), _best(peers, FP16)
    for line, style in ((best, ":"), (dense, "-.")):
        if line:
            x, y = [p.size or 0 for p in line], [p.us for p in line]
            axes.plot(x, y, color=INK, linestyle=style, linewidth=1.0, alpha=0.6, zorder=3)
    for peer in best:
        axes.plot(
            peer.size or 0,
            peer.us,
            markers[peer.name],
            color=INK,
            markerfacecolor="none",
            markersize=5,
            markeredgewidth=0.8,
            alpha=0.75,
            zorder=3,
        )


def _kernel_entries(points: Sequence[Point]) -> list[Line2D]:
    """Return a legend entry a kernel, and one for hollow markers if there are any."""
    entries = [
        Line2D([], [], color=colour, marker=marker, lw=1.1, label=name)
        for name, (colour, marker) in kernel_styles(p.kernel for p in points).items()
    ]
    if any(p.doubt for p in points):
        hollow: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "linestyle": ""}
        entries.append(Line2D([], [], color=INK, label="hollow: failed or untrusted", **hollow))
    return entries


def _floor_entries(ceilings: Sequence[Ceiling]) -> list[Line2D]:
    entries = []
    for kind in ("memory", "tensor"):
        ceiling = roof(ceilings, kind)
        if ceiling is not None:
            label = f"{kind} floor ({ceiling.source} {ceiling.text})"
            entries.append(Line2D([], [], **_floor_style(kind, ceiling), label=label))
    return entries


def _peer_entries(peers: Sequence[Peer]) -> list[Line2D]:
    style: dict[str, Any] = {"color": INK, "lw": 1.0, "linestyle": ":", "markerfacecolor": "none"}
    entries = [
        Line2D([], [], marker=marker, alpha=0.75, label=f"best 4-bit peer: {name}", **style)
        for name, marker in _peer_markers(peers).items()
    ]
    for name in sorted({p.name for p in peers if p.kind == FP16}):
        entries.append(Line2D([], [], color=INK, lw=1.0, linestyle="-.", alpha=0.6, label=name))
    return entries


def fraction_figure(points: Sequence[Point], title: str) -> Figure:
    """Return the fraction of the bound as coloured cells: kernels by shape, against size.

    points: measured ones with a fraction; those in doubt are crosses; bold marks the fastest kernel
    """
    points = [p for p in points if p.fraction is not None and not p.modelled]
    rows = sorted({(p.shape, p.kernel) for p in points}, key=lambda r: (natural(r[0]), r[1]))
    sizes: list[int | None] = [*sorted({p.size for p in points if p.size is not None})] or [None]
    fastest = _fastest(points)
    with matplotlib.rc_context(RC):
        axes = _cells(rows, ["" if size is None else str(size) for size in sizes], title)
        axes.set_xlabel(points[0].size_name if points and sizes[0] is not None else "", loc="left")
        for p in points:
            place = (sizes.index(p.size), rows.index((p.shape, p.kernel)))
            _cell(axes, p, place, winner=fastest.get((p.shape, p.size)) is p)
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def _cells(rows: Sequence[tuple[str, str]], columns: Sequence[str], title: str) -> Axes:
    """Return axes with a unit cell a row and column: shapes and kernels left, sizes above."""
    shape_width = 0.35 + INCHES_A_LETTER * max((len(shape) for shape, _ in rows), default=1)
    kernel_width = 0.1 + INCHES_A_LETTER * max((len(kernel) for _, kernel in rows), default=1)
    left, height = shape_width + kernel_width, 1.0 + CELL * len(rows)
    width = max(WIDTH, left + CELL_WIDTH * len(columns) + 0.15)
    figure = new_figure(width, height)
    figure.text(0.2 / width, 1 - 0.25 / height, title, fontsize=10)
    size = (1 - (left + 0.15) / width, CELL * len(rows) / height)
    axes = figure.add_axes((left / width, 0.1 / height, *size))
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False, bottom=False)
    axes.xaxis.set_label_position("top")
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [kernel for _, kernel in rows])
    for y, (shape, _) in enumerate(rows):
        if y == 0 or shape != rows[y - 1][0]:
            axes.axhline(y, color=INK, linewidth=0.8, alpha=0.5)
            at = (0.1 + CELL * (len(rows) - y - 0.5)) / height
            figure.text(0.2 / width, at, shape, va="center", fontsize=9)
    return axes


def _fastest(points: Sequence[Point]) -> dict[tuple[str, int | None], Point]:
    best: dict[tuple[str, int | None], Point] = {}
    for p in sorted(points, key=lambda p: p.us):
        if not p.doubt:
            best.setdefault((p.shape, p.size), p)
    return best


def _cell(axes: Axes, p: Point, place: tuple[int, int], *, winner: bool) -> None:
    """Draw one fraction on its colour, or a cross where the time cannot be trusted."""
    x, y = place
    assert p.fraction is not None
    if p.doubt:
        axes.text(x + 0.5, y + 0.5, "×", ha="center", va="center", fontsize=SMALL)
        return
    red, green, blue, _ = matplotlib.colormaps["viridis"](min(max(p.fraction, 0.0), 1.0))
    axes.fill([x, x + 1, x + 1, x], [y, y, y + 1, y + 1], color=(red, green, blue), lw=0)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    axes.text(
        x + 0.5,
        y + 0.5,
        f"{p.fraction:.2f}",
        ha="center",
        va="center",
        fontsize=SMALL,
        fontweight="bold" if winner else "normal",
        color="#ffffff" if dark else "#000000",
    )
