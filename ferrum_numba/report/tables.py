"""The tables of measured results: every problem, the losers, the ceilings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ferrum_numba.report.blocks import Emphasis, Table, pairs, significant
from ferrum_numba.report.data import Board, Machine, peer_of
from ferrum_numba.results import Row, size_of
from ferrum_numba.results.row import MEASURED, problem_key
from ferrum_numba.roofline.model import (
    Ceiling,
    doubt,
    natural,
    ridge,
    roof,
    titled,
)

TIME_COLUMNS = (
    "kernel", "µs [low, high]", "verdict", "bound µs", "fraction", "GB/s", "TFLOP/s",
)  # fmt: skip
PEER_COLUMNS = ("best 4-bit peer µs", "peer / ours", "fp16 peer µs", "fp16 / ours")
RESOURCE_COLUMNS = ("rel error", "registers", "smem KB", "blocks/SM", "config")
SLOW = 1.5


def problem_tables(board: Board) -> list[Table]:
    """Return a table a shape: every kernel's best config on every size, peers beside."""
    shapes: dict[str, list[Mapping[str, Any]]] = {}
    for problem in board.problems:
        shapes.setdefault(board.shape(problem), []).append(problem)
    return [_shape_table(board, shape, shapes[shape]) for shape in sorted(shapes, key=natural)]


