"""The report as a list of blocks, in the order a kernel engineer needs them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ferrum_numba.report import figures
from ferrum_numba.report.blocks import Block, Heading, Paragraph, Picture, Table
from ferrum_numba.report.curve import curve_tables
from ferrum_numba.report.data import Board, Sources, machines
from ferrum_numba.report.other_tables import (
    check_failures,
    check_table,
    covered,
    plan_losers,
    plan_table,
    provenance_tables,
)
from ferrum_numba.report.tables import ceiling_table, failure_table, problem_tables, slow_table
from ferrum_numba.report.verdict import summary
from ferrum_numba.roofline.model import ridge, roof

MAX_REASONS = 40


def document(sources: Sources, found: Sequence[Board]) -> list[Block]:
    """Return the whole report."""
    blocks: list[Block] = [Heading("Verdict")]
    for text in summary(sources, found):
        lead, colon, rest = text.partition(": ")
        blocks.append(Paragraph(rest, lead + colon.strip()))
    blocks += _section("Roofline", figures.rooflines(sources, found))
    tables = [table for board in found for table in problem_tables(board)]
    blocks += _section("Results by problem", tables)
    blocks += _section("Time against size", figures.times(found))
    curves = [table for board in found for table in curve_tables(board)]
    blocks += _section("Steps of the curve", curves)
    blocks += _section("Fraction of the bound", figures.fractions(found))
    losers = [table for board in found for table in (failure_table(board), slow_table(board))]
    blocks += _section("Losers", [table for table in losers if table.rows])
    ceilings = [ceiling_table(machine) for machine in machines(sources) if machine.ceilings]
    blocks += _section("Ceilings", ceilings)
    blocks += _plan(sources) + _checks(sources)
    return blocks + _section("Provenance", provenance_tables(sources))


def _section(title: str, content: Sequence[Block]) -> list[Block]:
    """Return a section, or nothing where it would be empty."""
    return [Heading(title), *content] if content else []


def _plan(sources: Sources) -> list[Block]:
    if not sources.plan:
        return []
    losers = plan_losers(sources)
    content: list[Block] = [plan_table(sources)]
    if losers.rows:
        content.append(_first(losers, MAX_REASONS))
    return _section("Plan (modelled)", content)


def _first(table: Table, count: int) -> Table:
    """Return a table cut to its first rows, saying so in its title."""
    if len(table.rows) <= count:
        return table
    title = f"{table.title}: the first {count} of {len(table.rows)} reasons"
    return Table(title, table.regime, table.units, table.columns, table.rows[:count])


def _checks(sources: Sources) -> list[Block]:
    if not sources.checks:
        return _section("Checks", [Paragraph("No check was run.")])
    failures = check_failures(sources.checks)
    content: list[Block] = [Paragraph(covered(sources.checks)), check_table(sources.checks)]
    return _section("Checks", content + ([failures] if failures.rows else []))


def data(sources: Sources, found: Sequence[Board], blocks: Sequence[Block]) -> dict[str, Any]:
    """Return everything that is drawn or printed, as JSON can hold it."""
    found_data: dict[str, Any] = _finite(
        {
            "schema": 1,
            "verdict": summary(sources, found),
            "boards": [_board(board) for board in found],
            "modelled": [asdict(p) for p in figures.modelled_points(sources)],
            "tables": [
                {**asdict(block), "emphasis": list(block.emphasis)}
                for block in blocks
                if isinstance(block, Table)
            ],
            "figures": [
                {"name": block.name, "title": block.title}
                for block in blocks
                if isinstance(block, Picture)
            ],
            "environments": [file.environment for file in (*sources.files, *sources.ceilings)],
        }
    )
    return found_data


def _board(board: Board) -> dict[str, Any]:
    memory = roof(board.ceilings, "memory")
    tensors = [c for c in board.ceilings if c.kind == "tensor"]
    ridges = [{"tensor": c.name, "flop_per_byte": ridge(memory, c)} for c in tensors if memory]
    return {
        "gpu": board.gpu,
        "uuid": board.uuid,
        "op": board.op,
        "regime": board.regime,
        "ceilings": [asdict(c) for c in board.ceilings],
        "ridges": ridges,
        "points": [
            {**asdict(p), "intensity": p.intensity, "tflops": p.tflops} for p in board.points
        ],
        "peers": [asdict(p) for p in board.peers],
    }


def _finite(value: Any) -> Any:
    """Return a value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
