"""Result files: what was measured, on what, by what; the only memory of the tuner and the report.

    {"schema": 1, "environment": {...}, "earlier": [...], "rows": [{...}, ...]}

`environment` is that of the last run; rows of earlier runs name theirs in `earlier` by its date, in
their field `run`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ferrum_numba import door, whole
from ferrum_numba.errors import StoreError
from ferrum_numba.results.display import of_rows
from ferrum_numba.results.row import Row
from ferrum_numba.results.validate import validate
from ferrum_numba.shown import Part, Shown

SCHEMA = 1


@dataclass(repr=False)
class ResultFile(Shown):
    """The contents of a result file.

    environment: of the last run, as `environment` returns it
    earlier:     environments of earlier runs that rows still come from
    """

    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    earlier: list[dict[str, Any]] = field(default_factory=list)

    def environment_of(self, row: Row) -> dict[str, Any]:
        """Return the environment that a row was measured in."""
        for candidate in self.earlier:
            if candidate["date"] == row.run:
                return candidate
        return self.environment

    def parts(self) -> Iterable[Part]:
        """Return the winner of every problem."""
        return of_rows(self.environment, self.rows)

    def __repr__(self) -> str:
        return str(self)


def merge_rows(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Return the old rows, each replaced by the new row of its key, then what is only new."""
    merged = {row.key: row for row in old}
    merged.update({row.key: row for row in new})
    return list(merged.values())


def merge(old: ResultFile, new: ResultFile) -> ResultFile:
    """Return both files as one: the newer rows and environment, and what old rows came from."""
    rows = merge_rows(old.rows, new.rows)
    runs = {row.run for row in rows}
    known = {env["date"]: env for env in [*old.earlier, old.environment, *new.earlier]}
    known.pop(new.environment["date"], None)
    earlier = [env for date, env in sorted(known.items()) if date in runs]
    return ResultFile(new.environment, rows, earlier)


def load_json(path: str | Path, schema: int) -> dict[str, Any]:
    """Read an object from a file of one schema.

    Raises:
        StoreError: missing, no JSON, or of another schema.
    """
    try:
        found = door.read_json(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{path}: is not JSON: {error}") from error
    if (
        not isinstance(found, dict)
        or type(found.get("schema")) is not int
        or (found["schema"] != schema)
    ):
        got = found.get("schema") if isinstance(found, dict) else type(found).__name__
        raise StoreError(f"{path}: needs schema {schema}, got {door.quoted(got)}")
    return found


def load(path: str | Path) -> ResultFile:
    """Read a result file.

    Raises:
        StoreError: missing, damaged or of another schema; names the row and the field.
    """
    found = {"environment": {}, "rows": [], "earlier": [], **load_json(path, SCHEMA)}
    validate(found, str(path))
    last = found["environment"]["date"]
    # rows that name no run are of the last one
    rows = [Row.from_json({**row, "run": row.get("run") or last}) for row in found["rows"]]
    file = ResultFile(found["environment"], rows, found["earlier"])
    file.rows = [replace(row, board=file.environment_of(row)["uuid"] or "") for row in rows]
    return file


def save(path: str | Path, file: ResultFile) -> None:
    """Write a result file at once: a reader sees the old one or the new one, never a part.

    Raises:
        StoreError: a field is wrong, or the folder cannot be made or written.
    """
    head = {
        "schema": SCHEMA,
        "environment": plain(file.environment),
        "earlier": plain(file.earlier),
    }
    rows = [plain(row.to_json()) for row in file.rows]
    validate({**head, "rows": rows}, str(path))
    write_json(path, head, "rows", rows)


def write_json(path: str | Path, head: Mapping[str, Any], name: str, rows: Iterable[Any]) -> None:
    """Write an object that ends in a list, one item of it a line; at once, never a part.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    start = json.dumps(head, indent=1, ensure_ascii=False)
    # a row a line: a change of one result is a change of one line
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    try:
        write_text(Path(path), f'{start[:-2]},\n "{name}": [\n  {lines}\n ]\n}}\n')
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file at once: a reader sees the old one or the new one, never a part.

    Raises:
        OSError: the folder cannot be made or written; nothing of the new file is there.
    """
    whole.write_bytes(path, text.encode())


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: six digits, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
