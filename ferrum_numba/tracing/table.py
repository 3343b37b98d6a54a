"""A trace as a table: a row a line, in cells of text."""

from __future__ import annotations

from collections.abc import Sequence

from ferrum_numba.interpreter import Line, Requests
from ferrum_numba.interpreter.trace.lines import GLOBAL, SHARED, total

COLUMNS = ("line", "source", "PTX", "sectors", "wavefronts", "waits", "lanes", "in flight")


def rows_of(lines: Sequence[Line]) -> list[dict[str, str]]:
    """Return the rows and one of all together: numbers of all warps, what is too much marked."""
    found = [
        {"line": line.place, "source": line.text, **_cells([line], line.lanes, line.in_flight)}
        for line in lines
    ]
    executed = sum(line.executed for line in lines)
    lanes = sum(line.on for line in lines) / executed if executed else 0.0
    sums = _cells(lines, lanes, max((line.in_flight for line in lines), default=0))
    return [*found, {"line": "total", "source": "", **sums}]


def _cells(lines: Sequence[Line], lanes: float, in_flight: int) -> dict[str, str]:
    waits = sum(line.waits for line in lines)
    return {
        "PTX": short(sum(line.instructions for line in lines)),
        "sectors": _of(total(lines, GLOBAL)),
        "wavefronts": _of(total(lines, SHARED)),
        "waits": short(waits) if waits else "",
        "lanes": f"{lanes:.3g}",
        "in flight": short(in_flight) if in_flight else "",
    }


def _of(requests: Requests) -> str:
    """Return what it was, and the least it could be where that is less: `64k/8192`."""
    if not requests.count:
        return ""
    if requests.units == requests.least:
        return short(requests.units)
    return f"{short(requests.units)}/{short(requests.least)}"


def short(number: int) -> str:
    """Return a number in at most five characters."""
    for factor, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= 10 * factor:
            return f"{number / factor:.3g}{unit}"
    return str(number)
