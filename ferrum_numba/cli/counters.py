"""`bench --counters`: what Nsight Compute counts of each row's kernel, where `ncu` is there.

    "counters": {"dram_bytes": …, "l2_hit": 0.62, "issue": 0.41, "stalls": {"long_scoreboard": 3.1}}

A kernel is profiled in a process of its own, cold: ncu replays it with the caches flushed.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli.names import in_words
from ferrum_numba.cli.output import say
from ferrum_numba.cli.profiled import told
from ferrum_numba.cli.progress import progress
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tables import print_table
from ferrum_numba.contract import Kernel
from ferrum_numba.errors import DeviceError

if TYPE_CHECKING:
    from ferrum_numba.results import Row

# metric -> name and what to multiply it by
METRICS = {
    "dram__bytes_read.sum": ("dram_read_bytes", 1.0),
    "dram__bytes_write.sum": ("dram_write_bytes", 1.0),
    "lts__t_sector_hit_rate.pct": ("l2_hit", 0.01),
    "sm__inst_issued.avg.pct_of_peak_sustained_active": ("issue", 0.01),
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": ("tensor", 0.01),
}
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = (
    "long_scoreboard", "short_scoreboard", "barrier", "membar", "math_pipe_throttle",
    "mio_throttle", "lg_throttle", "tex_throttle", "wait", "gmma", "not_selected", "no_instruction",
    "branch_resolving", "sleeping", "drain", "dispatch_stall",
)  # fmt: skip
# stall reasons that a row keeps
TOP = 3
# ncu replays a kernel some ten times; the rest is making its operands
TIMEOUT_S = 300.0
COLUMNS = ("problem", "kernel", "dram_bytes", "of_least", "l2_hit", "issue", "tensor", "stalls")


def find_ncu() -> str:
    """Return the path of ncu.

    Raises:
        DeviceError: it is not on the path.
    """
    path = shutil.which("ncu")
    if path is None:
        raise DeviceError("--counters needs Nsight Compute: there is no ncu on the path")
    return path


def counted(session: Session, rows: Iterable[Row]) -> list[Row]:
    """Return the rows, those that were measured with what ncu counts of them."""
    ncu, rows = find_ncu(), list(rows)
    known = {k.name: k for k in (*session.handed_in, *session.tools, *session.ceilings)}
    known |= {kernel.name: kernel for kernel in session.kernels}
    found = []
    with progress("counters") as bar:
        for done, row in enumerate(rows):
            bar(done, len(rows), row.kernel)
            found.append(_with_counters(ncu, row, known[row.kernel]) if row.ok else row)
    return found


def command_of(ncu: str, metrics: Iterable[str], *, launches: int) -> list[str]:
    """Return the words before a command whose first launches between the marks ncu counts."""
    return [
        ncu, "--csv", "--page", "raw", "--print-units", "base", "--launch-count", str(launches),
        "--profile-from-start", "off", "--cache-control", "all", "--clock-control", "none",
        "--metrics", ",".join(metrics),
    ]  # fmt: skip


def _with_counters(ncu: str, row: Row, kernel: Kernel) -> Row:
    asked = (kernel, kernel.config(**row.config), kernel.op.problem(**row.problem))
    names = [*METRICS, *(STALL.format(stall) for stall in STALLS)]
    what = ("ferrum_numba.cli.profiled", told(asked))
    try:
        done = subprocess.run(
            [*command_of(ncu, names, launches=1), sys.executable, "-m", *what],
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        say(f"{row.kernel} {in_words(row.problem)}: ncu took more than {TIMEOUT_S:g} s")
        return row
    counters = parse(done.stdout)
    if not counters:
        said = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
        say(f"{row.kernel} {in_words(row.problem)}: ncu counted nothing: {said[-1]}")
        return row
    return replace(row, more={**row.more, "counters": counters})


def parse(text: str) -> dict[str, Any]:
    """Return the counters of ncu's raw page in CSV: a line of names, one of units, then a kernel's.

    What a GPU does not count is left out; nothing comes of a text without a kernel.
    """
    values = next(iter(pages(text)), None)
    if values is None:
        return {}
    found: dict[str, Any] = {
        name: values[metric] * factor
        for metric, (name, factor) in METRICS.items()
        if metric in values
    }
    if {"dram_read_bytes", "dram_write_bytes"} <= found.keys():
        found["dram_bytes"] = found["dram_read_bytes"] + found["dram_write_bytes"]
    stalls = {stall: values.get(STALL.format(stall)) for stall in STALLS}
    known = {stall: number for stall, number in stalls.items() if number}
    top = sorted(known, key=lambda stall: -known[stall])[:TOP]
    found["stalls"] = {stall: known[stall] for stall in top}
    return found


def pages(text: str) -> list[dict[str, float]]:
    """Return the numbers of each launch, in their order, by the name of the metric."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    names, *_ = table = list(csv.reader(lines)) or [[]]
    found = []
    # below the names are the units
    for row in table[2:]:
        numbers = {name: _number(cell) for name, cell in zip(names, row, strict=False)}
        found.append({name: number for name, number in numbers.items() if number is not None})
    return found


def show_counters(rows: Sequence[Row]) -> None:
    """Print what was counted, if something was."""
    lines = [_line(row, row.more["counters"]) for row in rows if row.more.get("counters")]
    if lines:
        print_table(lines, COLUMNS, "counted by ncu, cold")


def _line(row: Row, counters: Mapping[str, Any]) -> dict[str, Any]:
    dram = counters.get("dram_bytes")
    stalls = ", ".join(f"{name} {warps:.2g}" for name, warps in counters["stalls"].items())
    return {
        "problem": in_words(row.problem), "kernel": row.kernel,
        "of_least": dram / row.bytes if dram and row.bytes else None, **counters, "stalls": stalls,
    }  # fmt: skip


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None
