"""Which pictures an Op has, and what is drawn in each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ferrum_numba.report.advice import pieces_of
from ferrum_numba.report.beside import sources_of
from ferrum_numba.report.blocks import Paragraph, Picture
from ferrum_numba.report.data import Group, ceilings_of, slug
from ferrum_numba.report.runs import named
from ferrum_numba.report.sources import Facts, Key, Sources
from ferrum_numba.report.verdict import findings
from ferrum_numba.results import Row
from ferrum_numba.results.row import MEASURED, problem_key
from ferrum_numba.roofline.landscape import values_of
from ferrum_numba.roofline.points import Point, modelled_point, natural, shape_of, varying
from ferrum_numba.words import counted

# trajectories of a roofline that can still be told apart
MOST_LINES = 20
# what a landscape needs of one design to say anything
LEAST_CONFIGS = 8


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def pictures(group: Group, sources: Sources, name: str) -> list[Picture]:
    """Return an Op's pictures; only those that have something to show.

    name: that file names start with, of this group alone
    """
    found = [
        _roofline(group), _time(group), _fraction(group), _experts(group), _waterfall(group),
        _landscape(group, sources.defaults),
    ]  # fmt: skip
    return [
        Picture(f"{name}-{kind}", f"{title}: {group.title}", kind, plain(data), of)
        for kind, title, data, of in filter(None, found)
    ]


Drawn = tuple[str, str, dict[str, Any], str] | None


def _listed(group: Group, points: Iterable[Point]) -> list[dict[str, Any]]:
    """Return points with what a reader of the data wants besides: rates, board and commit."""
    found = []
    for p in points:
        run = group.runs.get(p.run)
        more = {"intensity": p.intensity, "tflops": p.tflops, "fraction": p.fraction}
        origin = {"board": run and run.board, "commit": run and run.commit}
        found.append({**asdict(p), **more, **origin})
    return found


def _of(group: Group, points: Sequence[Point]) -> str:
    return named((p.run for p in points), group.runs)


def _roofline(group: Group) -> Drawn:
    shapes = _some_shapes(group)
    points = [p for p in group.points if p.shape in shapes]
    if not points and not group.ceilings:
        return None
    data = {
        "designs": group.designs,
        "points": _listed(group, points),
        "ceilings": [asdict(c) for c in group.ceilings],
    }
    every = len({p.shape for p in group.points})
    some = (
        "" if len(shapes) == every else f" ({len(shapes)} of {every} shapes, those most measured)"
    )
    run = next((group.runs.get(c.date) for c in group.ceilings if c.date), None)
    roofs = f"; ceilings: board {run.board}, {run.date}, commit {run.commit}" if run else ""
    return "roofline", f"Roofline{some}", data, _of(group, points) + roofs


def _some_shapes(group: Group) -> frozenset[str]:
    """Return the shapes with the most sizes, as many as lines can be told apart."""
    sizes: dict[str, set[int | None]] = {}
    for p in group.points:
        sizes.setdefault(p.shape, set()).add(p.size)
    ordered = sorted(sizes, key=lambda shape: (-len(sizes[shape]), natural(shape)))
    return frozenset(ordered[: max(1, MOST_LINES // max(1, len(group.designs)))])


def _time(group: Group) -> Drawn:
    points = [p for p in group.points if p.size is not None]
    if not points:
        return None
    data = {
        "designs": group.designs,
        "points": _listed(group, points),
        "peers": [asdict(p) for p in group.peers],
    }
    of = _of(group, points)
    beside = sources_of(group.peers)
    title = f"Time per call against {group.size_name}"
    return "time", title, data, f"{of}; {beside}" if beside else of


def _fraction(group: Group) -> Drawn:
    points = [p for p in group.points if p.fraction is not None]
    if not points:
        return None
    data = {"designs": group.designs, "points": _listed(group, points)}
    return "fraction", "Per cent of the bound, fastest design", data, _of(group, points)


def _experts(group: Group) -> Drawn:
    points = [p for p in group.points if p.hit is not None and p.size is not None and p.bound_us]
    if not points:
        return None
    data = {
        "designs": group.designs,
        "points": _listed(group, points),
        "peers": [asdict(p) for p in group.peers],
    }
    of = _of(group, points)
    beside = sources_of(group.peers)
    title = "Layers of experts: per cent of the bound over tokens"
    return "experts", title, data, f"{of}; {beside}" if beside else of


def _waterfall(group: Group) -> Drawn:
    """Return the pieces of the row that is furthest from its bound, for each limit."""
    rows = [finding.worst[1] for finding in findings(group)]
    pieces = [
        {"of": f"{group.name(row.problem)}: {row.kernel}", "all_us": row.us, **asdict(piece)}
        for row in rows
        for piece in pieces_of(group, row)
    ]
    if not pieces:
        return None
    title = "Where the time goes, furthest from the bound for each limit (modelled)"
    return "waterfall", title, {"pieces": pieces}, group.of(rows)


def searched(group: Group) -> dict[str, list[Row]]:
    """Return each design's rows of problems on which several of its configs were timed."""
    timed: dict[tuple[str, Key], list[Row]] = {}
    for row in group.rows:
        if row.status == MEASURED and row.ok and not row.untrusted:
            timed.setdefault((row.kernel, problem_key(row.problem)), []).append(row)
    found: dict[str, list[Row]] = {name: [] for name in group.designs}
    for (kernel, _), rows in timed.items():
        found[kernel] += rows if len(rows) > 1 else ()
    return found


