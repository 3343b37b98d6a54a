"""Landscapes in Kernel Tuner's T4 format, in and out.

T4 has an entry a config: its tunables, times in ms, and why it is invalid if it is. What it has no
place for, the kernel, the problem and the GPU, stands beside the entries under `metadata`, which
its schema allows. A file of another tool has none: then a kernel and a problem are named by hand.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ferrum_numba import door
from ferrum_numba.contract import Kernel, Problem, describe
from ferrum_numba.errors import StoreError
from ferrum_numba.gpu import facts_error
from ferrum_numba.results import Row
from ferrum_numba.results.file import plain, write_text
from ferrum_numba.results.row import MEASURED, problem_key
from ferrum_numba.results.validate import row_error

VERSION = "1.0.0"
# how a time is taken where nobody says
COLD = "cold"
# status of a row -> T4's word
INVALIDITY = {
    MEASURED: "correct", "slow": "correct", "wrong": "correctness", "build failed": "compile",
    "failed": "runtime", "timeout": "timeout", "pruned": "constraints", "refused": "constraints",
}  # fmt: skip
# and back: what a row of another tool becomes
STATUS = {
    "correct": MEASURED, "correctness": "wrong", "compile": "build failed", "runtime": "failed",
    "timeout": "timeout", "constraints": "pruned",
}  # fmt: skip
US_PER = {"us": 1.0, "ms": 1e3, "s": 1e6, "ns": 1e-3}


def to_t4(rows: Sequence[Row], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of one kernel on one problem as T4 has them."""
    first = rows[0]
    return {
        "schema_version": VERSION,
        "metadata": plain({
            "kernel": first.kernel, "op": first.op, "problem": first.problem,
            "regime": first.regime, "gpu": environment.get("gpu"),
            "uuid": environment.get("uuid"), "driver": environment.get("driver"),
            "versions": environment.get("versions"), "gpu_facts": environment.get("gpu_facts"),
        }),
        "results": [_result(row) for row in rows if row.config],
    }  # fmt: skip


def _result(row: Row) -> dict[str, Any]:
    timed = bool(row.samples)
    found: dict[str, Any] = {
        "timestamp": row.run,
        "configuration": dict(row.config),
        "objectives": ["time"],
        "times": {"runtimes": [us / 1e3 for us in row.samples]},
        "invalidity": INVALIDITY[row.status],
        "correctness": 1 if row.ok else 0,
        "measurements": [{"name": "time", "value": row.us / 1e3, "unit": "ms"}] if timed else [],
    }
    for name in ("registers", "spill_bytes", "smem_bytes", "blocks_per_sm"):
        value = getattr(row, name)
        if value is not None:
            found["measurements"].append({"name": name, "value": value, "unit": ""})
    return found


def write(folder: str | Path, rows: Iterable[Row], environment: Mapping[str, Any]) -> list[Path]:
    """Write a file for each kernel and problem, and return their paths.

    Of another regime than cold the file's name ends in it.

    Raises:
        StoreError: the folder cannot be written.
    """
    groups: dict[tuple[str, object, str], list[Row]] = {}
    for row in rows:
        if not row.peer:
            about = row.kernel, problem_key(row.problem), row.regime
            groups.setdefault(about, []).append(row)
    root, paths = Path(folder), []
    try:
        for (kernel, _, regime), group in groups.items():
            suffix = "" if regime == COLD else f"-{regime}"
            path = root / f"{kernel}-{_slug(group[0].problem)}{suffix}.json"
            write_text(path, json.dumps(to_t4(group, environment), indent=1))
            paths.append(path)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}") from error
    return paths


