"""Where to put labels so that none covers another, a marker or a line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]
GAP = 6.0


def _candidates(top: Sequence[float], bottom: Sequence[float], w: float, h: float) -> list[Box]:
    """Return boxes below the bottom anchor, above the top one and beside both, best first."""
    corners = []
    for gap in (GAP, 2.2 * GAP, 4 * GAP, 6 * GAP):
        corners += [(bottom[0] - w / 2, bottom[1] - gap - h), (top[0] - w / 2, top[1] + gap)]
        for x, y in (bottom, top):
            corners += [(x + gap, y - gap / 2 - h), (x - gap - w, y + gap / 2)]
            corners += [(x + gap, y - h / 2), (x - gap - w, y - h / 2)]
            corners += [(x + gap, y + gap / 2), (x - gap - w, y - gap / 2 - h)]
    return [(x, y, x + w, y + h) for x, y in corners]


def leader(box: Box, anchors: Sequence[Sequence[float]]) -> Pixels | None:
    """Return a line from a label's edge to the nearer anchor, or None if they touch anyway."""
    ends = []
    for x, y in anchors:
        edge = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
        ends.append(np.array([edge, (x, y)]))
    line = min(ends, key=lambda end: float(np.hypot(*(end[1] - end[0]))))
    return line if np.hypot(*(line[1] - line[0])) > 1.6 * GAP else None


def _overlaps(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _covers(box: Box, obstacles: Pixels, pad: float = 2.5) -> bool:
    x, y = obstacles[:, 0], obstacles[:, 1]
    inside = (x > box[0] - pad) & (x < box[2] + pad) & (y > box[1] - pad) & (y < box[3] + pad)
    return bool(inside.any())


def place(
    anchors: Sequence[tuple[Sequence[float], Sequence[float]]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Pixels,
    bounds: Box,
) -> list[Box | None]:
    """Place each label at the first free spot near its anchors; None where there is none.

    anchors:   (top, bottom) of what a label names, pixels
    sizes:     (width, height) of the labels, pixels
    obstacles: [n, 2] pixels that no label may cover: markers, and lines sampled densely
    bounds:    box that labels must stay in
    """
    placed: list[Box | None] = []
    for (top, bottom), (w, h) in zip(anchors, sizes, strict=True):
        free = None
        for box in _candidates(top, bottom, w, h):
            inside = box[0] >= bounds[0] and box[1] >= bounds[1]
            inside = inside and box[2] <= bounds[2] and box[3] <= bounds[3]
            taken = any(other is not None and _overlaps(box, other) for other in placed)
            if inside and not taken and not _covers(box, obstacles):
                free = box
                break
        placed.append(free)
    return placed


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart to at least `gap`, in order, as little as needed, within [low, high]."""
    order = np.argsort(np.asarray(positions, dtype=np.float64), kind="stable")
    moved = np.asarray(positions, dtype=np.float64)[order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    if len(moved) and moved[-1] > high:
        moved[-1] = high
        for i in range(len(moved) - 2, -1, -1):
            moved[i] = min(moved[i], moved[i + 1] - gap)
    result = np.empty_like(moved)
    result[order] = np.maximum(moved, low)
    return [float(y) for y in result]


def sample(points: Pixels, step: float = 3.0) -> Pixels:
    """Return a polyline as pixels at most `step` apart.

    points: [n, 2] corners, pixels
    """
    pieces = [points]
    for start, end in pairwise(points):
        count = max(2, int(np.hypot(*(end - start)) / step))
        pieces.append(start + np.linspace(0.0, 1.0, count)[:, None] * (end - start))
    return np.concatenate(pieces)
