"""What has changed since older results: a verdict a problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ferrum_numba.errors import StoreError
from ferrum_numba.report.arrows import arrows
from ferrum_numba.report.blocks import (
    Block,
    Emphasis,
    Heading,
    Paragraph,
    Table,
    significant,
)
from ferrum_numba.report.pictures import file_names
from ferrum_numba.report.runs import named, runs_of
from ferrum_numba.results import ResultFile, Row, Verdict, compare, size_of, winners
from ferrum_numba.results.row import problem_key
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.report.data import Group

# what times of one board, and of two, may differ by without a meaning
TIE, TWO_BOARDS = 0.01, 0.03
EMPHASIS: Mapping[str, Emphasis] = {"FASTER": "best", "SLOWER": "bad"}


def refuse(
    name: str, old: ResultFile, found: Sequence[Group], coming: frozenset[str] = frozenset()
) -> None:
    """Refuse older results that say nothing about these.

    coming: Ops that are about to be measured

    Raises:
        StoreError: no rows, or of another Op, GPU or regime.
    """
    if not any(row.ok for row in old.rows):
        raise StoreError(f"{name}: it has no row of a kernel that was right")
    for what, theirs, ours in (
        ("GPU", {str(old.environment["gpu"])}, {group.gpu for group in found}),
        ("Op", {row.op for row in old.rows}, {group.op for group in found} | coming),
        ("regime", {row.regime for row in old.rows}, {group.regime for group in found}),
    ):
        # of what is not there yet nothing can be wrong
        if ours and not theirs & ours:
            has = ", ".join(sorted(ours))
            text = f"{name}: it is of the {what} {', '.join(sorted(theirs))}"
            raise StoreError(f"{text}; there are results of {has}")


def difference(
    older: tuple[str, ResultFile], found: Sequence[Group], coming: frozenset[str]
) -> Iterator[Block]:
    """Return the section about older results: how many problems are faster, and each of them."""
    name, old = older
    refuse(name, old, found, coming)
    yield Heading(f"Against {name}")
    runs = runs_of([old])
    yield Paragraph(f"{named(runs, runs)}.", "Older results:")
    for group, file_name in zip(found, file_names(found), strict=True):
        yield from _group(group, old, f"{file_name}-changes")


def _group(group: Group, old: ResultFile, file_name: str) -> Iterator[Block]:
    before = {
        problem_key(winner.row.problem): winner.row
        for winner in winners(row for row in old.rows if row.op == group.op)
        if winner.row.regime == group.regime and old.environment_of(winner.row)["gpu"] == group.gpu
    }
    rows, emphasis, counts = [], [], Counter[str]()
    moved: list[tuple[Row, Row]] = []
    for key, winner in group.winners.items():
        if key in before:
            told = verdict(group, old, before[key], winner.row)
            counts[told.name] += 1
            rows.append(_cells(group, before[key], winner.row, told))
            emphasis.append(EMPHASIS.get(told.name, ""))
            if told.name in EMPHASIS:
                moved.append((before[key], winner.row))
    if not rows:
        if before:
            text = f"none of its {counted(len(before), 'problem')} has a result now."
            yield Paragraph(text, f"{group.title}:")
        return
    words = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    missing = len(before) - len(rows)
    gone = f"; of {counted(missing, 'older problem')} there is no result now" if missing else ""
    yield Paragraph(f"{words} of {counted(len(rows), 'problem')}{gone}.", f"{group.title}:")
    columns = ("shape", group.size_name, "before", "now", "now / before [low, high]", "verdict")
    units = (
        f"µs per call of the fastest; what differs by less than {TIE:.0%}, on two boards "
        f"{TWO_BOARDS:.0%}, is the same"
    )
    order = sorted(range(len(rows)), key=lambda i: (rows[i][5] != "SLOWER", rows[i][5]))
    yield Table(
        f"Changes: {group.title}", group.regime, units, columns, tuple(rows[i] for i in order),
        tuple(emphasis[i] for i in order), group.of(w.row for w in group.winners.values()),
    )  # fmt: skip
    picture = arrows(
        file_name, f"What got faster or slower: {group.title}", moved, group.ceilings_for,
        group.ceilings, group.designs, group.of(now for _, now in moved),
    )  # fmt: skip
    if picture is not None:
        yield picture


def verdict(group: Group, old: ResultFile, before: Row, now: Row) -> Verdict:
    """Return how the fastest time now compares with that before."""
    run = group.runs.get(now.run)
    same_board = run and run.environment.get("uuid") == old.environment_of(before).get("uuid")
    return compare(now.samples, before.samples, TIE if same_board else TWO_BOARDS)


def _cells(group: Group, before: Row, now: Row, told: Verdict) -> tuple[str, ...]:
    size: Any = size_of(now.problem)
    return (
        group.shape(now.problem),
        "" if size is None else str(size),
        f"{significant(before.us)} {before.kernel}",
        f"{significant(now.us)} {now.kernel}",
        f"{told.ratio:.3f} [{told.low:.3f}, {told.high:.3f}]",
        told.name,
    )