def read(
    path: str | Path, kernels: Sequence[Kernel], problems: Sequence[Problem] = ()
) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of a T4 file, and the facts of its GPU, empty where it does not say.

    Args:
        kernels:  of which one is the file's; the only one, where the file does not say
        problems: likewise

    Raises:
        StoreError: it is no T4 file, an entry is none, or of an unknown kernel or problem.
    """
    try:
        found = door.read_json(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{path}: is not JSON: {error}") from error
    if not is_t4(found):
        raise StoreError(f"{path}: is not in the T4 format: it has no schema_version and results")
    metadata = found.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise StoreError(f"{path}: metadata must be an object, got {type(metadata).__name__}")
    facts = metadata.get("gpu_facts") or {}
    wrong = facts_error(facts) if facts else None
    if wrong:
        raise StoreError(f"{path}: metadata.gpu_facts {wrong}")
    kernel, problem = _about(path, metadata, kernels, problems)
    rows = [
        _row(path, i, entry, kernel, problem, str(metadata.get("regime", COLD)))
        for i, entry in enumerate(found["results"])
    ]
    return rows, dict(facts)


def is_t4(found: object) -> bool:
    """Tell whether a JSON value looks like a T4 file."""
    return (
        isinstance(found, dict)
        and isinstance(found.get("schema_version"), str)
        and isinstance(found.get("results"), list)
    )


def _about(
    path: str | Path,
    metadata: Mapping[str, Any],
    kernels: Sequence[Kernel],
    problems: Sequence[Problem],
) -> tuple[Kernel, Mapping[str, Any]]:
    named = [kernel for kernel in kernels if kernel.name == metadata.get("kernel")]
    if "kernel" not in metadata and len(kernels) == 1:
        named = list(kernels)
    if not named:
        whose = metadata.get("kernel")
        raise StoreError(
            f"{path}: is of the kernel {whose}, which is not known here" if whose else
            f"{path}: does not say of which kernel it is; name one"
        )  # fmt: skip
    if "problem" in metadata:
        return named[0], metadata["problem"]
    if len(problems) != 1:
        raise StoreError(f"{path}: does not say of which problem it is; name one by --problem")
    return named[0], describe(problems[0])


def _row(
    path: str | Path, i: int, entry: Any, kernel: Kernel, problem: Mapping[str, Any], regime: str
) -> Row:
    wrong = _entry_error(entry)
    if wrong:
        raise StoreError(f"{path}: results[{i}] {wrong}")
    samples = _samples_us(entry)
    more = {one["name"]: one.get("value") for one in entry.get("measurements", ())}
    status = STATUS[entry["invalidity"]]
    if status == MEASURED and not samples:
        raise StoreError(f"{path}: results[{i}] is correct and has no time")
    row = Row(
        kernel.name, kernel.op.name, problem, entry["configuration"], regime=regime,
        us=_median(samples), samples=tuple(samples), ok=bool(entry["correctness"]),
        status=status, reason="" if status == MEASURED else entry["invalidity"],
        registers=more.get("registers"), spill_bytes=more.get("spill_bytes"),
        smem_bytes=more.get("smem_bytes"), blocks_per_sm=more.get("blocks_per_sm"),
        stage="full", run=str(entry.get("timestamp", "")),
    )  # fmt: skip
    wrong = row_error(plain(row.to_json()))
    if wrong:
        raise StoreError(f"{path}: results[{i}]: {wrong}")
    return row


def _entry_error(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return f"must be an object, got {type(entry).__name__}"
    kinds = {"configuration": dict, "times": dict, "invalidity": str, "correctness": (int, float)}
    for name, kind in kinds.items():
        if not isinstance(entry.get(name), kind):  # type: ignore[arg-type]
            return f"has no {name}, or one of a wrong kind"
    if entry["invalidity"] not in STATUS:
        return f"has the invalidity {door.quoted(entry['invalidity'])}, which T4 has not"
    taken = entry.get("measurements", [])
    if not isinstance(taken, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in taken
    ):
        return "has measurements that are no list of objects with a name"
    runtimes = entry["times"].get("runtimes") or []
    if not isinstance(runtimes, list):
        return f"has runtimes that are no list: {door.quoted(runtimes)}"
    times = [one.get("value") for one in taken if one["name"] == "time"]
    for value in (*runtimes, *times):
        if not isinstance(value, int | float) or isinstance(value, bool):
            return f"has a time that is no number: {door.quoted(value)}"
    return None


def _samples_us(entry: Mapping[str, Any]) -> list[float]:
    runtimes = entry["times"].get("runtimes") or ()
    if runtimes:
        return [float(ms) * 1e3 for ms in runtimes]
    timed = [m for m in entry.get("measurements", ()) if m.get("name") == "time"]
    return [float(m["value"]) * US_PER.get(str(m.get("unit", "ms")), 1e3) for m in timed]


def _median(samples: Sequence[float]) -> float:
    ordered = sorted(samples)
    if not ordered:
        return math.nan
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[-middle - 1]) / 2


def _slug(problem: Mapping[str, Any]) -> str:
    words = "-".join(f"{name}{value}" for name, value in problem.items())
    return re.sub(r"[^A-Za-z0-9_.-]+", "", words)