def unsearched(group: Group) -> list[Paragraph]:
    """Return which designs have no landscape and why, a line a reason."""
    reasons: dict[str, list[str]] = {}
    for name, rows in searched(group).items():
        if len(rows) < LEAST_CONFIGS:
            few = f"only {counted(len(rows), 'row')} of problems with several configs"
            reasons.setdefault(few if rows else "one config a problem is stored", []).append(name)
    return [
        Paragraph(f"left out for {', '.join(names)}: {reason}.", "Tuning landscape:")
        for reason, names in reasons.items()
    ]


def _landscape(group: Group, defaults: Mapping[tuple[str, Key], Facts]) -> Drawn:
    values, used = [], []
    for kernel, rows in searched(group).items():
        if len(rows) < LEAST_CONFIGS:
            continue
        keys = {problem_key(row.problem) for row in rows}
        best = {key: group.best[kernel, key] for key in keys if (kernel, key) in group.best}
        known = [defaults[kernel, key] for key in sorted(keys) if (kernel, key) in defaults]
        ratios = [
            (row.config, row.us / found.us, row is found)
            for row in rows
            if (found := best.get(problem_key(row.problem))) is not None
        ]
        values += values_of(kernel, ratios, known)
        used += rows
    if not values:
        return None
    data = {"designs": group.designs, "values": [asdict(value) for value in values]}
    title = "What each parameter makes of the time, over all configs measured"
    return "landscape", title, data, group.of(used)


def modelled_points(sources: Sources) -> list[Point]:
    """Return the bound of every problem of the plan, once."""
    rows = {(row.op, problem_key(row.problem)): row for row in sources.plan}
    shown = varying([row.problem for row in rows.values()])
    return [modelled_point(row, shape_of(row.problem, shown)) for row in rows.values()]


def modelled_roofline(sources: Sources) -> list[Picture]:
    """Return the roofline of the plan, all modelled, for where nothing was measured."""
    points = modelled_points(sources)
    if not points or not sources.gpu:
        return []
    title = f"Roofline (modelled, nothing measured): {sources.gpu['name']}"
    data = {
        "designs": [],
        "points": [asdict(p) for p in points],
        "ceilings": [asdict(c) for c in ceilings_of(sources.gpu)],
    }
    return [Picture("roofline", title, "roofline", plain(data), "nothing that was measured")]


def file_names(found: Sequence[Group]) -> list[str]:
    """Return a start of file names for each group: its Op's, and what tells it from others'."""
    ops = [group.op for group in found]
    names = []
    for group in found:
        words = [group.op]
        if ops.count(group.op) > 1:
            words += [group.gpu, group.regime]
        names.append(slug(" ".join(words)))
    return names
