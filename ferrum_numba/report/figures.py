"""The report's pictures, drawn from boards, or from a plan where nothing was measured."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ferrum_numba.report.blocks import Picture
from ferrum_numba.report.data import Board, Sources, ceilings_of, slug
from ferrum_numba.results.row import problem_key
from ferrum_numba.roofline.model import Point, modelled_point, shape_of, varying
from ferrum_numba.roofline.panels import fraction_figure, time_figure
from ferrum_numba.roofline.plot import roofline_figure
from ferrum_numba.roofline.style import to_png, to_svg


def _picture(figure: Figure, name: str, title: str) -> Picture:
    return Picture(name, title, to_svg(figure, name, title), to_png(figure))


def names(found: Sequence[Board], kind: str) -> list[str]:
    """Return a file name for each board's figure of a kind: the first board has the plain one."""
    return [
        kind if i == 0 else f"{kind}-{i + 1}-{slug(f'{board.op} {board.regime}')}"
        for i, board in enumerate(found)
    ]


def rooflines(sources: Sources, found: Sequence[Board]) -> list[Picture]:
    """Return each board's roofline; that of the plan, all modelled, where nothing was measured."""
    if not found:
        return _modelled_roofline(sources)
    pictures = []
    for board, name in zip(found, names(found, "roofline"), strict=True):
        title = f"Roofline: {board.title}"
        figure = roofline_figure(board.points, board.ceilings, title)
        pictures.append(_picture(figure, name, title))
    return pictures


def modelled_points(sources: Sources) -> list[Point]:
    """Return the bound of every problem of the plan, once."""
    rows = {(row.op, problem_key(row.problem)): row for row in sources.plan}
    shown = varying([row.problem for row in rows.values()])
    return [modelled_point(row, shape_of(row.problem, shown)) for row in rows.values()]


def _modelled_roofline(sources: Sources) -> list[Picture]:
    points = modelled_points(sources)
    if not points or not sources.gpu:
        return []
    title = f"Roofline (modelled, nothing measured): {sources.gpu['name']}"
    figure = roofline_figure(points, ceilings_of(sources.gpu), title)
    return [_picture(figure, "roofline", title)]


def times(found: Sequence[Board]) -> list[Picture]:
    """Return time against M of every board that has sizes."""
    pictures = []
    for board, name in zip(found, names(found, "time"), strict=True):
        if any(p.size is not None for p in board.points):
            title = f"Time per call against {board.size_name}: {board.title}"
            figure = time_figure(board.points, board.peers, board.ceilings, title)
            pictures.append(_picture(figure, name, title))
    return pictures


def fractions(found: Sequence[Board]) -> list[Picture]:
    """Return the fraction of the bound of every board that has bounds."""
    pictures = []
    for board, name in zip(found, names(found, "fraction"), strict=True):
        if any(p.fraction is not None for p in board.points):
            title = f"Fraction of the bound: {board.title}"
            note = f"{title} (bold: fastest kernel, ×: failed or untrusted)"
            pictures.append(_picture(fraction_figure(board.points, note), name, title))
    return pictures
