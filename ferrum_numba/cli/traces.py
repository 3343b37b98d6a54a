"""`check --trace`: what each line of a kernel does, and what is wrong with it, on paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ferrum_numba.cli import names
from ferrum_numba.cli.tables import NARROW
from ferrum_numba.shown import printable
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.interpreter import Line
    from ferrum_numba.tracing import Trace

# lines that touch no memory, wait for nothing and are so small a part are left out
_SHARE = 0.01
# between columns
_GAP = "  "
NOTE = """\
PTX, sectors of 32 bytes and wavefronts of shared memory are those of all warps;
a/b: where b would do. lanes: of 32, on average. in flight: bytes of copies that
are begun and not waited for, at most."""


def print_traces(traces: Sequence[Trace]) -> None:
    """Print a table for each, as wide as the terminal, else 80 columns, and its sentences below."""
    for trace in traces:
        shown = [_tells(line, trace.instructions) for line in trace.lines]
        warps = f"{counted(trace.num_warps, 'warp')} of {counted(trace.num_blocks, 'block')}"
        print(f"{trace.kernel} {names.in_words(trace.problem)}: {warps}\n")
        print("\n".join(_table(list(_rows(trace, shown)))))
        left = shown.count(False)
        if left:
            print(f"{counted(left, 'line')} with little to tell left out; --json has all")
        print()
        for remark in trace.remarks:
            print(printable(remark))
        if not trace.checked.ok:
            print(f"the result is wrong, and what was counted may be too: {trace.checked.reason}")
    if traces:
        print(NOTE)


def _tells(line: Line, instructions: int) -> bool:
    return bool(line.requests or line.waits or line.instructions >= _SHARE * instructions)


def _rows(trace: Trace, shown: Sequence[bool]) -> Iterator[Mapping[str, str]]:
    """Yield the rows of the lines that are shown, below the name of their file."""
    from ferrum_numba.tracing.table import rows_of

    *rows, total = rows_of(trace.lines)
    file = ""
    for wanted, row in zip(shown, rows, strict=True):
        if not wanted:
            continue
        name, _, number = row["line"].rpartition(":")
        if name != file:
            file = name
            yield {"line": file}
        yield {**row, "line": f"{number:>4} {row['source']}"}
    yield total


def _table(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield lines of text: numbers to the right, and the source cut to what they leave."""
    from ferrum_numba.tracing.table import COLUMNS

    columns = [column for column in COLUMNS if column not in ("line", "source")]
    widths = {c: max(len(c), *(len(row.get(c, "")) for row in rows)) for c in columns}
    width = shutil.get_terminal_size((NARROW, 0)).columns or NARROW
    room = max(width - sum(len(_GAP) + one for one in widths.values()), 20)
    room = min(room, max(len(row["line"]) for row in rows))
    for row in ({"line": "line", **{c: c for c in columns}}, *rows):
        text = printable(row["line"])
        text = text if len(text) <= room else f"{text[: room - 1]}…"
        cells = (f"{row.get(column, ''):>{widths[column]}}" for column in columns)
        yield _GAP.join((f"{text:<{room}}", *cells)).rstrip()
