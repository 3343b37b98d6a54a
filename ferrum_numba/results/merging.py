"""One table of decisions from the results of many boards, the same whatever their order.

Every rank of a job reads it, and so picks the same kernel for the same problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ferrum_numba.errors import StoreError
from ferrum_numba.results.decisions import Decision, decide
from ferrum_numba.results.file import ResultFile
from ferrum_numba.results.identity import board_factors, model, one_yardstick
from ferrum_numba.results.row import Row, as_text

# a row, and the environment it was measured in
Measured = tuple[Row, Mapping[str, Any]]


def merge_decisions(
    files: Sequence[ResultFile], regime: str = "cold"
) -> tuple[dict[str, Any], list[Decision]]:
    """Return what the rows of all files decide together, and what a reader should know of it.

    Boards that timed one yardstick compare by it; of others, those of the newest final decide a
    problem. A row that is in several files counts once, and of one board the newer of two.

    Returns:
        (head of a decisions file, decisions by Op, problem and kernel)

    Raises:
        StoreError: the files are of several models of GPU.
    """
    measured = [(row, file.environment_of(row)) for file in files for row in file.rows]
    _refuse_models([environment for _, environment in measured])
    evened = _evened(_newest(measured))
    found = decide(sorted(evened, key=_place), regime)
    ours = [environment for row, environment in measured if not row.peer]
    head = {
        "gpu": ours[0]["gpu_facts"]["key"] if ours else None,
        "regime": regime,
        "made_by": "ferrum-numba decisions merge",
        "boards": sorted({str(environment["uuid"]) for environment in ours}),
        "drivers": sorted({str(environment["driver"]) for environment in ours}),
    }
    return head, sorted(found, key=lambda one: (one.op, as_text(one.problem), one.kernel))


def _refuse_models(environments: Sequence[Mapping[str, Any]]) -> None:
    names = {as_text(model(one)): str(one["gpu"]) for one in environments}
    if len(names) > 1:
        got = ", ".join(sorted(names.values()))
        raise StoreError(f"results of one model of GPU are merged at a time; got {got}")


def _newest(measured: Sequence[Measured]) -> list[Measured]:
    """Return the newest row of each key and board."""
    newest: dict[tuple[str, ...], Measured] = {}
    for row, environment in measured:
        key = (*row.key, str(environment["uuid"]))
        if key not in newest or _place(newest[key][0]) < _place(row):
            newest[key] = row, environment
    return list(newest.values())


def _place(row: Row) -> tuple[str, str]:
    """Return a sort key that two rows share only if they are the same, the newer the later."""
    return row.run, as_text({**row.to_json(), "board": row.board})


def _evened(measured: Sequence[Measured]) -> list[Row]:
    """Return rows with their boards' factors over one board, the first by date.

    Each store counts from a board of its own.
    """
    runs = {as_text(environment): environment for _, environment in measured}
    by_date = sorted(runs.values(), key=lambda one: (one["date"], as_text(one)))
    found = []
    for row, here in measured:
        first = next((run for run in by_date if one_yardstick(run, here)), None)
        factor = None if first is None else board_factors(here, first).get(_bound(row, here))
        found.append(replace(row, board_factor=factor, board=str(here["uuid"] or "")))
    return found


def _bound(row: Row, environment: Mapping[str, Any]) -> str:
    """Return what bounds a row's work on its GPU: "memory" or "tensor"."""
    facts = environment["gpu_facts"]
    memory_us = (row.bytes or 0) / facts["dram_gbps"] / 1e3
    tensor_us = (row.flops or 0) / facts["tensor_tflops"] / 1e6
    return "memory" if memory_us >= tensor_us else "tensor"
