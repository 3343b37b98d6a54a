"""Where the texts of a figure are, turned ones as well, and which of them touch."""

import itertools

import numpy as np
from matplotlib.text import Text


def texts(figure):
    """Return every text of a figure, legends included."""
    return [text.get_text() for text in _shown(figure)]


def _shown(figure):
    found = [*figure.texts]
    for axes in figure.axes:
        found += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        found += [label for axis in (axes.xaxis, axes.yaxis) for label in _ticks(axis)]
    for legend in figure.legends:
        found += legend.get_texts()
    return [text for text in found if text.get_text() and text.get_visible()]


def _ticks(axis):
    """Return the labels of both sides of the ticks in view; beyond it none is drawn."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [label for tick in ticks for label in (tick.label1, tick.label2)]


def polygons(figure):
    """Return (text, [4, 2] corners in pixels) of every text that is drawn."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    return [(text.get_text(), _corners(text, renderer)) for text in _shown(figure)]


def _corners(text, renderer):
    # an annotation's own extent has its arrow in it; asking for that one places its text
    text.get_window_extent(renderer)
    angle = text.get_rotation()
    if text.get_rotation_mode() != "anchor":
        return _rectangle(Text.get_window_extent(text, renderer))
    anchor = text.get_transform().transform(text.get_position())
    text.set_rotation(0)
    flat = _rectangle(Text.get_window_extent(text, renderer))
    text.set_rotation(angle)
    sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    return (flat - anchor) @ np.array([[cosine, sine], [-sine, cosine]]) + anchor


def _rectangle(box):
    return np.array([(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)])


def covering(boxes):
    """Return the pairs of texts that overlap."""
    pairs = itertools.combinations(boxes, 2)
    return [(a, b) for (a, first), (b, second) in pairs if _overlap(first, second)]


def _overlap(first, second, slack=0.5):
    """Return whether two rectangles overlap: no side of either one separates them."""
    for corners in (first, second):
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            normal = np.array([end[1] - start[1], start[0] - end[0]])
            normal = normal / np.hypot(*normal)
            a, b = first @ normal, second @ normal
            if a.max() <= b.min() + slack or b.max() <= a.min() + slack:
                return False
    return True


def outside(figure, boxes):
    """Return the texts that the figure's edge cuts."""
    low, high = figure.bbox.min - 0.5, figure.bbox.max + 0.5
    return [text for text, corners in boxes if (corners < low).any() or (corners > high).any()]