def _shape_table(board: Board, shape: str, problems: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[tuple[str, ...]] = []
    emphasis: list[Emphasis] = []
    for problem in sorted(problems, key=lambda p: size_of(p) or 0):
        key = problem_key(problem)
        found = sorted(
            (row for (_, other), row in board.best.items() if other == key), key=lambda r: r.us
        )
        for row in found:
            place = board.standing(row)
            rows.append(_times(board, row) + _beside(board, row) + _resources(row))
            emphasis.append("" if place == "slower" else place)
        if not found:
            rows.append(_no_result(board, problem))
            emphasis.append("bad")
    title = f"{titled(shape)}, {board.op}"
    columns, units = _columns(board), _units(board)
    return Table(title, board.regime, units, columns, tuple(rows), tuple(emphasis))


def _units(board: Board) -> str:
    units = (
        "µs per call (median [low, high] of the interval), GB/s of compulsory bytes, TFLOP/s, "
        "KB of 1024 bytes; fraction = bound / time"
    )
    sources = sorted({f"{p.date}, {p.source}" for p in board.peers})
    return units + (f"; peers' µs: {'; '.join(sources)}" if sources else "")


def _columns(board: Board) -> tuple[str, ...]:
    return (
        (board.size_name, *TIME_COLUMNS) + (PEER_COLUMNS if board.peers else ()) + RESOURCE_COLUMNS
    )


def _times(board: Board, row: Row) -> tuple[str, ...]:
    size, place = size_of(row.problem), board.standing(row)
    winner = board.winners[problem_key(row.problem)].row
    return (
        "" if size is None else str(size),
        row.kernel,
        interval(row),
        f"{row.us / winner.us:.2f}× slower" if place == "slower" else place,
        significant(row.bound_us),
        significant(row.fraction, 3),
        significant(row.gbps),
        significant(row.tflops),
    )


def _resources(row: Row) -> tuple[str, ...]:
    smem = row.smem_bytes
    return (
        scientific(row.rel_error),
        whole(row.registers),
        "" if smem is None else significant(smem / 1024, 3),
        whole(row.blocks_per_sm),
        pairs(row.config),
    )


def _no_result(board: Board, problem: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the row of a problem that nothing could be believed on."""
    key, size = problem_key(problem), size_of(problem)
    tried = sum(problem_key(row.problem) == key for row in board.rows)
    cells = dict.fromkeys(_columns(board), "")
    cells[board.size_name] = "" if size is None else str(size)
    cells |= {"kernel": "none", "verdict": f"no trusted result of {tried} rows"}
    return tuple(cells.values())


def _beside(board: Board, row: Row) -> tuple[str, ...]:
    if not board.peers:
        return ()
    cells: list[str] = []
    for kind in ("4-bit", "fp16"):
        peer = peer_of(board, row.problem, kind)
        if peer is None:
            cells += ["", ""]
        else:
            cells += [f"{significant(peer.us)} {peer.name}", f"{peer.us / row.us:.2f}×"]
    return tuple(cells)


def interval(row: Row) -> str:
    """Return a time with its interval."""
    if math.isnan(row.us_low) or math.isnan(row.us_high):
        return significant(row.us)
    return f"{significant(row.us)} [{significant(row.us_low)}, {significant(row.us_high)}]"


def scientific(value: float | None) -> str:
    """Return an error in two digits; what is infinite in words, and nothing for what is unknown."""
    return "" if value is None or math.isnan(value) else f"{value:.1e}"


def whole(value: int | None) -> str:
    """Return a count, or nothing for None."""
    return "" if value is None else str(value)


def failure_table(board: Board) -> Table:
    """Return what did not count, grouped by kernel, status and reason."""
    groups: dict[tuple[str, str, str], list[tuple[str, Row]]] = {}
    for row in board.rows:
        reason = doubt(row, board.ceilings)
        if row.status == "slow" or not reason:
            continue
        status = "untrusted" if row.status == MEASURED else row.status
        # the same reason with other numbers is the same reason
        pattern = re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", reason)
        groups.setdefault((row.kernel, status, pattern), []).append((reason, row))
    rows = []
    for (kernel, status, _), found in sorted(groups.items(), key=lambda g: (-len(g[1]), g[0])):
        reason, row = found[0]
        count = str(len(found))
        rows.append((kernel, status, count, reason, pairs(row.problem), pairs(row.config)))
    columns = ("kernel", "status", "rows", "reason (of the first)", "problem", "config")
    title = f"Refused, failed, wrong or untrusted: {board.op}"
    return Table(title, board.regime, "number of rows", columns, tuple(rows))


def slow_table(board: Board) -> Table:
    """Return how many correct configs were how far behind the best one of their problem."""
    ratios: dict[str, list[float]] = {}
    dropped: dict[str, int] = {}
    for row in board.rows:
        winner = board.winners.get(problem_key(row.problem))
        if row.status == "slow":
            dropped[row.kernel] = dropped.get(row.kernel, 0) + 1
        elif winner is not None and not math.isnan(row.us) and not doubt(row, board.ceilings):
            ratios.setdefault(row.kernel, []).append(row.us / winner.row.us)
    rows = []
    for kernel in sorted({*ratios, *dropped}):
        own = ratios.get(kernel, [])
        ties = sum(ratio <= 1.01 for ratio in own)
        slow = sum(ratio > SLOW for ratio in own)
        worst = f"{max(own):.2f}×" if own else ""
        counts = (len(own), ties, slow, dropped.get(kernel, 0))
        rows.append((kernel, *map(str, counts), worst))
    columns = (
        "kernel", "timed in full", "within 1 % of the best", f"more than {SLOW}× slower",
        "dropped after a quick look", "slowest",
    )  # fmt: skip
    units = "number of rows (a config on a problem); slowest: time / best time of the problem"
    return Table(f"Correct and slow: {board.op}", board.regime, units, columns, tuple(rows))


def ceiling_table(machine: Machine) -> Table:
    """Return the ceilings, measured beside datasheet."""
    sheet = {c.kind: c for c in machine.ceilings if c.source == "datasheet"}
    measured = [c for c in machine.ceilings if c.source == "measured"]
    rows = [_ceiling_row(ceiling, sheet.get(ceiling.kind)) for ceiling in measured]
    kinds = {ceiling.kind for ceiling in measured}
    rows += [
        (c.name, "", c.unit, significant(c.rate), "", "")
        for c in sheet.values()
        if c.kind not in kinds
    ]
    columns = (
        "ceiling",
        "measured [low, high]",
        "unit",
        "datasheet",
        "measured / datasheet",
        "regime",
    )
    units = (
        "GB/s = 10^9 bytes/s, TFLOP/s = 10^12 FLOP/s, weights/s = int4 weights unpacked, "
        "µs per launch" + _ridge_words(machine.ceilings)
    )
    regimes = ", ".join(sorted({c.regime for c in measured if c.regime})) or "none measured"
    return Table(f"Ceilings of {machine.gpu}", regimes, units, columns, tuple(rows))


def _ceiling_row(ceiling: Ceiling, sheet: Ceiling | None) -> tuple[str, ...]:
    low, high = significant(ceiling.low), significant(ceiling.high)
    rate = f"{significant(ceiling.rate)} [{low}, {high}]"
    against = ("", "")
    if sheet is not None:
        against = (significant(sheet.rate), f"{ceiling.rate / sheet.rate:.3f}")
    unit = "µs" if ceiling.unit == "us" else ceiling.unit
    return (ceiling.name, rate, unit, *against, ceiling.regime)


def _ridge_words(ceilings: Sequence[Ceiling]) -> str:
    memory = roof(ceilings, "memory")
    if memory is None:
        return ""
    words = [
        f"{ridge(memory, c):.4g} FLOP/B ({c.name} {c.text} / {memory.text}, {c.source})"
        for c in ceilings
        if c.kind == "tensor"
    ]
    return f"; ridge: {', '.join(words)}" if words else ""
