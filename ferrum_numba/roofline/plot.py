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
from ferrum_numba.roofline.arrows import draw_arrows
from ferrum_numba.roofline.ceilings import Ceiling, ridge, roof
from ferrum_numba.roofline.legend import (
    LIMITS,
    MAX_SHAPES,
    design_entries,
    limit_entries,
    shape_entries,
    sign_entries,
)
from ferrum_numba.roofline.points import Point, natural
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
Groups = dict[tuple[str, str], list[Point]]


class Svg(str):
    """An `<svg>` element, which a notebook shows as the picture it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<a picture: {len(self)} characters of SVG>"

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
    before: Sequence[Point] = (),
) -> Figure:
    """Return the figure that `plot` writes.

    designs: all that colours must tell apart in other figures too
    before:  where each point was earlier, if an arrow is to lead from there
    """
    styles = design_styles([*designs, *(p.kernel for p in (*points, *before))])
    colours = {name: colour for name, (colour, _) in styles.items()}
    with matplotlib.rc_context(RC):
        legends = (
            design_entries([*points, *before], colours), shape_entries(points),
            [*limit_entries(points), *sign_entries(points, ceilings, bool(before))],
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
        _frame(axes, [*points, *before], ceilings)
        obstacles = draw_ceilings(axes, ceilings) + _draw_points(
            axes, points, colours, lines=not before
        )
        if before:
            obstacles += draw_arrows(axes, before, points, colours)
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
    axes: Axes, points: Sequence[Point], colours: dict[str, str], *, lines: bool = True
) -> list[labels.Pixels]:
    """Draw trajectories, unless without lines, intervals and markers; return the pixels taken."""
    shapes = sorted({p.shape for p in points if not p.modelled}, key=natural)
    drawn = []
    for (kernel, shape), group in _groups(points).items():
        dash = DASHES[shapes.index(shape) % len(DASHES)] if len(shapes) <= MAX_SHAPES else "-"
        line = [(p.intensity, p.tflops) for p in group if not p.doubt]
        if lines and len(line) > 1:
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
