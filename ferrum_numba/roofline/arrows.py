"""Arrows from where points were before to where they are now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from ferrum_numba.roofline import labels
from ferrum_numba.roofline.points import Point

# of an arrow's head, px
HEAD = 9.0


def draw_arrows(
    axes: Axes, before: Sequence[Point], now: Sequence[Point], colours: Mapping[str, str]
) -> list[labels.Pixels]:
    """Draw an arrow for each pair, in the colour of what it leads to; return the pixels taken."""
    taken = []
    for old, new in zip(before, now, strict=True):
        start, end = (old.intensity, old.tflops), (new.intensity, new.tflops)
        axes.plot(*start, ".", color=colours[old.kernel], markersize=5, zorder=3)
        style = {
            "arrowstyle": "-|>", "color": colours[new.kernel], "linewidth": 1.0, "shrinkA": 0,
            "shrinkB": 2, "mutation_scale": HEAD,
        }  # fmt: skip
        axes.annotate("", end, start, arrowprops=style, zorder=3)
        taken.append(labels.sample(axes.transData.transform([start, end])))
    return taken
