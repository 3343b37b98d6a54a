"""The roofline: FLOP/s against FLOP per byte of device memory, under the ceilings of the board."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ferrum_numba.roofline import labels
from ferrum_numba.roofline.model import Ceiling, Point, Source, natural, ridge, roof, titled
from ferrum_numba.roofline.style import (
    DASHES,
    INK,
    RC,
    kernel_styles,
    new_figure,
    text_size,
    to_svg,
)

WIDTH, AXES_HEIGHT = 10.0, 5.0
LEFT, RIGHT, TOP, BOTTOM = 0.75, 1.95, 0.4, 0.6
LEGEND_ROW = 0.2
SMALL = 8.5
# so many sizes all have a label
MOST_LABELS = 12
# more shapes than this cannot be told apart by their dashes
MAX_SHAPES = 2 * len(DASHES)
POINTS_PER_PIXEL = 0.72


def plot(points: Sequence[Point], ceilings: Sequence[Ceiling], title: str = "Roofline") -> str:
    """Return the roofline as one `<svg>` element; only what is given is drawn.

    points:   measured ones, hollow where in doubt, and modelled ones
    ceilings: measured ones are solid, datasheet ones dashed
    """
    return to_svg(roofline_figure(points, ceilings, title), "roofline", title)


def roofline_figure(
    points: Sequence[Point], ceilings: Sequence[Ceiling], title: str = "Roofline"
) -> Figure:
    """Return the figure that `plot` writes."""
    with matplotlib.rc_context(RC):
        legends = (_kernel_entries(points), _shape_entries(points), _sign_entries(points, ceilings))
        columns = 2 if all(len(str(entry.get_label())) < 20 for entry in legends[1]) else 1
        rows = max(len(legends[0]), math.ceil(len(legends[1]) / columns), len(legends[2]))
        height = TOP + AXES_HEIGHT + BOTTOM + LEGEND_ROW * rows
        figure = new_figure(WIDTH, height)
        size = ((WIDTH - LEFT - RIGHT) / WIDTH, AXES_HEIGHT / height)
        axes = figure.add_axes((LEFT / WIDTH, 1 - (TOP + AXES_HEIGHT) / height, *size))
        axes.set_title(title, loc="left")
        _frame(axes, points, ceilings)
        obstacles = _draw_ceilings(axes, ceilings) + _draw_points(axes, points)
        obstacles += _draw_ridges(axes, ceilings)
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
    y += [c.rate for c in ceilings if c.kind == "tensor"]
    y += [memory.rate * end / 1e3 for end in (left * 1.8, middle)] if memory else []
    low, high = min(y, default=1.0) / 1.8, max(y, default=1000.0) * 2.0
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high))
    axes.set_xlabel("FLOP per byte of device memory (compulsory traffic)")
    axes.set_ylabel("TFLOP/s")
    axes.grid(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], source: Source) -> labels.Pixels:
    measured = source == "measured"
    axes.plot(
        x,
        y,
        color=INK,
        linestyle="-" if measured else (0, (6, 4)),
        linewidth=1.5 if measured else 1.1,
        alpha=0.9 if measured else 0.6,
        zorder=2,
    )
    return labels.sample(axes.transData.transform(np.column_stack([x, y])))


def _sources(ceilings: Sequence[Ceiling]) -> list[Source]:
    found: list[Source] = ["measured", "datasheet"]
    return [source for source in found if any(c.source == source for c in ceilings)]


def _partner(ceilings: Sequence[Ceiling], kind: str, source: Source) -> Ceiling | None:
    """Return the ceiling a line of this source ends at, of the other source if there is no own."""
    return roof(ceilings, kind, source) or roof(ceilings, kind)


def _draw_ceilings(axes: Axes, ceilings: Sequence[Ceiling]) -> list[labels.Pixels]:
    """Draw diagonals up to their ridge and horizontals from theirs; return the pixels they take."""
    left, right = axes.get_xlim()
    drawn, diagonals, horizontals = [], [], []
    for source in _sources(ceilings):
        memory = roof(ceilings, "memory", source)
        tensor = _partner(ceilings, "tensor", source)
        if memory is not None:
            end = ridge(memory, tensor) if tensor else right
            y = [x * memory.rate / 1e3 for x in (left, end)]
            drawn.append(_line(axes, (left, end), y, source))
            diagonals.append(memory)
        partner = _partner(ceilings, "memory", source)
        for tensor in (c for c in ceilings if c.kind == "tensor" and c.source == source):
            start = ridge(partner, tensor) if partner else left
            drawn.append(_line(axes, (start, right), (tensor.rate, tensor.rate), source))
            horizontals.append(tensor)
    drawn += _label_diagonals(axes, diagonals)
    _label_horizontals(axes, horizontals)
    return drawn


def _named(ceiling: Ceiling) -> str:
    if ceiling.source == "datasheet":
        return f"datasheet {ceiling.text}"
    return f"{ceiling.name} {ceiling.text}"


def _label_diagonals(axes: Axes, memories: Sequence[Ceiling]) -> list[labels.Pixels]:
    """Write along the upper side of the highest diagonal, where no honest point can be."""
    if not memories:
        return []
    top = max(memory.rate for memory in memories) / 1e3
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    x = max(left * (right / left) ** 0.06, low * (high / low) ** 0.06 / top)
    start, end = axes.transData.transform([(x, x * top), (2 * x, 2 * x * top)])
    along = (end - start) / math.hypot(*(end - start))
    offset = 8 * np.array([-along[1], along[0]])
    text = " · ".join(_named(memory) for memory in memories)
    axes.annotate(
        text,
        (x, x * top),
        xytext=tuple(offset * POINTS_PER_PIXEL),
        textcoords="offset points",
        rotation=math.degrees(math.atan2(along[1], along[0])),
        rotation_mode="anchor",
        fontsize=SMALL,
    )
    length = text_size(_figure(axes), text, SMALL)[0]
    begin = start + 1.5 * offset
    return [labels.sample(np.array([begin, begin + length * along]))]


def _label_horizontals(axes: Axes, tensors: Sequence[Ceiling]) -> None:
    """Write the horizontals' names outside, right of their ends, apart from each other."""
    right = axes.get_xlim()[1]
    low, high = axes.get_window_extent().y0, axes.get_window_extent().y1 + 20
    ends = [float(axes.transData.transform((right, t.rate))[1]) for t in tensors]
    for tensor, end, y in zip(tensors, ends, labels.spread(ends, 15, low, high), strict=True):
        axes.annotate(
            _named(tensor),
            (right, tensor.rate),
            xytext=(16 * POINTS_PER_PIXEL, (y - end) * POINTS_PER_PIXEL),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.5, "lw": 0.7, "shrinkA": 0},
            annotation_clip=False,
        )


