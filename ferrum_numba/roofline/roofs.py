"""The ceilings on a roofline: diagonals of memories, horizontals of units, ridges, their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ferrum_numba.roofline import labels
from ferrum_numba.roofline.ceilings import Ceiling, bands, ridge, roof
from ferrum_numba.roofline.style import INK, POINTS_PER_PIXEL, SMALL, text_size

# px between two diagonals, at right angles, for each to have a label of its own
APART = 15.0
# ridges closer than this share a label
RIDGES_APART = 1.04
LEADER: dict[str, Any] = {"arrowstyle": "-", "color": INK, "alpha": 0.5, "lw": 0.7, "shrinkA": 0}
# px that a ridge's label is above the frame
ABOVE = 14.0
LINES: dict[str, dict[str, Any]] = {
    "measured": {"linestyle": "-", "linewidth": 1.5, "alpha": 0.9},
    "datasheet": {"linestyle": (0, (6, 4)), "linewidth": 1.1, "alpha": 0.6},
    "unpack": {"linestyle": (0, (7, 2, 1.5, 2)), "linewidth": 1.3, "alpha": 0.8},
    "cache": {"linestyle": "-", "linewidth": 0.9, "alpha": 0.7},
}


def diagonals(ceilings: Sequence[Ceiling]) -> list[Ceiling]:
    """Return what is drawn as a diagonal: the roof of each memory level, of each source, and of
    unpacking, by the bytes of packed weights; the steepest first."""
    found = [roof(ceilings, "memory", "measured"), roof(ceilings, "memory", "datasheet")]
    caches: dict[str, Ceiling] = {}
    for one in sorted((c for c in ceilings if c.kind == "cache"), key=lambda c: c.rate):
        caches[one.name.split()[0]] = one
    found += [*caches.values(), roof(ceilings, "unpack")]
    return sorted((c for c in found if c is not None), key=lambda c: -c.gbps)


def horizontals(ceilings: Sequence[Ceiling]) -> list[Ceiling]:
    """Return what is drawn as a horizontal: every unit once, at its faster pace."""
    best: dict[tuple[str, str], Ceiling] = {}
    for one in sorted(ceilings, key=lambda c: c.rate):
        if one.kind in ("tensor", "alu"):
            best[one.name, one.source] = one
    return list(best.values())


def _style(ceiling: Ceiling) -> dict[str, Any]:
    if ceiling.source == "datasheet":
        return LINES["datasheet"]
    return LINES.get(ceiling.kind, LINES["measured"])


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], ceiling: Ceiling) -> labels.Pixels:
    axes.plot(x, y, color=INK, zorder=2, **_style(ceiling))
    return labels.sample(axes.transData.transform(np.column_stack([x, y])))


def draw_ceilings(axes: Axes, ceilings: Sequence[Ceiling]) -> list[labels.Pixels]:
    """Draw diagonals up to their ridge and horizontals from theirs; return the pixels they take."""
    left, right = axes.get_xlim()
    drawn = []
    for one in diagonals(ceilings):
        end = _end(one, ceilings, right)
        drawn.append(_line(axes, (left, end), [x * one.gbps / 1e3 for x in (left, end)], one))
    for one in horizontals(ceilings):
        memory = roof(ceilings, "memory", one.source) or roof(ceilings, "memory")
        start = ridge(memory, one) if memory else left
        drawn.append(_line(axes, (start, right), (one.rate, one.rate), one))
    _draw_bands(axes, ceilings)
    drawn += _label_diagonals(axes, diagonals(ceilings))
    _label_horizontals(axes, horizontals(ceilings))
    return drawn + _draw_ridges(axes, ceilings)


def _end(one: Ceiling, ceilings: Sequence[Ceiling], right: float) -> float:
    """Return where a diagonal meets the roof: a memory's the highest one of its source."""
    found = [c for c in horizontals(ceilings) if c.kind == "tensor" and c.source == one.source]
    tensor = roof(ceilings, "tensor", one.source) or roof(ceilings, "tensor")
    if one.kind == "memory" and found:
        tensor = max(found, key=lambda c: c.rate)
    return min(right, ridge(one, tensor)) if tensor else right


def _draw_bands(axes: Axes, ceilings: Sequence[Ceiling]) -> None:
    """Shade from what a unit or memory sustains to what it does in a burst."""
    left, right = axes.get_xlim()
    for slow, fast in bands(ceilings):
        if fast.kind in ("tensor", "alu"):
            memory = roof(ceilings, "memory")
            x = [ridge(memory, slow) if memory else left, right]
            low, high = [slow.rate] * 2, [fast.rate] * 2
        elif fast in diagonals(ceilings):
            x = [left, _end(fast, ceilings, right)]
            low, high = ([at * c.gbps / 1e3 for at in x] for c in (slow, fast))
        else:
            continue
        axes.fill_between(x, low, high, color=INK, alpha=0.12, linewidth=0, zorder=1)


