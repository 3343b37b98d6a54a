"""The table of layers of experts, peers beside: what docs/experts.md#measured shows.

    python -m ferrum_numba.perf.experts_table

writes it between the page's two marks; `tests/perf/test_experts_table.py` asserts that it is
current. Of every problem it shows the newest run of `perf.peers_moe`, timed in turn:
times of two runs are not put side by side.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ferrum_numba import results, shipped
from ferrum_numba.errors import FerrumError, StoreError
from ferrum_numba.perf.routed_rows import HEAD, line
from ferrum_numba.results import ResultFile, Row
from ferrum_numba.results.row import problem_key

COMMAND = "python -m ferrum_numba.perf.experts_table"
# what takes peers and ours in turn
CONTEST = "perf.peers_moe"
RESULTS = shipped.results_folder() / "h200" / "grouped_gemm.json"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "experts.md"
BEGIN, END = f"<!-- measured: begin: {COMMAND} -->\n", "<!-- measured: end -->"


def contests(file: ResultFile) -> list[list[Row]]:
    """Return the rows of each problem's newest contest, in the order of the file."""
    found: dict[Any, dict[str, list[Row]]] = {}
    for row in file.rows:
        if CONTEST in file.environment_of(row)["command"]:
            found.setdefault(problem_key(row.problem), {}).setdefault(row.run, []).append(row)
    return [runs[max(runs)] for runs in found.values()]


def table(file: ResultFile) -> str:
    """Return the table as Markdown, µs a call, and below it what it was measured on."""
    shown = contests(file)
    runs = {row.run: file.environment_of(row) for rows in shown for row in rows}
    lines = "\n".join([*HEAD, *map(line, shown)])
    return f"{lines}\n\n{_told(runs.values())}"


def _told(runs: Iterable[Mapping[str, Any]]) -> str:
    return "\n\n".join(
        f"{run['gpu']}, driver {run['driver']}, board `{run['uuid'][:8]}`, {run['date'][:10]}, "
        f"commit `{run['commit'][:7]}`: `{run['command']}`; a plain read there: "
        f"{' GB/s before and '.join(f'{gbps:.0f}' for gbps in run['read_gbps'])} after."
        for run in runs
    )


def with_table(page: str, file: ResultFile) -> str:
    """Return the page's text with its table made anew.

    Raises:
        StoreError: the page has no place for it.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise StoreError(f"{PAGE}: has no lines {BEGIN.strip()} and {END}")
    return f"{before}{begin}{table(file)}\n{end}{after}"


def main() -> None:
    """Write the page's table."""
    if not PAGE.is_file():
        raise StoreError(f"{PAGE}: is not here; this command is for a checkout")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results.load(RESULTS)), "utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"experts_table: {error}", file=sys.stderr)
        sys.exit(2)
