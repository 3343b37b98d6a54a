"""The table of measured times in README.md, made from the result files and the peers' data.

    python -m ferrum_numba.perf.readme_table

prints it; `tests/test_readme.py` asserts that the README holds what this prints.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ferrum_numba import results, shipped
from ferrum_numba.perf.peers import PEERS
from ferrum_numba.results import Row

RESULTS = shipped.results_folder() / "h200" / "w4a16_gemm.json"
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
# what every published kernel for int4 weights descends from, in this tree's form
BASELINE = "marlin"
_COLUMNS = ("fastest", "its kernel", f"`{BASELINE}`", "best 4-bit peer", "cuBLAS fp16")
HEAD = (
    "| K × N | M | " + " | ".join(_COLUMNS) + " |",
    "|---|--:|--:|---|" + "--:|" * (len(_COLUMNS) - 2),
)


def best_rows(rows: Iterable[Row]) -> dict[tuple[int, int, int, str], Row]:
    """Return the cold row that won, by (K, N, M, kernel)."""
    return {
        (*(row.problem[size] for size in "KNM"), row.kernel): row
        for row in results.best(rows)
        if row.regime == "cold"
    }


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


def table(path: Path = RESULTS) -> str:
    """Return the Markdown table of a result file: µs a call."""
    file = results.load(path)
    best = best_rows(file.rows)
    lines, shown = list(HEAD), []
    for shape, name in SHAPES.items():
        for m in SIZES_M:
            ours = {kernel: row for (*sizes, kernel), row in best.items() if sizes == [*shape, m]}
            if not ours:
                continue
            kernel = min(ours, key=lambda name: results.rank(ours[name]))
            shown += [row for name, row in ours.items() if name in (kernel, BASELINE)]
            baseline = f"{ours[BASELINE].us:.1f}" if BASELINE in ours else ""
            peers = (peer_cell(shape, m, kind) for kind in ("4-bit", "fp16"))
            cells = (f"**{ours[kernel].us:.1f}**", f"`{kernel}`", baseline, *peers)
            label = f"{shape[0]} × {shape[1]} ({name})"
            lines.append(f"| {label} | {m} | " + " | ".join(cells) + " |")
    return "\n".join((_caption(file, shown), "", *lines))


def _caption(file: results.ResultFile, shown: Iterable[Row]) -> str:
    environment, sources = file.environment, " and ".join(sources_of(file, shown))
    return (
        f"µs a call, group 128, cold, in a CUDA graph; {environment['gpu']}, driver "
        f"{environment['driver']}, {sources}. "
        f"Peers: {PEERS[0]['date']}, another board of the same model, the same protocol."
    )


def sources_of(file: results.ResultFile, rows: Iterable[Row]) -> list[str]:
    """Return the dates and commits of rows, the newest first, with the kernels of each."""
    kernels: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        environment = file.environment_of(row)
        source = environment["date"][:10], environment["commit"][:7]
        kernels.setdefault(source, set()).add(row.kernel)
    return [
        f"{date}, commit {commit} ({', '.join(f'`{name}`' for name in sorted(names))})"
        for (date, commit), names in sorted(kernels.items(), reverse=True)
    ]


if __name__ == "__main__":
    print(table())
