"""The tables of measured results: every problem, every design, the losers, the ceilings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ferrum_numba.report.beside import peer_of, sources_of
from ferrum_numba.report.blocks import Emphasis, Table, pairs, per_cent, significant
from ferrum_numba.report.data import Group, Machine
from ferrum_numba.report.runs import Run
from ferrum_numba.results import Row, size_of
from ferrum_numba.results.row import MEASURED, problem_key
from ferrum_numba.roofline.bound import clocked
from ferrum_numba.roofline.ceilings import Ceiling, ridge, roof
from ferrum_numba.roofline.points import doubt, natural
from ferrum_numba.words import counted

KINDS = ("4-bit", "fp16")
LIMITS = {"memory": "memory", "tensor": "tensor", "unpack": "unpacking", "latency": "launch"}
SLOW = 1.5


def by_shape(group: Group) -> list[Mapping[str, Any]]:
    """Return a group's problems by shape, then size."""
    return sorted(group.problems, key=lambda p: (natural(group.shape(p)), size_of(p) or 0))


def fastest_table(group: Group) -> Table:
    """Return the fastest row of every problem, its bound, and the best peers beside."""
    rows: list[tuple[str, ...]] = []
    emphasis: list[Emphasis] = []
    columns = (
        "shape", group.size_name, "design", "µs [low, high]", "bound µs", "of the bound",
        "bound by", "TFLOP/s", "GB/s", *_peer_columns(group), "run",
    )  # fmt: skip
    for problem in by_shape(group):
        winner = group.winners.get(problem_key(problem))
        if winner is None:
            rows.append(_no_result(group, problem, columns))
            emphasis.append("bad")
        else:
            rows.append(_fastest(group, winner.row))
            emphasis.append("")
    units = (
        "µs per call (median [low, high] of the interval), GB/s of compulsory bytes; the bound is "
        "modelled, of the board's ceilings"
    )
    beside = sources_of(group.peers)
    units += f"; {beside}" if beside else ""
    of = group.of(winner.row for winner in group.winners.values())
    title = f"Fastest of each problem: {group.title}"
    return Table(title, group.regime, units, columns, tuple(rows), tuple(emphasis), of)


def _fastest(group: Group, row: Row) -> tuple[str, ...]:
    bound = group.bound(row)
    run = group.runs.get(row.run)
    return (
        group.shape(row.problem),
        _size(row.problem),
        row.kernel,
        interval(row),
        significant(bound.us) if bound else "",
        per_cent(bound.us / row.us) if bound else "",
        LIMITS.get(bound.limit, "") if bound else "",
        significant(row.tflops, 3),
        significant(row.gbps, 4),
        *_beside(group, row),
        str(run.number) if run else "",
    )


def _size(problem: Mapping[str, Any]) -> str:
    size = size_of(problem)
    return "" if size is None else str(size)


