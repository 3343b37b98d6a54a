"""The tables that hold no times: the plan, the checks, where everything came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from ferrum_numba.report.blocks import Emphasis, Table, pairs, span
from ferrum_numba.report.runs import Run, numbers, runs_of
from ferrum_numba.report.sources import Sources
from ferrum_numba.report.tables import scientific
from ferrum_numba.results import CheckRow, Planned
from ferrum_numba.results.row import problem_key
from ferrum_numba.words import counted

MODELLED = (
    "candidates", "status", "with spills", "spill bytes", "registers", "smem KB", "blocks/SM",
    "bound µs",
)  # fmt: skip


def plan_table(sources: Sources) -> Table:
    """Return the plan, a line a kernel; every figure of it is modelled and says so."""
    groups: dict[tuple[str, str, str], list[Planned]] = {}
    for row in sources.plan:
        groups.setdefault((row.op, row.kernel, row.arch), []).append(row)
    rows = tuple((*name, *_plan_row(groups[name])) for name in sorted(groups))
    where = f" for {sources.gpu['name']}" if sources.gpu else ""
    units = (
        "candidates = configs times problems; bytes a thread, registers a thread, KB of 1024 bytes "
        "a block; registers, spills and shared memory are the compiler's, the rest is computed"
    )
    columns = ("op", "kernel", "arch", *(f"{name} (modelled)" for name in MODELLED))
    return Table(f"Plan{where} (modelled)", "none, modelled: nothing ran", units, columns, rows)


def _plan_row(rows: Sequence[Planned]) -> tuple[str, ...]:
    statuses = Counter(row.status for row in rows)
    spilling = [value for value in _known(row.spill_bytes for row in rows) if value]
    smem_bytes = _known(row.smem_bytes for row in rows)
    return (
        str(len(rows)),
        ", ".join(f"{count} {status}" for status, count in statuses.most_common()),
        str(len(spilling)),
        span(spilling),
        span(_known(row.registers for row in rows)),
        span([size / 1024 for size in smem_bytes]),
        span(_known(row.blocks_per_sm for row in rows)),
        span([row.bound_us for row in rows]),
    )


def _known(values: Iterable[int | None]) -> list[float]:
    return [float(value) for value in values if value is not None]


def plan_losers(sources: Sources) -> Table:
    """Return why candidates of the plan would not be measured, most frequent first."""
    found: Counter[tuple[str, str, str]] = Counter()
    for row in sources.plan:
        if row.status != "ok":
            found[row.kernel, row.status, row.reason] += 1
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    rows = tuple((kernel, status, str(n), reason) for (kernel, status, reason), n in ordered)
    columns = ("kernel", "status (modelled)", "candidates (modelled)", "reason (modelled)")
    title = "Candidates that the plan drops (modelled)"
    return Table(title, "none, modelled: nothing ran", "number of candidates", columns, rows)


def check_table(checks: Sequence[CheckRow]) -> Table:
    """Return a line a kernel and way to run it: how many passed, and the largest error of those."""
    found: dict[tuple[str, str], list[CheckRow]] = {}
    for row in checks:
        found.setdefault((row.kernel, row.how), []).append(row)
    rows = tuple((*about, *_outcome(found[about])) for about in sorted(found))
    emphasis: tuple[Emphasis, ...] = tuple(
        "" if all(row.ok for row in found[about]) else "bad" for about in sorted(found)
    )
    units = "relative error ||got - want|| / ||want||, the largest of those that passed"
    names = ("kernel", "how", "passed", "relative error", "problem")
    return Table("Checks against the reference", "none, not timed", units, names, rows, emphasis)


def _outcome(rows: Sequence[CheckRow]) -> tuple[str, str, str]:
    passed = [row for row in rows if row.ok]
    count = f"{len(passed)} of {len(rows)}"
    known = [(row.rel_error, row) for row in passed if row.rel_error is not None]
    if not known:
        return count, "", ""
    error, worst = max(known, key=lambda one: one[0])
    return count, scientific(error), pairs(worst.problem)


def each_check(checks: Sequence[CheckRow]) -> Table:
    """Return a line a check."""
    rows = tuple(
        (row.kernel, row.how, pairs(row.problem), "pass" if row.ok else "FAIL",
         scientific(row.rel_error) if row.ok else "")
        for row in checks
    )  # fmt: skip
    emphasis: list[Emphasis] = ["" if row.ok else "bad" for row in checks]
    columns = ("kernel", "how", "problem", "outcome", "relative error")
    units = "relative error ||got - want|| / ||want||"
    return Table(
        "Each check", "none, not timed", units, columns, rows, tuple(emphasis), folded=True
    )


def check_failures(checks: Sequence[CheckRow]) -> Table:
    """Return every failed check with its reason."""
    rows = tuple(
        (
            row.kernel,
            row.how,
            pairs(row.problem),
            pairs(row.config),
            scientific(row.rel_error),
            row.reason,
        )
        for row in checks
        if not row.ok
    )
    columns = ("kernel", "how", "problem", "config", "rel error", "reason")
    units = "relative error ||got - want|| / ||want||"
    emphasis: list[Emphasis] = ["bad" for _ in rows]
    return Table("Failed checks", "none, not timed", units, columns, rows, tuple(emphasis))


def provenance_tables(sources: Sources) -> list[Table]:
    """Return the runs that rows came from, a line each, and what all of them had."""
    runs = runs_of((*sources.files, *sources.ceilings))
    if not runs:
        return []
    rows = tuple(_runs(alike) for alike in _alike(runs.values()))
    columns = (
        "run", "first begun (UTC)", "board", "uuid", "commit", "driver", "rows", "Ops", "command",
    )  # fmt: skip
    units = "number of rows; a commit with + had changes"
    facts = [dict(_flat(_software(run.environment))) for run in runs.values()]
    names = list(dict.fromkeys(name for one in facts for name in one))
    values = tuple((name, _values(one.get(name, "") for one in facts)) for name in names)
    return [
        Table("Runs", "as their rows say", units, columns, rows),
        Table("Software and policy", "of all runs", "MHz, ms, µs as the names say",
              ("what", "value"), values, folded=True),
    ]  # fmt: skip


def _alike(runs: Iterable[Run]) -> Iterable[list[Run]]:
    """Return runs that follow each other and are one command on one board."""

    def about(run: Run) -> tuple[str, str, str, str]:
        environment = run.environment
        command, driver = environment.get("command", ""), environment.get("driver")
        return run.board, run.commit, str(driver or ""), str(command)

    return [list(alike) for _, alike in groupby(runs, about)]


def _runs(alike: Sequence[Run]) -> tuple[str, ...]:
    environment = alike[0].environment
    return (
        numbers(alike),
        alike[0].date,
        alike[0].board,
        str(environment.get("uuid", "")).removeprefix("GPU-")[:8],
        alike[0].commit,
        str(environment.get("driver") or ""),
        str(sum(run.rows for run in alike)),
        ", ".join(sorted({op for run in alike for op in run.ops})),
        str(environment.get("command", "")),
    )


def _software(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what else makes a result: GPU, versions, policy."""
    facts = environment.get("gpu_facts") or {}
    return {
        "gpu": environment.get("gpu"),
        **{name: facts.get(name) for name in ("arch", "num_sms", "l2_bytes", "clock_mhz")},
        "versions": environment.get("versions") or {},
        "policy": environment.get("policy") or {},
    }


def _values(values: Iterable[str]) -> str:
    """Return the one value that all runs have, or how many runs have which."""
    found = Counter(values)
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{value or 'none'} ({count} runs)" for value, count in found.most_common())


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested names with dots."""
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, "" if value is None else str(value)))
    return found


def covered(checks: Sequence[CheckRow]) -> str:
    """Return how much was checked, in a sentence."""
    problems = len({problem_key(row.problem) for row in checks})
    kernels = len({row.kernel for row in checks})
    each = counted(kernels, "kernel"), counted(problems, "problem")
    return f"{counted(len(checks), 'check')}: {each[0]} on {each[1]}."
