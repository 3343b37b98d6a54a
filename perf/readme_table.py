"""The tables of measured times: six rows in the README, all of them in their page.

    python -m ferrum_numba.perf.readme_table

writes both, the page as docs/results.md#table; `tests/perf/test_readme_table.py` asserts that they
are current. The README's rows are chosen by rule: of SHAPES the middle one by size, at README_M.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ferrum_numba import results, shipped
from ferrum_numba.errors import FerrumError, StoreError
from ferrum_numba.perf.peers import PEERS
from ferrum_numba.results import ResultFile, Row

COMMAND = "python -m ferrum_numba.perf.readme_table"
RESULTS = shipped.results_folder() / "h200" / "w4a16_gemm.json"
CHECKOUT = Path(__file__).resolve().parent.parent
README = CHECKOUT / "README.md"
PAGE = CHECKOUT / "docs" / "results.md"
# (K, N) of the peers' table, and whose projection it is
SHAPES = {
    (4096, 4096): "Llama-3-8B o",
    (4096, 14336): "Llama-3-8B gate or up",
    (14336, 4096): "Llama-3-8B down",
    (8192, 8192): "Llama-3-70B o",
    (8192, 28672): "Llama-3-70B gate or up",
    (28672, 8192): "Llama-3-70B down",
}
SIZES_M = (1, 16, 32, 64, 256, 1024, 4096)
# the middle one by size: neither the weight that suits the kernels best nor the one that does least
README_SHAPE = sorted(SHAPES, key=prod)[len(SHAPES) // 2]
README_M = (1, 16, 64, 256, 1024, 4096)
# what every published kernel for int4 weights descends from, in this tree's form
BASELINE = "marlin"
BEGIN, END = f"<!-- measured: begin: {COMMAND} -->\n", "<!-- measured: end -->"


@dataclass(frozen=True)
class Line:
    """A line of a table: a problem, who won it, and the baseline where that was measured."""

    shape: tuple[int, int]
    m: int
    fastest: Row
    baseline: Row | None

    @property
    def rows(self) -> list[Row]:
        """The rows that it shows times of."""
        return [self.fastest] if self.baseline is None else [self.fastest, self.baseline]


def best_rows(rows: Iterable[Row]) -> dict[tuple[int, int, int, str], Row]:
    """Return the cold row that won, by (K, N, M, kernel)."""
    return {
        (*(row.problem[size] for size in "KNM"), row.kernel): row
        for row in results.best(rows)
        if row.regime == "cold"
    }


def lines(
    file: ResultFile,
    shapes: Iterable[tuple[int, int]] = tuple(SHAPES),
    sizes_m: Sequence[int] = SIZES_M,
) -> list[Line]:
    """Return a line for every problem of these shapes and M that was measured."""
    best = best_rows(file.rows)
    found = []
    for shape in shapes:
        for m in sizes_m:
            ours = {kernel: row for (*sizes, kernel), row in best.items() if sizes == [*shape, m]}
            if ours:
                fastest = min(ours.values(), key=results.rank)
                found.append(Line(shape, m, fastest, ours.get(BASELINE)))
    return found


def peer_cell(shape: tuple[int, int], m: int, kind: str) -> str:
    """Return a peer's time, with its name where it is not the only one of its kind."""
    wanted = {"M": m, "K": shape[0], "N": shape[1]}
    rows: list[dict[str, Any]] = [
        row
        for table in PEERS
        for row in table["rows"]
        if row["kind"] == kind and wanted.items() <= row["problem"].items()
    ]
    if not rows:
        return ""
    row = min(rows, key=lambda found: found["us"])
    return f"{row['us']:.1f}" + (f" {row['peer']}" if kind == "4-bit" else "")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table. A column whose name ends in a colon has numbers: it goes right."""
    marks = ["--:" if name.endswith(":") else "---" for name in columns]
    names = [name.removesuffix(":") for name in columns]
    cells = [names, marks, *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def readme_table(file: ResultFile) -> str:
    """Return the README's table: µs a call."""
    shown = lines(file, [README_SHAPE], README_M)
    columns = (
        "M:", "fastest:", "its kernel", f"`{BASELINE}`:", "best 4-bit peer:", "cuBLAS fp16:",
    )  # fmt: skip
    rows = [
        (line.m, f"**{line.fastest.us:.1f}**", f"`{line.fastest.kernel}`", _us(line.baseline),
         *_peers(line))
        for line in shown
    ]  # fmt: skip
    K, N = README_SHAPE
    runs = _runs(file, shown)
    return (
        f"µs a call, K × N = {K} × {N} ({SHAPES[README_SHAPE]}), fp16, group 128, cold, in a CUDA "
        f"graph; {_boards(runs)}, {_dates(runs)}. Peers: {PEERS[0]['date']}, another board of the "
        f"same model, the same protocol.\n\n{table(columns, rows)}"
    )


