"""From a picture's data to its figure: the same data draws the same picture, without measuring."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from matplotlib.figure import Figure

from ferrum_numba.report.blocks import Picture
from ferrum_numba.roofline.ceilings import Ceiling
from ferrum_numba.roofline.experts import experts_figure
from ferrum_numba.roofline.heat import fraction_figure
from ferrum_numba.roofline.landscape import Value, landscape_figure
from ferrum_numba.roofline.plot import roofline_figure
from ferrum_numba.roofline.points import Peer, Point
from ferrum_numba.roofline.style import to_png, to_svg
from ferrum_numba.roofline.times import time_figure
from ferrum_numba.roofline.waterfall import Fall, waterfall_figure

Data = Mapping[str, Any]
T = TypeVar("T")


def _each(kind: type[T], data: Data, name: str) -> list[T]:
    """Return a list of the data as dataclasses, without what was added for readers."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    return [kind(**{n: one[n] for n in known if n in one}) for one in data.get(name, ())]


def _roofline(title: str, data: Data) -> Figure:
    points, ceilings = _each(Point, data, "points"), _each(Ceiling, data, "ceilings")
    return roofline_figure(points, ceilings, title, data["designs"])


def _arrows(title: str, data: Data) -> Figure:
    points, before = (_each(Point, data, name) for name in ("points", "before"))
    ceilings = _each(Ceiling, data, "ceilings")
    return roofline_figure(points, ceilings, title, data["designs"], before)


def _time(title: str, data: Data) -> Figure:
    points, peers = _each(Point, data, "points"), _each(Peer, data, "peers")
    return time_figure(points, peers, title, data["designs"])


def _fraction(title: str, data: Data) -> Figure:
    return fraction_figure(_each(Point, data, "points"), title, data["designs"])


def _landscape(title: str, data: Data) -> Figure:
    return landscape_figure(_each(Value, data, "values"), title, data["designs"])


def _waterfall(title: str, data: Data) -> Figure:
    falls: dict[str, dict[str, Any]] = {}
    for one in data["pieces"]:
        fall = falls.setdefault(one["of"], {"name": one["of"], "us": one["all_us"], "pieces": []})
        fall["pieces"].append({name: one[name] for name in ("name", "us", "why")})
    return waterfall_figure([Fall.of(fall) for fall in falls.values()], title)


def _experts(title: str, data: Data) -> Figure:
    points, peers = _each(Point, data, "points"), _each(Peer, data, "peers")
    return experts_figure(points, peers, title, data["designs"])


FIGURES: dict[str, Callable[[str, Data], Figure]] = {
    "roofline": _roofline,
    "time": _time,
    "fraction": _fraction,
    "landscape": _landscape,
    "waterfall": _waterfall,
    "experts": _experts,
    "arrows": _arrows,
}


def figure(picture: Picture) -> Figure:
    """Return a picture's figure."""
    return FIGURES[picture.kind](picture.title, picture.data)


class Drawer:
    """Draws pictures, each once as long as its data stay the same."""

    def __init__(self) -> None:
        self._drawn: dict[str, tuple[str, str, bytes]] = {}

    def draw(self, picture: Picture) -> tuple[str, bytes]:
        """Return a picture as an `<svg>` element and as PNG."""
        state = json.dumps([picture.kind, picture.title, picture.data])
        known = self._drawn.get(picture.name)
        if known is None or known[0] != state:
            drawn = figure(picture)
            svg = to_svg(drawn, picture.name, picture.title)
            known = self._drawn[picture.name] = (state, svg, to_png(drawn))
        return known[1:]


def as_csv(picture: Picture) -> str:
    """Return all that is drawn as CSV: a line an object, `list` saying of which list it is."""
    listed: list[tuple[str, Mapping[str, Any]]] = [
        (name, one) for name, found in picture.data.items() for one in _flat(found)
    ]
    columns = list(dict.fromkeys(column for _, one in listed for column in one))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["list", *columns])
    for name, one in listed:
        writer.writerow([name, *("" if one.get(c) is None else one[c] for c in columns)])
    return buffer.getvalue()


def _flat(found: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
    return [one if isinstance(one, Mapping) else {"name": one} for one in found]


def as_json(picture: Picture) -> str:
    """Return all that is drawn as JSON, from which the picture can be drawn again."""
    facts = {"schema": 1, "figure": picture.kind, "title": picture.title, "of": picture.of}
    return json.dumps({**facts, "data": picture.data}, indent=1, ensure_ascii=False) + "\n"
