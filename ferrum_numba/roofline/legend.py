"""What lines, colours and marks of the roofline mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.lines import Line2D

from ferrum_numba.roofline.ceilings import Ceiling, bands
from ferrum_numba.roofline.points import Point, natural, titled
from ferrum_numba.roofline.style import DASHES, INK

# more shapes than this cannot be told apart by their dashes
MAX_SHAPES = 2 * len(DASHES)
# what binds a problem -> its marker, and in words
LIMITS = {
    "memory": ("o", "memory binds"),
    "tensor": ("s", "tensor cores bind"),
    "unpack": ("D", "unpacking binds"),
    "latency": ("^", "the launch binds (bound below 5 µs)"),
    "unknown": ("P", "what binds is unknown"),
}


def design_entries(points: Sequence[Point], colours: dict[str, str]) -> list[Line2D]:
    """Return which colour each design has."""
    names = sorted({p.kernel for p in points if not p.modelled})
    return [Line2D([], [], color=colours[name], lw=2.5, label=name) for name in names]


def shape_entries(points: Sequence[Point]) -> list[Line2D]:
    """Return which line each shape has."""
    shapes = sorted({p.shape for p in points if not p.modelled}, key=natural)
    if len(shapes) > MAX_SHAPES:
        shapes = [f"one line a shape ({len(shapes)} shapes)"]
    return [
        Line2D([], [], color=INK, linestyle=DASHES[i % len(DASHES)], lw=0.9, label=titled(shape))
        for i, shape in enumerate(shapes)
    ]


def limit_entries(points: Sequence[Point]) -> list[Line2D]:
    """Return which marker each limit has that binds some point."""
    there = {p.limit for p in points if not p.modelled}
    return [_sign(mark, words) for limit, (mark, words) in LIMITS.items() if limit in there]


def sign_entries(
    points: Sequence[Point], ceilings: Sequence[Ceiling], arrows: bool
) -> list[Line2D]:
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
    if arrows:
        entries.append(_sign(".", "before; the arrow leads to now"))
    if any(p.traffic for p in points):
        entries.append(_sign("|", "at the traffic that was counted"))
    if any(p.doubt for p in points):
        entries.append(_sign("o", "hollow: failed or untrusted", markerfacecolor="none"))
    if any(p.modelled for p in points):
        entries.append(_sign("x", "modelled: the bound, not measured"))
    return entries


def _sign(marker: str, label: str, **style: Any) -> Line2D:
    return Line2D([], [], color=INK, marker=marker, linestyle="", label=label, **style)