def _draw_ridges(axes: Axes, ceilings: Sequence[Ceiling]) -> list[labels.Pixels]:
    """Drop a dotted line from every measured ridge (or the datasheet's) with its numbers."""
    memory = roof(ceilings, "memory")
    tensors = [c for c in ceilings if c.kind == "tensor"]
    tensors = [c for c in tensors if c.source == "measured"] or tensors
    if memory is None or not tensors:
        return []
    low, drawn = axes.get_ylim()[0], []
    for i, tensor in enumerate(sorted(tensors, key=lambda c: c.rate)):
        x = ridge(memory, tensor)
        axes.plot((x, x), (low, tensor.rate), color=INK, linestyle=":", linewidth=0.9, alpha=0.7)
        axes.plot(x, tensor.rate, marker="o", markersize=4, color=INK, zorder=3)
        words = f"ridge {x:.0f} FLOP/B = {tensor.text} / {memory.text}"
        text = _beside(axes, x, words, on_left=i == 0 and len(tensors) > 1)
        line = axes.transData.transform([(x, low), (x, tensor.rate)])
        drawn += [labels.sample(line), _grid(text)]
    return drawn


def _beside(axes: Axes, x: float, words: str, *, on_left: bool) -> Any:
    """Write upwards from the x axis, beside a vertical line."""
    return axes.annotate(
        words,
        (x, axes.get_ylim()[0]),
        xytext=(-4 if on_left else 4, 6),
        textcoords="offset points",
        rotation=90,
        ha="right" if on_left else "left",
        va="bottom",
        fontsize=SMALL,
    )


def _grid(text: Any) -> labels.Pixels:
    """Return pixels all over a text, for labels to keep off."""
    box = text.get_window_extent(text.axes.figure.canvas.get_renderer())
    x, y = np.meshgrid(np.arange(box.x0, box.x1 + 4, 4), np.arange(box.y0, box.y1 + 4, 4))
    return np.column_stack([x.ravel(), y.ravel()])


