"""Where the time of one kernel goes: what its units need, and what comes on top; modelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ferrum_numba.roofline.bound import TERM_WORDS, Piece
from ferrum_numba.roofline.panels import WIDTH
from ferrum_numba.roofline.style import COLOURS, INK, RC, SMALL, new_figure

BAR, GAP = 0.23, 0.62
OVERLAPPING = frozenset(TERM_WORDS.values())
# in px for a text to stand beside its bar
LETTERS = 62


@dataclass(frozen=True)
class Fall:
    """One kernel on one problem, in pieces.

    name:   what it is
    us:     measured
    pieces: modelled, but for the rest
    """

    name: str
    us: float
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, found: Mapping[str, object]) -> Fall:
        """Return what `dataclasses.asdict` made a mapping."""
        pieces = found["pieces"]
        assert isinstance(pieces, Sequence)
        return cls(str(found["name"]), float(str(found["us"])), tuple(Piece(**p) for p in pieces))


def waterfall_figure(falls: Sequence[Fall], title: str) -> Figure:
    """Return a panel a kernel: bars of the overlapping terms, then of what comes on top."""
    heights = [GAP + BAR * (len(fall.pieces) + 1) for fall in falls]
    height = 0.5 + sum(heights) + 0.25
    with matplotlib.rc_context(RC):
        figure = new_figure(WIDTH, height)
        figure.text(0.03, 1 - 0.25 / height, title, fontsize=10)
        top = height - 0.45
        for fall, own in zip(falls, heights, strict=True):
            box = (0.17, (top - own + 0.3) / height, 0.46, (own - GAP + 0.05) / height)
            _panel(figure.add_axes(box), fall)
            top -= own
    return figure


def _panel(axes: Axes, fall: Fall) -> None:
    axes.set_title(f"{fall.name}, µs", loc="left", fontsize=9)
    longest = max(p.us for p in fall.pieces if p.name in OVERLAPPING)
    end = max(fall.us, sum(max(p.us, 0.0) for p in fall.pieces if p.name not in OVERLAPPING))
    end = max(end, longest)
    start, count = longest, len(fall.pieces) + 1
    for y, piece in enumerate(fall.pieces):
        overlaps = piece.name in OVERLAPPING
        left = 0.0 if overlaps else start
        if not overlaps:
            start += piece.us
        _bar(axes, y, left, piece, binds=overlaps and piece.us == longest)
        axes.text(
            1.02, y, piece.why[:LETTERS], va="center", fontsize=SMALL,
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    axes.barh(count - 1, fall.us, height=0.7, color=INK, alpha=0.8)
    axes.text(
        1.02, count - 1, f"{fall.us:.4g} µs measured", va="center", fontsize=SMALL,
        transform=axes.get_yaxis_transform(),
    )  # fmt: skip
    names = [p.name if p.name == "rest" else f"{p.name} (modelled)" for p in fall.pieces]
    axes.set_yticks(range(count), [*names, "all"], fontsize=SMALL)
    axes.set(xlim=(0, end * 1.02), ylim=(count - 0.5, -0.5))
    axes.grid(True, axis="x")


def _bar(axes: Axes, y: int, left: float, piece: Piece, *, binds: bool) -> None:
    if piece.name in OVERLAPPING:
        alpha = 0.95 if binds else 0.35
        axes.barh(y, piece.us, height=0.7, color=COLOURS[0], alpha=alpha)
        return
    colour = COLOURS[4] if piece.name == "rest" else COLOURS[1]
    low = min(left, left + piece.us)
    axes.barh(y, abs(piece.us), left=low, height=0.7, color=colour, alpha=0.9)
