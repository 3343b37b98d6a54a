"""The measured rows of the tutorial: between two marks of each of its pages.

    python -m ferrum_numba.perf.tutorial_table

writes what docs/tutorial/results/h200/ladder.json has, or that it was not measured yet;
`tests/tutorial/test_rows.py` asserts that all pages are current. `perf.tutorial` makes the file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ferrum_numba import results
from ferrum_numba.errors import FerrumError, StoreError
from ferrum_numba.perf.readme_table import table
from ferrum_numba.results import ResultFile, Row

COMMAND = "python -m ferrum_numba.perf.tutorial_table"
TUTORIAL = Path(__file__).resolve().parent.parent / "docs" / "tutorial"
RESULTS = TUTORIAL / "results" / "h200" / "ladder.json"
BEGIN, END = f"<!-- measured: begin: {COMMAND} -->\n", "<!-- measured: end -->"
# a small weight of a real model, a token, a tile of them, a batch
N, K, SIZES_M = 4096, 4096, (1, 16, 256)
# rows of a batch of 1, 16 and 64 tokens with 8 experts each, of 128 experts of Qwen3-30B-A3B (up)
EXPERTS = tuple({"rows": rows, "experts": 128, "N": 768, "K": 2048} for rows in (8, 128, 512))
STEPS = (
    "step1_scalar", "step2_vector", "step3_registers", "step4_mma", "step5_pipeline",
    "step6_space", "step7_share_k", "step8_wgmma",
)  # fmt: skip
GROUPED = "step9_experts"
# what ships: the layout and tiles that others began with, and what layers run; by M they differ
BASELINE, SHIPPED = "marlin", ("decode", "decode_wgmma", "prefill")
NOT_YET = (
    "Not measured yet: `python -m ferrum_numba.perf.tutorial` does it on an H200, and\n"
    f"`{COMMAND}` then writes the rows here."
)


def problems() -> list[dict[str, int]]:
    """Return the sizes that every step but the last is timed on."""
    return [{"M": M, "N": N, "K": K} for M in SIZES_M]


def shown(page: str) -> tuple[str, ...]:
    """Return the kernels whose rows a page shows: a step's own and the one before it, or all."""
    number = page.partition("_")[0]
    if not number.isdigit() or int(number) > len(STEPS) + 1:
        return (*STEPS, BASELINE, *SHIPPED)
    step = int(number) - 1
    return (GROUPED,) if step == len(STEPS) else STEPS[max(step - 1, 0) : step + 1]


def row_of(file: ResultFile, kernel: str, sizes: Mapping[str, int]) -> Row | None:
    """Return the fastest row of a kernel on a problem with these sizes, if there is one."""
    found = [
        row
        for row in file.rows
        if row.kernel == kernel and sizes.items() <= row.problem.items() and row.samples and row.ok
    ]
    return min(found, key=lambda row: row.us, default=None)


def measured(file: ResultFile | None, page: str) -> str:
    """Return what a page says of times: µs a call."""
    kernels = shown(page)
    columns = list(EXPERTS) if kernels == (GROUPED,) else problems()
    if file is None:
        return NOT_YET
    rows = {kernel: [row_of(file, kernel, sizes) for sizes in columns] for kernel in kernels}
    lines = [
        (f"`{kernel}`", *("not measured yet" if row is None else _cell(row) for row in own))
        for kernel, own in rows.items()
        if any(own) or kernel not in SHIPPED
    ]
    known = [row for own in rows.values() for row in own if row is not None]
    bound = [
        next((f"{row.bound_us:.1f}" for row in known if sizes.items() <= row.problem.items()), "")
        for sizes in columns
    ]
    lines.append(("*at least, modelled*", *bound))
    names = [
        f"{sizes['rows']} rows:" if "rows" in sizes else f"M = {sizes['M']}:" for sizes in columns
    ]
    return f"{table(['', *names], lines)}\n\n{_told(file, columns[0])}"


def with_rows(text: str, file: ResultFile | None, page: str) -> str:
    """Return a page's text with its rows made anew.

    Raises:
        StoreError: the page has no place for them.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise StoreError(f"{page}: has no lines {BEGIN.strip()} and {END}")
    return f"{before}{begin}{measured(file, page)}\n{end}{after}"


def recorded() -> ResultFile | None:
    """Return what was measured, if it was."""
    return results.load(RESULTS) if RESULTS.is_file() else None


def pages() -> list[Path]:
    """Return the tutorial's pages that have a place for rows."""
    return [page for page in sorted(TUTORIAL.glob("*.md")) if BEGIN in page.read_text("utf-8")]


def _cell(row: Row) -> str:
    config = ", ".join(f"{name} {value}" for name, value in row.config.items())
    tuned = row.kernel in STEPS[5:] or row.kernel == GROUPED
    return f"**{row.us:.1f}** ({config})" if tuned else f"**{row.us:.1f}**"


def _told(file: ResultFile, sizes: Mapping[str, Any]) -> str:
    run = file.environment
    about = ", ".join(
        f"{name} = {size}" for name, size in sizes.items() if name not in ("M", "rows")
    )
    return (
        f"µs a call, {about}, cold, in a CUDA graph; {run['gpu']}, driver {run['driver']}, board "
        f"`{run['uuid'][:8]}`, {run['date'][:10]}, commit `{run['commit'][:7]}`. A step was timed "
        "in turn with the one before it. In brackets the config that won."
    )


def main() -> None:
    """Write the rows of all pages."""
    if not TUTORIAL.is_dir():
        raise StoreError(f"{TUTORIAL}: is not here; this command is for a checkout")
    file = recorded()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        page.write_text(with_rows(text, file, page.name), encoding="utf-8")
        print(f"written: {page}")


if __name__ == "__main__":
    try:
        main()
    except FerrumError as error:
        print(f"tutorial_table: {error}", file=sys.stderr)
        sys.exit(2)