def _no_result(group: Group, problem: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    """Return the row of a problem that nothing could be believed on."""
    key = problem_key(problem)
    tried = sum(problem_key(row.problem) == key for row in group.rows)
    cells = dict.fromkeys(columns, "")
    cells |= {"shape": group.shape(problem), group.size_name: _size(problem)}
    cells |= {"design": f"no trusted result of {counted(tried, 'row')}"}
    return tuple(cells.values())


def _lone_peer(group: Group, kind: str) -> str:
    """Return the name of the one peer of a kind; nothing where there are several, or none."""
    names = {peer.name for peer in group.peers if peer.kind == kind}
    return names.pop() if len(names) == 1 else ""


def _peer_columns(group: Group) -> tuple[str, ...]:
    """Return a column for the best peer of a kind, and for its time over ours."""
    if not group.peers:
        return ()
    return tuple(
        column
        for kind in KINDS
        for column in (f"{_lone_peer(group, kind) or f'{kind} peer'} µs", f"{kind} / ours")
    )


def _beside(group: Group, row: Row) -> tuple[str, ...]:
    if not group.peers:
        return ()
    cells: list[str] = []
    for kind in KINDS:
        peer, lone = peer_of(group, row.problem, kind), _lone_peer(group, kind)
        if peer is None:
            cells += ["", ""]
        else:
            name = "" if lone else f" {peer.name}"
            cells += [significant(peer.us) + name, f"{peer.us / row.us:.2f}×"]
    return tuple(cells)


def design_table(group: Group) -> Table:
    """Return the best time of every design on every problem; ties with the fastest are marked."""
    designs = group.designs
    rows = []
    for problem in by_shape(group):
        key = problem_key(problem)
        cells = [_cell(group, group.best.get((design, key))) for design in designs]
        rows.append((group.shape(problem), _size(problem), *cells))
    units = "µs per call of each design's best config; * fastest, = not to be told from it"
    of = group.of(group.best.values())
    title = f"Every design: {group.title}"
    columns = ("shape", group.size_name, *designs)
    return Table(title, group.regime, units, columns, tuple(rows), of=of)


def _cell(group: Group, row: Row | None) -> str:
    if row is None:
        return ""
    mark = {"best": " *", "tie": " =", "slower": ""}[group.standing(row)]
    return significant(row.us) + mark


def config_table(group: Group) -> Table:
    """Return what won every problem: its config, what it takes of an SM, its error."""
    rows = []
    for problem in by_shape(group):
        winner = group.winners.get(problem_key(problem))
        if winner is not None:
            row = winner.row
            cells = (*_resources(row), _at_its_clock(group, row))
            rows.append((group.shape(problem), _size(problem), row.kernel, *cells))
    columns = (
        "shape", group.size_name, "design", "config", "registers", "smem KB", "blocks/SM",
        "rel error", "clock MHz", "power W", "of the bound at this clock",
    )  # fmt: skip
    units = "registers a thread, KB of 1024 bytes a block; clock at the end of the timing"
    of = group.of(winner.row for winner in group.winners.values())
    title = f"Configs of the fastest: {group.title}"
    return Table(title, group.regime, units, columns, tuple(rows), of=of, folded=True)


def _resources(row: Row) -> tuple[str, ...]:
    smem = row.smem_bytes
    return (
        pairs(row.config),
        whole(row.registers),
        "" if smem is None else significant(smem / 1024, 3),
        whole(row.blocks_per_sm),
        scientific(row.rel_error),
        significant(row.clock_mhz_after),
        significant(row.more.get("power_w"), 3),
    )


def _at_its_clock(group: Group, row: Row) -> str:
    """Return the part reached of the bound at the SM clock that the board held."""
    bound = group.bound(row)
    return per_cent(clocked(bound, row.clock_mhz_after) / row.us) if bound else ""


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


def failure_table(group: Group) -> Table:
    """Return what did not count, grouped by kernel, status and reason."""
    found: dict[tuple[str, str, str], list[tuple[str, Row]]] = {}
    for row in group.rows:
        reason = doubt(row, group.ceilings)
        if row.status == "slow" or not reason:
            continue
        status = "untrusted" if row.status == MEASURED else row.status
        # the same reason with other numbers is the same reason
        pattern = re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", reason)
        found.setdefault((row.kernel, status, pattern), []).append((reason, row))
    rows = []
    for (kernel, status, _), alike in sorted(found.items(), key=lambda g: (-len(g[1]), g[0])):
        reason, row = alike[0]
        count = str(len(alike))
        rows.append((kernel, status, count, reason, pairs(row.problem), pairs(row.config)))
    columns = ("design", "status", "rows", "reason (of the first)", "problem", "config")
    title = f"Refused, failed, wrong or untrusted: {group.title}"
    of = group.of(row for alike in found.values() for _, row in alike)
    units = "number of rows"
    return Table(title, group.regime, units, columns, tuple(rows), of=of, folded=True)


def slow_table(group: Group) -> Table:
    """Return how many correct configs were how far behind the best one of their problem."""
    ratios: dict[str, list[float]] = {}
    dropped: dict[str, int] = {}
    for row in group.rows:
        winner = group.winners.get(problem_key(row.problem))
        if row.status == "slow":
            dropped[row.kernel] = dropped.get(row.kernel, 0) + 1
        elif winner is not None and not math.isnan(row.us) and not doubt(row, group.ceilings):
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
        "design", "timed in full", "within 1 % of the best", f"more than {SLOW}× slower",
        "dropped after a quick look", "slowest",
    )  # fmt: skip
    units = "number of rows (a config on a problem); slowest: time / best time of the problem"
    title = f"Correct and slow: {group.title}"
    of = group.of(group.rows)
    return Table(title, group.regime, units, columns, tuple(rows), of=of, folded=True)


def ceiling_table(machine: Machine, runs: Mapping[str, Run]) -> Table:
    """Return the ceilings, measured beside datasheet."""
    sheet = {c.kind: c for c in machine.ceilings if c.source == "datasheet"}
    measured = [c for c in machine.ceilings if c.source == "measured"]
    rows = [_ceiling_row(ceiling, sheet.get(ceiling.kind), runs) for ceiling in measured]
    kinds = {ceiling.kind for ceiling in measured}
    rows += [
        (c.name, "", "", c.unit, significant(c.rate), "", "", "")
        for c in sheet.values()
        if c.kind not in kinds
    ]
    columns = (
        "ceiling", "pace", "measured [low, high]", "unit", "datasheet", "measured / datasheet",
        "clock MHz", "run",
    )  # fmt: skip
    units = (
        "GB/s = 10^9 bytes/s, TFLOP/s = 10^12 FLOP/s, TOP/s = 10^12 operations/s, "
        "weights/s = int4 weights unpacked, µs per launch" + _ridge_words(machine.ceilings)
    )
    regimes = ", ".join(sorted({c.regime for c in measured if c.regime})) or "none measured"
    boards = sorted({runs[c.date].board for c in measured if c.date in runs})
    of = f"board {', '.join(boards)}" if boards else ""
    return Table(f"Ceilings of {machine.gpu}", regimes, units, columns, tuple(rows), of=of)


def _ceiling_row(
    ceiling: Ceiling, sheet: Ceiling | None, runs: Mapping[str, Run]
) -> tuple[str, ...]:
    low, high = significant(ceiling.low), significant(ceiling.high)
    rate = f"{significant(ceiling.rate)} [{low}, {high}]"
    against = ("", "")
    if sheet is not None and ceiling.operands in ("fp16", "bf16"):
        against = (significant(sheet.rate), f"{ceiling.rate / sheet.rate:.3f}")
    unit = "µs" if ceiling.unit == "us" else ceiling.unit
    run = runs.get(ceiling.date)
    clock, number = significant(ceiling.clock_mhz), str(run.number) if run else ""
    return (ceiling.name, ceiling.pace, rate, unit, *against, clock, number)


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
