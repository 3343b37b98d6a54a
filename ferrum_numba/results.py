"""Result files: what was measured, on what, by what; the only memory of the tuner and the report.

    {"schema": 1, "environment": {...}, "earlier": [...], "rows": [{...}, ...]}

A row is one kernel with one config on one problem in one regime. `environment` is that of the last
run; rows of earlier runs name theirs in `earlier` by its date, in their field `run`.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba.errors import StoreError

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

SCHEMA = 1
Row = dict[str, Any]

STATUSES = frozenset(
    {
        "measured",  # checked, timed in full
        "slow",  # checked, dropped after a quick look: more than twice the best time
        "pruned",  # built, not run: it does not fit the GPU
        "refused",  # the kernel cannot run the problem
        "build failed",
        "wrong",  # differs from the reference, or is faster than the machine can be
        "failed",  # the driver or the process died of it
        "timeout",
    }
)

_NUMBER = (int, float, type(None))
_COUNT = (int, type(None))
# field -> types it may have
FIELDS: dict[str, tuple[type, ...]] = {
    "kernel": (str,), "op": (str,), "problem": (dict,), "config": (dict,), "arch": (str,),
    "regime": (str,), "us": _NUMBER, "us_low": _NUMBER, "us_high": _NUMBER, "samples": (list,),
    "gbps": _NUMBER, "tflops": _NUMBER, "bound_us": _NUMBER, "fraction": _NUMBER,
    "rel_error": _NUMBER, "max_error": _NUMBER, "ok": (bool,), "status": (str,), "reason": (str,),
    "registers": _COUNT, "spill_bytes": _COUNT, "smem_bytes": _COUNT, "blocks_per_sm": _COUNT,
    "source_hash": (str,), "seed": (int,),
}  # fmt: skip
ENVIRONMENT = (
    "gpu", "uuid", "driver", "versions", "commit", "dirty", "date", "command", "clocks", "policy",
    "gpu_facts",
)  # fmt: skip
PACKAGES = (
    "numpy", "numba", "numba-cuda", "cuda-core", "cuda-bindings", "nvidia-nvvm",
    "nvidia-nvjitlink",
)  # fmt: skip


@dataclass
class ResultFile:
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
            if candidate["date"] == row.get("run"):
                return candidate
        return self.environment


def environment(
    gpu: Gpu, policy: Any, command: Sequence[str], *, clocks: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what a result needs to be believed: machine, versions, source, date and policy.

    Args:
        gpu:     facts of the GPU
        policy:  dataclass of how it was measured
        command: command line, as `sys.argv`
        clocks:  MHz at the start of the run, by name
    """
    commit, dirty = _source_state()
    return {
        "gpu": gpu.name,
        "uuid": gpu.uuid,
        "driver": driver_version(),
        "versions": versions(),
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(UTC).isoformat(timespec="milliseconds"),
        # by what it is called, wherever it is installed
        "command": " ".join(("ferrum-numba", *command[1:])),
        "clocks": dict(clocks or {}),
        "policy": asdict(policy),
        "gpu_facts": asdict(gpu),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of everything between the source and the cubin; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": _cuda_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _cuda_version() -> str | None:
    """Return the newest CUDA the driver supports; needs no initialised driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return None if failed else f"{version.value // 1000}.{version.value % 1000 // 10}"


def driver_version() -> str | None:
    """Return the driver's version, such as 580.82.07; None where there is no driver."""
    text = ctypes.create_string_buffer(80)
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2():
        return None
    failed = nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
    nvml.nvmlShutdown()
    return None if failed else text.value.decode()


def _source_state() -> tuple[str | None, bool | None]:
    """Return (commit, dirty) of the checkout this file belongs to, else of FERRUM_NUMBA_COMMIT."""
    here = Path(__file__).parent
    # an installation inside somebody else's checkout must not report that one's commit
    if _git(here, "ls-files", "--error-unmatch", "errors.py") is not None:
        commit, changes = _git(here, "rev-parse", "HEAD"), _git(here, "status", "--porcelain")
        return commit, None if changes is None else bool(changes)
    given = os.environ.get("FERRUM_NUMBA_COMMIT")
    if not given:
        return None, None
    return given.removesuffix("-dirty"), given.endswith("-dirty")


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def same(left: object, right: object) -> bool:
    """Tell whether two JSON-like values are equal once written and read."""
    return _text(left) == _text(right)


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def key(row: Row) -> tuple[str, ...]:
    """Return what a row is about; of two rows with one key, the newer holds.

    The source hash is not part of it: a kernel whose source changed is measured anew, and the time
    of a program that no longer exists must not win.
    """
    return (
        row["op"], row["kernel"], _text(row["problem"]), _text(row["config"]), row["regime"],
    )  # fmt: skip


def merge_rows(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Return the old rows, each replaced by the new row of its key, then what is only new."""
    merged = {key(row): row for row in old}
    merged.update({key(row): row for row in new})
    return list(merged.values())


def merge(old: ResultFile, new: ResultFile) -> ResultFile:
    """Return both files as one: the newer rows and environment, and what old rows came from."""
    rows = merge_rows(old.rows, new.rows)
    runs = {row.get("run") for row in rows}
    known = {env["date"]: env for env in [*old.earlier, old.environment, *new.earlier]}
    known.pop(new.environment["date"], None)
    earlier = [env for date, env in sorted(known.items()) if date in runs]
    return ResultFile(new.environment, rows, earlier)


def num_tiles(row: Mapping[str, Any], m: int) -> int:
    """Return how many tiles a row's config cuts m rows into: of `tile_m`, or of one row each.

    A tile takes as long however many of its rows are used.
    """
    return -(-m // int(row["config"].get("tile_m", 1)))


def rank(row: Mapping[str, Any]) -> tuple[bool, float]:
    """Return a sort key of times: those of a final, taken in turn, come before any taken alone."""
    return row.get("stage") != "final", float(row["us"])


def best(rows: Iterable[Row]) -> list[Row]:
    """Return the fastest correct row of every (op, kernel, problem, regime), by `rank`."""
    fastest: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row["status"] != "measured" or not row["ok"]:
            continue
        about = (row["op"], row["kernel"], _text(row["problem"]), row["regime"])
        if about not in fastest or rank(row) < rank(fastest[about]):
            fastest[about] = row
    return list(fastest.values())


def load(path: str | Path) -> ResultFile:
    """Read a result file.

    Raises:
        StoreError: missing, damaged or of another schema; names the row and the field.
    """
    try:
        found = json.loads(Path(path).read_text())
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{path}: is not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        got = found.get("schema") if isinstance(found, dict) else type(found).__name__
        raise StoreError(f"{path}: needs schema {SCHEMA}, got {got!r}")
    file = ResultFile(found.get("environment", {}), found.get("rows", []), found.get("earlier", []))
    validate(file, str(path))
    for row in file.rows:
        row.setdefault("run", file.environment["date"])
    return file


def save(path: str | Path, file: ResultFile) -> None:
    """Write a result file at once: a reader sees the old one or the new one, never a part.

    Raises:
        StoreError: a field is wrong, or the folder cannot be made or written.
    """
    path = Path(path)
    rounded = ResultFile(
        _plain(file.environment), [_plain(row) for row in file.rows], _plain(file.earlier)
    )
    validate(rounded, str(path))
    head = json.dumps(
        {"schema": SCHEMA, "environment": rounded.environment, "earlier": rounded.earlier},
        indent=1, ensure_ascii=False,
    )  # fmt: skip
    # a row a line: a change of one result is a change of one line
    rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rounded.rows)
    try:
        _replace(path, f'{head[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n')
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}") from error


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # a plain file of this process: whoever may read the folder's other files may read this one
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: six digits, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def validate(file: ResultFile, name: str = "results") -> None:
    """Check every field.

    Raises:
        StoreError: names the file, the row and the field.
    """
    for part, wanted in (("environment", dict), ("rows", list), ("earlier", list)):
        if not isinstance(getattr(file, part), wanted):
            raise StoreError(f"{name}: {part} must be a {wanted.__name__}")
    for part, found in [("environment", file.environment)] + [
        (f"earlier[{i}]", found) for i, found in enumerate(file.earlier)
    ]:
        missing = [word for word in ENVIRONMENT if not isinstance(found, dict) or word not in found]
        if missing:
            raise StoreError(f"{name}: {part} has no {', '.join(missing)}")
    for i, row in enumerate(file.rows):
        problem = _row_error(row)
        if problem:
            raise StoreError(f"{name}: row {i}: {problem}")


def _row_error(row: object) -> str | None:
    if not isinstance(row, dict):
        return f"must be an object, got {type(row).__name__}"
    for name, kinds in FIELDS.items():
        if name not in row:
            return f"has no {name}"
        value = row[name]
        wrong_bool = isinstance(value, bool) and bool not in kinds
        if not isinstance(value, kinds) or wrong_bool:
            wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            return f"{name} must be {wanted}, got {value!r}"
    if row["status"] not in STATUSES:
        return f"status must be one of {', '.join(sorted(STATUSES))}, got {row['status']!r}"
    if row["status"] == "measured" and (not row["samples"] or row["us"] is None):
        return "is measured and has no us or no samples"
    return _times_error(row) or _sizes_error(row)


def _times_error(row: Row) -> str | None:
    for name in ("us", "us_low", "us_high"):
        if row[name] is not None and not _positive(row[name]):
            return f"{name} must be above 0, got {row[name]!r}"
    for i, sample in enumerate(row["samples"]):
        if not _positive(sample):
            return f"samples[{i}] must be a number above 0, got {sample!r}"
    return None


def _positive(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 < value < math.inf


def _sizes_error(row: Row) -> str | None:
    for part in ("problem", "config"):
        for name, value in row[part].items():
            if not isinstance(value, str | int | float | None):
                return f"{part}.{name} must be text, a number, a bool or null, got {value!r}"
    for name in ("M", "N", "K"):
        value = row["problem"].get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            return f"problem.{name} must be an integer above 0, got {value!r}"
    return None