def named(ceiling: Ceiling) -> str:
    """Return a ceiling's name and rate."""
    pace = f" {ceiling.pace}" if ceiling.pace else ""
    if ceiling.source == "datasheet":
        return f"datasheet {ceiling.text}"
    packed = f" = {ceiling.gbps / 1e3:.2g} TB/s packed" if ceiling.kind == "unpack" else ""
    return f"{ceiling.name}{pace} {ceiling.text}{packed}"


def _label_diagonals(axes: Axes, found: Sequence[Ceiling]) -> list[labels.Pixels]:
    """Write along the upper side of each diagonal; those too close together share a label."""
    groups: list[list[Ceiling]] = []
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    box = axes.get_window_extent()
    across = box.height / math.log(high / low), box.width / math.log(right / left)
    tilt = math.atan2(*across)
    for one in found:
        gap = math.log(groups[-1][-1].gbps / one.gbps) * across[0] if groups else math.inf
        if gap * math.cos(tilt) < APART:
            groups[-1].append(one)
        else:
            groups.append([one])
    drawn = []
    for group in groups:
        slope = group[0].gbps / 1e3
        x = max(left * (right / left) ** 0.02, low * (high / low) ** 0.03 / slope)
        text = " · ".join(named(one) for one in group)
        drawn.append(_along(axes, x, slope, tilt, text))
    return drawn


def _along(axes: Axes, x: float, slope: float, tilt: float, text: str) -> labels.Pixels:
    along = np.array([math.cos(tilt), math.sin(tilt)])
    offset = 4.5 * np.array([-along[1], along[0]])
    start = axes.transData.transform((x, x * slope))
    axes.annotate(
        text, (x, x * slope), xytext=tuple(offset * POINTS_PER_PIXEL), textcoords="offset points",
        rotation=math.degrees(tilt), rotation_mode="anchor", fontsize=SMALL, zorder=5,
    )  # fmt: skip
    length = text_size(figure_of(axes), text, SMALL)[0]
    begin = start + 1.8 * offset
    return labels.sample(np.array([begin, begin + length * along]))


def _label_horizontals(axes: Axes, found: Sequence[Ceiling]) -> None:
    """Write the horizontals' names outside, right of their ends, apart from each other."""
    right = axes.get_xlim()[1]
    low, high = axes.get_window_extent().y0, axes.get_window_extent().y1 + 20
    ends = [float(axes.transData.transform((right, one.rate))[1]) for one in found]
    for one, end, y in zip(found, ends, labels.spread(ends, 15, low, high), strict=True):
        axes.annotate(
            named(one),
            (right, one.rate),
            xytext=(16 * POINTS_PER_PIXEL, (y - end) * POINTS_PER_PIXEL),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            arrowprops={**LEADER, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def _ridges(ceilings: Sequence[Ceiling]) -> list[tuple[float, Ceiling]]:
    """Return where the memory's roof meets the tensor cores', measured or else the datasheet's."""
    memory = roof(ceilings, "memory")
    tensors = [c for c in horizontals(ceilings) if c.kind == "tensor"]
    tensors = [c for c in tensors if c.source == "measured"] or tensors
    if memory is None:
        return []
    found: list[tuple[float, Ceiling]] = []
    for tensor in sorted(tensors, key=lambda c: -c.rate):
        x = ridge(memory, tensor)
        if not found or found[-1][0] > x * RIDGES_APART:
            found.append((x, tensor))
    return found[::-1]


def _draw_ridges(axes: Axes, ceilings: Sequence[Ceiling]) -> list[labels.Pixels]:
    """Mark every ridge; write its FLOP per byte above the frame, apart from the others'."""
    found = _ridges(ceilings)
    low, drawn = axes.get_ylim()[0], []
    box = axes.get_window_extent()
    texts = [f"ridge {x:.0f} FLOP/B" for x, _ in found]
    widths = [text_size(figure_of(axes), text, SMALL)[0] for text in texts]
    centres = [float(axes.transData.transform((x, 1.0))[0]) for x, _ in found]
    gap = max((a + b) / 2 + 10 for a, b in pairwise(widths)) if len(widths) > 1 else 0.0
    places = labels.spread(centres, gap, box.x0, box.x1)
    for (x, tensor), text, place in zip(found, texts, places, strict=True):
        axes.plot((x, x), (low, tensor.rate), color=INK, linestyle=":", linewidth=0.9, alpha=0.6)
        axes.plot(x, tensor.rate, marker="o", markersize=4, color=INK, zorder=3)
        at = axes.transData.inverted().transform((place, box.y1 + ABOVE))
        axes.annotate(
            text, (x, tensor.rate), xytext=tuple(at), textcoords="data", ha="center", va="bottom",
            fontsize=SMALL, annotation_clip=False,
            arrowprops={**LEADER, "relpos": (0.5, 0)},
        )  # fmt: skip
        drawn.append(labels.sample(axes.transData.transform([(x, low), (x, tensor.rate)])))
    return drawn


def figure_of(axes: Axes) -> Figure:
    """Return the figure that axes are in."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure
