"""What has become faster or slower, as arrows on the roofline: from what was to what is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from ferrum_numba.report.blocks import Picture
from ferrum_numba.report.pictures import plain
from ferrum_numba.results import Row
from ferrum_numba.roofline.ceilings import Ceiling
from ferrum_numba.roofline.points import point, shape_of, varying


def arrows(
    name: str,
    title: str,
    pairs: Sequence[tuple[Row, Row]],
    roofs: Callable[[Row], Sequence[Ceiling]],
    ceilings: Sequence[Ceiling],
    designs: Sequence[str] = (),
    of: str = "",
) -> Picture | None:
    """Return the picture of some pairs, the old first; None where none can be drawn.

    roofs:    the ceilings of the board that a row is of
    ceilings: what is drawn
    designs:  whose colours are those of other pictures
    """
    shown = varying([row.problem for pair in pairs for row in pair])
    found = [
        [point(row, shape_of(row.problem, shown), roofs(row)) for row in pair] for pair in pairs
    ]
    drawn = [(old, new) for old, new in found if old is not None and new is not None]
    if not drawn:
        return None
    data = {
        "designs": [*designs],
        "points": [asdict(new) for _, new in drawn],
        "before": [asdict(old) for old, _ in drawn],
        "ceilings": [asdict(one) for one in ceilings],
    }
    return Picture(name, title, "arrows", plain(data), of)
