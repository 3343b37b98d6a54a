"""The roofline: FLOP/s against FLOP per byte of device memory, under the ceilings of the board."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ferrum_numba.roofline import labels
from ferrum_numba.roofline.ceilings import Ceiling, bands, ridge, roof
from ferrum_numba.roofline.points import Point, natural, titled
from ferrum_numba.roofline.roofs import draw_ceilings, figure_of, horizontals, named
from ferrum_numba.roofline.style import (
    DASHES,
    INK,
    RC,
    SMALL,
    design_styles,
    new_figure,
    text_size,
    to_svg,
)

WIDTH, AXES_HEIGHT = 10.0, 5.0
LEFT, RIGHT, TOP, BOTTOM = 0.75, 2.1, 0.75, 0.6
# from the frame to a horizontal's name, and behind it
BESIDE = 0.3
LEGEND_ROW = 0.2
# so many sizes all have a label
MOST_LABELS = 12
# more shapes than this cannot be told apart by their dashes
MAX_SHAPES = 2 * len(DASHES)
# what binds a problem -> its marker, and in words
LIMITS = {
    "memory": ("o", "memory binds"),
    "tensor": ("s", "tensor cores bind"),
    "unpack": ("D", "unpacking binds"),
    "latency": ("^", "latency binds (bound below 5 µs)"),
    "unknown": ("P", "what binds is unknown"),
}
Groups = dict[tuple[str, str], list[Point]]


class Svg(str):
    """An `<svg>` element, which a notebook shows as the picture it is."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)


def plot(points: Sequence[Point], ceilings: Sequence[Ceiling], title: str = "Roofline") -> Svg:
    """Return the roofline as one `<svg>` element; only what is given is drawn.

    points:   measured ones, hollow where in doubt, and modelled ones
    ceilings: measured ones are solid, datasheet ones dashed
    """
    return Svg(to_svg(roofline_figure(points, ceilings, title), "roofline", title))


def roofline_figure(
    points: Sequence[Point],
    ceilings: Sequence[Ceiling],
    title: str = "Roofline",
    designs: Iterable[str] = (),
) -> Figure:
    """Return the figure that `plot` writes.

    designs: all that colours must tell apart in other figures too
    """
    styles = design_styles([*designs, *(p.kernel for p in points)])
    colours = {name: colour for name, (colour, _) in styles.items()}
    with matplotlib.rc_context(RC):
        legends = (
            _design_entries(points, colours), _shape_entries(points),
            [*_limit_entries(points), *_sign_entries(points, ceilings)],
        )  # fmt: skip
        columns = 2 if all(len(str(entry.get_label())) < 20 for entry in legends[1]) else 1
        rows = max(len(legends[0]), math.ceil(len(legends[1]) / columns), len(legends[2]))
        height = TOP + AXES_HEIGHT + BOTTOM + LEGEND_ROW * rows
        figure = new_figure(WIDTH, height)
        names = [text_size(figure, named(one), SMALL)[0] for one in horizontals(ceilings)]
        right = max([RIGHT, *(width / 100 + BESIDE for width in names)])
        size = ((WIDTH - LEFT - right) / WIDTH, AXES_HEIGHT / height)
        axes = figure.add_axes((LEFT / WIDTH, 1 - (TOP + AXES_HEIGHT) / height, *size))
        figure.text(LEFT / WIDTH, 1 - 0.25 / height, title, fontsize=10)
        _frame(axes, points, ceilings)
        obstacles = draw_ceilings(axes, ceilings) + _draw_points(axes, points, colours)
        _label_sizes(axes, points, obstacles)
        _add_legends(figure, legends, columns, (LEGEND_ROW * rows + 0.1) / height)
    return figure


def _add_legends(
    figure: Figure, legends: Sequence[Sequence[Line2D]], shape_columns: int, top: float
) -> None:
    """Put the legends side by side at the bottom, each where the one before it ends at least."""
    end = 0.0
    starts, columns = (0.06, 0.3, 0.66), (1, shape_columns, 1)
    for handles, start, count in zip(legends, starts, columns, strict=True):
        place = (max(start, end), top)
        legend = figure.legend(handles=handles, loc="upper left", ncols=count, bbox_to_anchor=place)
        if handles:
            box = legend.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
            end = box.x1 / figure.bbox.width


