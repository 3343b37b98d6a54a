"""What is to be seen of results, as parts of `shown`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ferrum_numba.results.winners import Winner, winners
from ferrum_numba.shown import (
    Facts,
    Grid,
    Part,
    Sentences,
    differences,
    number,
    shared,
    unlike,
    words,
)
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.results.decisions import Decision
    from ferrum_numba.results.pairs import Pair
    from ferrum_numba.results.row import Row
    from ferrum_numba.results.statistics import Verdict
    from ferrum_numba.results.unmeasured import CheckRow, Planned

COLUMNS = (
    "problem", "kernel", "config", "regime", "µs [low, high]", "GB/s", "TFLOP/s", "% of bound",
    "ties",
)  # fmt: skip
PAIR_COLUMNS = ("problem", "regime", "old", "new", "old µs", "new µs", "new / old", "verdict", "")
PLAN_COLUMNS = (
    "config", "registers", "spilled, bytes", "stack, bytes", "fp64", "shared memory, bytes",
    "blocks an SM", "instructions", "expected µs", "reason",
)  # fmt: skip
CHECK_COLUMNS = ("problem", "config", "SMs", "how", "status", "relative error", "max error")
# opcodes of the tensor cores, which are told apart
TENSOR = frozenset(("HMMA", "IMMA", "QMMA", "HGMMA", "IGMMA", "QGMMA"))


@dataclass(frozen=True)
class Usual:
    """What needs no word in a table.

    configs:  what a kernel runs an untuned problem with, by kernel and problem in words
    problems: the fields of a problem that have a default, by kernel
    """

    configs: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    problems: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def config(self, row: CheckRow | Planned) -> str:
        """Return in words how the config of a row is not the default."""
        return differences(row.config, self.configs.get((row.kernel, words(row.problem)), {}))

    def problem(self, row: CheckRow | Planned) -> str:
        """Return in words what of the problem of a row is not at its default."""
        return words(unlike(row.problem, self.problems.get(row.kernel, {})))


def of_rows(environment: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[Part]:
    """Yield the winner of every problem, and what all configs of a kernel have alike."""
    found = winners(rows)
    alike = _alike((winner.row.kernel, winner.row.config) for winner in found)
    sizes = shared([winner.row.problem for winner in found])
    count = counted(len(rows), "row")
    title = f"{environment.get('gpu', '')}, {environment.get('date', '')}: {count}"
    cells = (_winner(one, sizes, alike.get(one.row.kernel, {})) for one in found)
    yield Grid(title, COLUMNS, tuple(cells))
    yield Sentences(tuple(_said_alike(sizes, alike)))


def of_row(row: Row) -> Facts:
    """Return what is known of a row."""
    status = f"{row.status}: {row.reason}" if row.reason else row.status
    known = {
        "problem": words(row.problem),
        "config": words(row.config),
        "regime": row.regime,
        "µs [low, high]": _time(row),
        "GB/s": number(row.gbps),
        "TFLOP/s": number(row.tflops),
        "% of bound": number(100 * row.fraction),
        "registers": number(row.registers),
        "shared memory, bytes": number(row.smem_bytes),
        "relative error": number(row.rel_error),
        "status": status,
        "untrusted": row.untrusted,
        "run": row.run,
    }
    return Facts(f"{row.kernel}, {row.op}", known)


def of_verdict(verdict: Verdict) -> Sentences:
    """Return a verdict with its ratio and interval."""
    low, high = number(verdict.low), number(verdict.high) or "∞"
    return Sentences((f"{verdict.name} {number(verdict.ratio) or '?'} [{low}, {high}]",))


def of_pairs(pairs: Sequence[Pair]) -> Grid:
    """Return a comparison, a line a problem, with how many of each verdict."""
    counts = Counter(pair.verdict.name for pair in pairs)
    title = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    sizes = shared([pair.problem for pair in pairs])
    alike = f", all with {words(sizes)}" if sizes else ""
    cells = tuple(_pair(pair, sizes) for pair in pairs)
    return Grid(f"{title}, of the new against the old{alike}", PAIR_COLUMNS, cells)


def of_decisions(decisions: Sequence[Decision]) -> Iterator[Part]:
    """Yield what was decided, a line a problem and kernel."""
    alike = _alike((one.kernel, one.config) for one in decisions)
    sizes = shared([one.problem for one in decisions])
    cells = tuple(
        (_less(one.problem, sizes), one.kernel, _less(one.config, alike.get(one.kernel, {})),
         number(one.us), str(one.place + 1))
        for one in decisions
    )  # fmt: skip
    columns = ("problem", "kernel", "config", "µs", "place")
    yield Grid(counted(len(decisions), "decision"), columns, cells)
    yield Sentences(tuple(_said_alike(sizes, alike)))


def of_plan(rows: Sequence[Planned], usual: Usual) -> Iterator[Part]:
    """Yield a table for each kernel and problem, remarks, and why others do not fit."""
    groups: dict[tuple[str, str], list[Planned]] = {}
    for row in rows:
        if row.registers is not None or row.status == "build failed":
            groups.setdefault((row.kernel, usual.problem(row)), []).append(row)
    for (kernel, problem), some in groups.items():
        bound = f"at least {number(some[0].bound_us)} µs, modelled"
        cells = tuple(_planned(row, usual) for row in some)
        yield Grid(f"{kernel} on {problem}: {bound}", PLAN_COLUMNS, cells)
    remarks = dict.fromkeys(f"{row.kernel}: {one}" for row in rows for one in row.remarks)
    apart = Counter((r.kernel, r.reason) for r in rows if r.status == "does not fit")
    unfit = (f"{n} of {kernel} do not fit: {reason}" for (kernel, reason), n in apart.most_common())
    good = sum(row.status == "ok" for row in rows)
    built = sum(map(len, groups.values()))
    count = f"{good} of {counted(built, 'compiled candidate')} worth measuring"
    yield Sentences((*remarks, *unfit, count))


def of_planned(row: Planned) -> Facts:
    """Return what is known of a candidate."""
    cells = dict(zip(PLAN_COLUMNS[1:], _planned(row, Usual())[1:], strict=True))
    known = {"problem": words(row.problem), "config": words(row.config), "status": row.status}
    at_least = {"at least µs, modelled": number(row.bound_us)}
    remarks = {"remarks": "\n".join(row.remarks)}
    return Facts(f"{row.kernel} for {row.arch}", {**known, **at_least, **cells, **remarks})


def of_checks(rows: Sequence[CheckRow], usual: Usual) -> Iterator[Part]:
    """Yield a table for each kernel, what is wrong, and how many are right."""
    for kernel in dict.fromkeys(row.kernel for row in rows):
        some = [row for row in rows if row.kernel == kernel]
        yield Grid(kernel, CHECK_COLUMNS, tuple(_check(row, usual) for row in some))
    wrong = (f"{r.kernel} {usual.problem(r)}: {r.reason}" for r in rows if not r.ok)
    remarks = dict.fromkeys(f"remark: {r.kernel}: {one}" for r in rows for one in r.remarks)
    passed = sum(row.ok for row in rows)
    yield Sentences((*wrong, *remarks, f"{passed} of {counted(len(rows), 'check')} passed"))


def _alike(configs: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return what all configs of a kernel have alike."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for kernel, config in configs:
        found.setdefault(kernel, []).append(config)
    return {kernel: shared(some) for kernel, some in found.items()}


def _said_alike(sizes: Mapping[str, Any], alike: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if sizes:
        yield f"all problems: {words(sizes)}"
    yield from (f"all of {kernel}: {words(config)}" for kernel, config in alike.items() if config)


def _less(values: Mapping[str, Any], alike: Mapping[str, Any]) -> str:
    """Return in words what of some values is not alike in all."""
    return words({name: value for name, value in values.items() if name not in alike})


def _winner(winner: Winner, sizes: Mapping[str, Any], alike: Mapping[str, Any]) -> tuple[str, ...]:
    row = winner.row
    return (
        _less(row.problem, sizes), row.kernel, _less(row.config, alike), row.regime, _time(row),
        number(row.gbps), number(row.tflops), number(100 * row.fraction),
        str(len(winner.ties) + len(winner.undecided)),
    )  # fmt: skip


def _pair(pair: Pair, sizes: Mapping[str, Any]) -> tuple[str, ...]:
    old, new, verdict = pair.old, pair.new, pair.verdict
    return (
        _less(pair.problem, sizes), pair.regime, old.kernel if old else "",
        new.kernel if new else "", _time(old) if old else "", _time(new) if new else "",
        f"{number(verdict.ratio)} [{number(verdict.low)}, {number(verdict.high)}]",
        verdict.name, pair.why,
    )  # fmt: skip


def _planned(row: Planned, usual: Usual) -> tuple[str, ...]:
    reason = row.reason if row.status == "ok" else f"{row.status}: {row.reason}"
    return (
        usual.config(row), number(row.registers), number(row.spill_bytes),
        number(row.stack_bytes), number(row.fp64), number(row.smem_bytes),
        number(row.blocks_per_sm), _mix(row.sass), number(row.estimate_us, 3), reason,
    )  # fmt: skip


def _mix(sass: Mapping[str, int] | None) -> str:
    """Return how many instructions there are, and of those the tensor cores'."""
    if not sass:
        return ""
    tensor = (f"{count} {name}" for name, count in sass.items() if name in TENSOR)
    return ", ".join([str(sum(sass.values())), *tensor])


def _check(row: CheckRow, usual: Usual) -> tuple[str, ...]:
    return (
        usual.problem(row), usual.config(row), number(row.num_sms), row.how, row.status,
        number(row.rel_error, 2), number(row.max_error, 2),
    )  # fmt: skip


def _time(row: Row) -> str:
    if not math.isfinite(row.us):
        return ""
    return f"{number(row.us)} [{number(row.us_low)}, {number(row.us_high)}]"