def _groups(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    """Return measured points by (kernel, shape), in order of size: one trajectory each."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for p in sorted(points, key=lambda p: (p.kernel, p.shape, p.size or 0, p.us)):
        if not p.modelled:
            groups.setdefault((p.kernel, p.shape), []).append(p)
    return groups


def _draw_points(axes: Axes, points: Sequence[Point]) -> list[labels.Pixels]:
    """Draw trajectories, error bars and markers; return the pixels they take."""
    styles = kernel_styles(p.kernel for p in points)
    shapes = sorted({p.shape for p in points if not p.modelled}, key=natural)
    drawn = []
    for (kernel, shape), group in _groups(points).items():
        colour, marker = styles[kernel]
        dash = DASHES[shapes.index(shape) % len(DASHES)] if len(shapes) <= MAX_SHAPES else "-"
        line = [(p.intensity, p.tflops) for p in group if not p.doubt]
        if len(line) > 1:
            axes.plot(*zip(*line, strict=True), color=colour, linestyle=dash, lw=0.9, alpha=0.75)
            drawn.append(labels.sample(axes.transData.transform(line)))
        for p in group:
            _marker(axes, p, colour, marker)
    for p in points:
        if p.modelled:
            axes.plot(p.intensity, p.tflops, "x", color=INK, alpha=0.75, markersize=5.5, zorder=3)
    return drawn + _taken(axes, points)


def _taken(axes: Axes, points: Sequence[Point]) -> list[labels.Pixels]:
    """Return the pixels of markers and error bars."""
    if not points:
        return []
    centres = axes.transData.transform([(p.intensity, p.tflops) for p in points])
    drawn = [centres + offset for offset in np.array([(0, 0), (0, 3), (0, -3), (3, 0), (-3, 0)])]
    for p in points:
        bar = [(p.intensity, p.flops / us / 1e6) for us in (p.us_low, p.us_high)]
        drawn.append(labels.sample(axes.transData.transform(bar)))
    return drawn


def _marker(axes: Axes, p: Point, colour: str, marker: str) -> None:
    """Draw one measured point with the interval of its time."""
    low, high = p.flops / p.us_high / 1e6, p.flops / p.us_low / 1e6
    axes.errorbar(
        p.intensity,
        p.tflops,
        yerr=[[max(p.tflops - low, 0.0)], [max(high - p.tflops, 0.0)]],
        fmt=marker,
        color=colour,
        markerfacecolor="none" if p.doubt else colour,
        markeredgewidth=1.2 if p.doubt else 0.0,
        elinewidth=1.0,
        capsize=2.0,
        zorder=4,
    )


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


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
    extents = [text_size(_figure(axes), text, SMALL) for text in texts]
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


def _kernel_entries(points: Sequence[Point]) -> list[Line2D]:
    styles = kernel_styles(p.kernel for p in points)
    return [
        Line2D([], [], color=styles[name][0], marker=styles[name][1], linestyle="", label=name)
        for name in sorted({p.kernel for p in points if not p.modelled})
    ]


def _shape_entries(points: Sequence[Point]) -> list[Line2D]:
    shapes = sorted({p.shape for p in points if not p.modelled}, key=natural)
    if len(shapes) > MAX_SHAPES:
        shapes = [f"one line a shape ({len(shapes)} shapes)"]
    return [
        Line2D([], [], color=INK, linestyle=DASHES[i % len(DASHES)], lw=0.9, label=titled(shape))
        for i, shape in enumerate(shapes)
    ]


def _sign_entries(points: Sequence[Point], ceilings: Sequence[Ceiling]) -> list[Line2D]:
    """Return what lines and marks mean, for those that are there."""
    sources = _sources([c for c in ceilings if c.kind in ("memory", "tensor")])
    signs = [
        Line2D([], [], color=INK, linestyle="-", lw=1.5, label="ceiling, measured"),
        Line2D([], [], color=INK, linestyle=(0, (4, 2.5)), lw=1.1, label="ceiling, datasheet"),
    ]
    entries = [signs[source == "datasheet"] for source in sources]
    if any(p.doubt for p in points):
        entries.append(_sign("o", "hollow: failed or untrusted", markerfacecolor="none"))
    if any(p.modelled for p in points):
        entries.append(_sign("x", "modelled: the bound, not measured"))
    return entries


def _sign(marker: str, label: str, **style: Any) -> Line2D:
    return Line2D([], [], color=INK, marker=marker, linestyle="", label=label, **style)