def _frame(axes: Axes, points: Sequence[Point], ceilings: Sequence[Ceiling]) -> None:
    """Set log scales wide enough for all points, ridges and roofs."""
    memory, tensor = roof(ceilings, "memory"), roof(ceilings, "tensor")
    middle = ridge(memory, tensor) if memory and tensor else 200.0
    x = [middle / 30, middle * 10, *(p.intensity for p in points)]
    left, right = min(x) / 1.8, max(x) * 1.8
    y = [p.tflops for p in points]
    y += [c.rate for c in ceilings if c.kind in ("tensor", "alu")]
    y += [memory.rate * end / 1e3 for end in (left * 1.8, middle)] if memory else []
    low, high = min(y, default=1.0) / 1.8, max(y, default=1000.0) * 1.5
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high))
    axes.set_xlabel("FLOP per byte of device memory (compulsory traffic)")
    axes.set_ylabel("TFLOP/s")
    axes.grid(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _groups(points: Sequence[Point]) -> Groups:
    """Return measured points by (kernel, shape), in order of size: one trajectory each."""
    groups: Groups = {}
    for p in sorted(points, key=lambda p: (p.kernel, p.shape, p.size or 0, p.us)):
        if not p.modelled:
            groups.setdefault((p.kernel, p.shape), []).append(p)
    return groups


def _draw_points(
    axes: Axes, points: Sequence[Point], colours: dict[str, str]
) -> list[labels.Pixels]:
    """Draw trajectories, intervals and markers; return the pixels they take."""
    shapes = sorted({p.shape for p in points if not p.modelled}, key=natural)
    drawn = []
    for (kernel, shape), group in _groups(points).items():
        dash = DASHES[shapes.index(shape) % len(DASHES)] if len(shapes) <= MAX_SHAPES else "-"
        line = [(p.intensity, p.tflops) for p in group if not p.doubt]
        if len(line) > 1:
            style: dict[str, Any] = {"linestyle": dash, "lw": 0.9, "alpha": 0.75}
            axes.plot(*zip(*line, strict=True), color=colours[kernel], **style)
            drawn.append(labels.sample(axes.transData.transform(line)))
        _intervals(axes, group, colours[kernel])
        _traffic(axes, group, colours[kernel])
        for limit, (marker, _) in LIMITS.items():
            for doubted in (False, True):
                some = [p for p in group if p.limit == limit and bool(p.doubt) == doubted]
                _markers(axes, some, colours[kernel], marker, hollow=doubted)
    modelled = [(p.intensity, p.tflops) for p in points if p.modelled]
    if modelled:
        x, y = zip(*modelled, strict=True)
        axes.plot(x, y, "x", color=INK, alpha=0.75, markersize=5.5, zorder=3)
    return drawn + _taken(axes, points)


def _intervals(axes: Axes, group: Sequence[Point], colour: str) -> None:
    x = [p.intensity for p in group]
    low, high = ([p.flops / us / 1e6 for p, us in zip(group, ends, strict=True)]
                 for ends in ([p.us_high for p in group], [p.us_low for p in group]))  # fmt: skip
    axes.vlines(x, low, high, color=colour, linewidth=1.0, zorder=4)


def _traffic(axes: Axes, group: Sequence[Point], colour: str) -> None:
    """Draw where a point lies by the bytes that were counted, and how far that is."""
    for p in group:
        if p.traffic:
            x = p.flops / p.traffic
            low, high = sorted((x, p.intensity))
            axes.hlines(p.tflops, low, high, color=colour, linewidth=0.8, zorder=3)
            axes.plot(x, p.tflops, "|", color=colour, markersize=8, zorder=4)


def _markers(axes: Axes, group: Sequence[Point], colour: str, marker: str, *, hollow: bool) -> None:
    if group:
        x, y = [p.intensity for p in group], [p.tflops for p in group]
        face, edge = ("none", 1.2) if hollow else (colour, 0.0)
        axes.plot(
            x, y, marker, color=colour, markersize=5, markerfacecolor=face, markeredgewidth=edge,
            zorder=4,
        )  # fmt: skip


def _taken(axes: Axes, points: Sequence[Point]) -> list[labels.Pixels]:
    """Return the pixels of markers and intervals."""
    if not points:
        return []
    centres = axes.transData.transform([(p.intensity, p.tflops) for p in points])
    drawn = [centres + offset for offset in np.array([(0, 0), (0, 3), (0, -3), (3, 0), (-3, 0)])]
    for p in points:
        bar = [(p.intensity, p.flops / us / 1e6) for us in (p.us_low, p.us_high)]
        drawn.append(labels.sample(axes.transData.transform(bar)))
    return drawn


def _clusters(axes: Axes, points: Sequence[Point]) -> dict[int, labels.Pixels]:
    """Return the pixels of each size's points, of those at one intensity: the largest group."""
    sizes: dict[int, dict[int, list[tuple[float, float]]]] = {}
    for p in points:
        if p.size is not None:
            x, y = axes.transData.transform((p.intensity, p.tflops))
            columns = sizes.setdefault(p.size, {})
            near = next((column for column in columns if abs(column - x) < 12), int(x))
            columns.setdefault(near, []).append((x, y))
    return {size: np.array(max(sizes[size].values(), key=len)) for size in sorted(sizes)}


def _worth_a_label(sizes: Sequence[int]) -> list[int]:
    """Return the sizes, but of very many only those that are not close to the one before."""
    if len(sizes) <= MOST_LABELS:
        return list(sizes)
    kept, ratio = [sizes[0]], (sizes[-1] / sizes[0]) ** (0.75 / MOST_LABELS)
    for size in sizes:
        if size > ratio * kept[-1]:
            kept.append(size)
    return kept


def _label_sizes(axes: Axes, points: Sequence[Point], obstacles: list[labels.Pixels]) -> None:
    """Label a size once, at the bottom or top of its points, where there is room."""
    clusters = _clusters(axes, points)
    clusters = {size: clusters[size] for size in _worth_a_label(list(clusters))}
    name = points[0].size_name if points else ""
    texts = [f"{name}={size}" for size in clusters]
    anchors = [(xy[xy[:, 1].argmax()], xy[xy[:, 1].argmin()]) for xy in clusters.values()]
    extents = [text_size(figure_of(axes), text, SMALL) for text in texts]
    x0, y0, x1, y1 = (float(edge) for edge in axes.get_window_extent().extents)
    taken = np.concatenate(obstacles) if obstacles else np.empty((0, 2))
    boxes = labels.place(anchors, extents, taken, (x0, y0, x1, y1))
    to_axes = axes.transAxes.inverted()
    for text, box, ends in zip(texts, boxes, anchors, strict=True):
        if box is None:
            continue
        x, y = to_axes.transform((box[0], box[1]))
        axes.text(x, y, text, transform=axes.transAxes, fontsize=SMALL, va="bottom", zorder=5)
        leader = labels.leader(box, ends)
        if leader is not None:
            line = to_axes.transform(leader)
            axes.plot(*line.T, color=INK, lw=0.6, alpha=0.6, transform=axes.transAxes, zorder=3)


def _design_entries(points: Sequence[Point], colours: dict[str, str]) -> list[Line2D]:
    names = sorted({p.kernel for p in points if not p.modelled})
    return [Line2D([], [], color=colours[name], lw=2.5, label=name) for name in names]


def _shape_entries(points: Sequence[Point]) -> list[Line2D]:
    shapes = sorted({p.shape for p in points if not p.modelled}, key=natural)
    if len(shapes) > MAX_SHAPES:
        shapes = [f"one line a shape ({len(shapes)} shapes)"]
    return [
        Line2D([], [], color=INK, linestyle=DASHES[i % len(DASHES)], lw=0.9, label=titled(shape))
        for i, shape in enumerate(shapes)
    ]


def _limit_entries(points: Sequence[Point]) -> list[Line2D]:
    there = {p.limit for p in points if not p.modelled}
    return [_sign(mark, words) for limit, (mark, words) in LIMITS.items() if limit in there]


def _sign_entries(points: Sequence[Point], ceilings: Sequence[Ceiling]) -> list[Line2D]:
    """Return what lines and marks mean, for those that are there."""
    sources = {c.source for c in ceilings if c.kind in ("memory", "tensor")}
    entries = []
    if "measured" in sources:
        entries.append(Line2D([], [], color=INK, lw=1.5, label="ceiling, measured"))
    if "datasheet" in sources:
        dashes: Any = (0, (4, 2.5))
        entries.append(Line2D([], [], color=INK, ls=dashes, lw=1.1, label="ceiling, datasheet"))
    if bands(ceilings):
        entries.append(Line2D([], [], color=INK, alpha=0.2, lw=6, label="sustained to burst"))
    if any(p.traffic for p in points):
        entries.append(_sign("|", "at the traffic that was counted"))
    if any(p.doubt for p in points):
        entries.append(_sign("o", "hollow: failed or untrusted", markerfacecolor="none"))
    if any(p.modelled for p in points):
        entries.append(_sign("x", "modelled: the bound, not measured"))
    return entries


def _sign(marker: str, label: str, **style: Any) -> Line2D:
    return Line2D([], [], color=INK, marker=marker, linestyle="", label=label, **style)
