"""What was measured on a host, written with what is needed to believe it."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ferrum_numba.results.file import write_json
from ferrum_numba.results.provenance import source_state, versions

SCHEMA = 1


def save(
    path: Path, command: str, words: Sequence[str], rows: Iterable[Mapping[str, Any]], **more: Any
) -> None:
    """Write rows to a file.

    command, words: that was run, and its arguments
    more:           what else the environment was
    """
    commit, dirty = source_state()
    head = {
        "schema": SCHEMA,
        "environment": {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "cpu": processor(),
            "versions": versions(),
            "commit": commit,
            "dirty": dirty,
            # by what they are called, wherever they lie
            "command": " ".join((command, *(Path(word).name for word in words))),
            **more,
        },
    }
    write_json(path, head, "rows", [_rounded(row) for row in rows])


def processor() -> str:
    """Return the processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads" if names else platform.processor()


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value