def with_table(readme: str, file: ResultFile) -> str:
    """Return the README's text with its table made anew."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise StoreError(f"{README}: has no lines {BEGIN.strip()} and {END}")
    return f"{before}{begin}{readme_table(file)}\n{end}{after}"


def page(file: ResultFile) -> str:
    """Return the page, docs/results.md#table: every line, and of which run its times are."""
    shown = lines(file)
    runs = _runs(file, shown)
    return _PAGE.format(
        command=COMMAND,
        boards=_boards(runs),
        table=_whole_table(file, shown, runs),
        runs=_runs_table(file, shown, runs),
        peers_date=PEERS[0]["date"],
        peers=PEERS[0]["source"],
    )


def _whole_table(file: ResultFile, shown: Iterable[Line], runs: Iterable[Mapping[str, Any]]) -> str:
    number = {run["date"]: i for i, run in enumerate(runs, 1)}

    def run_of(row: Row | None) -> object:
        return "" if row is None else number[file.environment_of(row)["date"]]

    columns = (
        "K × N", "M:", "fastest:", "its kernel", "its run:", f"`{BASELINE}`:", "its run:",
        "best 4-bit peer:", "cuBLAS fp16:",
    )  # fmt: skip
    rows = [
        (f"{line.shape[0]} × {line.shape[1]} ({SHAPES[line.shape]})", line.m,
         f"**{line.fastest.us:.1f}**", f"`{line.fastest.kernel}`", run_of(line.fastest),
         _us(line.baseline), run_of(line.baseline), *_peers(line))
        for line in shown
    ]  # fmt: skip
    return table(columns, rows)


_PAGE = """\
<!-- written by {command}: do not edit -->
# Results

µs a call, fp16, symmetric weights, group 128, cold, in a CUDA graph.
{boards}; see [the runs](#runs).

The samples, their intervals, the configs and what lost are in
[perf/results/h200/w4a16_gemm.json](../perf/results/h200/w4a16_gemm.json); what layers run because
of it is in [perf/decisions/h200.json](../perf/decisions/h200.json). This page and the README's
table are made of the first by `{command}`.

One rule says who won, `ferrum_numba/results/winners.py`: of rows that were measured in full, are
correct and trusted, those of the board of the newest final, and of these those of a final first,
then the fastest ([what decides](tuning.md#evidence)). A run tried some configs of the space, not
all (`--limit` in its command), so a line may have a faster one. Boards differ by some per cent
([measuring](measuring.md#boards)), and where power is the limit what was timed first is faster
([measuring](measuring.md#power)): times of two runs, and the peers' beside ours, do not say who is
ahead by a few per cent. `python -m ferrum_numba.perf.against_cublas`, with PyTorch, times
the fastest and cuBLAS in turn on one board.

## <a id="table"></a>The table

{table}

## <a id="runs"></a>The runs

A board is named by the start of its UUID; *times* says how many of the table's are of the run.

{runs}

## <a id="peers"></a>The peers

Date: {peers_date}. Another board of the same model, the same protocol; {peers}.
Each time, with the peer's name, is in [perf/peers.py](../perf/peers.py).
"""


def _us(row: Row | None) -> str:
    return "" if row is None else f"{row.us:.1f}"


def _peers(line: Line) -> tuple[str, str]:
    return peer_cell(line.shape, line.m, "4-bit"), peer_cell(line.shape, line.m, "fp16")


def _runs(file: ResultFile, shown: Iterable[Line]) -> list[Mapping[str, Any]]:
    """Return the environments that these lines were measured in, the oldest first."""
    found = (file.environment_of(row) for line in shown for row in line.rows)
    return [run for _, run in sorted({run["date"]: run for run in found}.items())]


def _runs_table(file: ResultFile, shown: Iterable[Line], runs: Iterable[Mapping[str, Any]]) -> str:
    dates = [file.environment_of(row)["date"] for line in shown for row in line.rows]
    rows = [
        (i, f"{run['date'][:16].replace('T', ' ')} UTC", f"`{run['uuid'][:8]}`",
         f"`{run['commit'][:7]}`{' with changes' if run['dirty'] else ''}", run["driver"],
         dates.count(run["date"]), f"`{run['command']}`")
        for i, run in enumerate(runs, 1)
    ]  # fmt: skip
    return table(("run:", "date", "board", "commit", "driver", "times:", "command"), rows)


def _boards(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return what was measured on: "NVIDIA H200, driver 580.1; 7 runs on 5 boards"."""
    models = " and ".join(sorted({run["gpu"] for run in runs}))
    drivers = " and ".join(sorted({run["driver"] for run in runs}))
    boards = len({run["uuid"] for run in runs})
    return f"{models}, driver {drivers}; {len(runs)} runs on {boards} boards"


def _dates(runs: Sequence[Mapping[str, Any]]) -> str:
    dates = sorted({run["date"][:10] for run in runs})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def main() -> None:
    """Write the README's table and the page of results."""
    if not README.is_file():
        raise StoreError(f"{README}: is not here; this command is for a checkout")
    file = results.load(RESULTS)
    README.write_text(with_table(README.read_text(encoding="utf-8"), file), encoding="utf-8")
    PAGE.write_text(page(file), encoding="utf-8")
    print(f"written: {README}, {PAGE}")


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"readme_table: {error}", file=sys.stderr)
        sys.exit(2)
