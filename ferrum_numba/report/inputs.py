"""What a report reads: result files that are what they say, or one sentence about what is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ferrum_numba.errors import StoreError
from ferrum_numba.results import ResultFile, Row, load

# of a time, for what a file's six digits round away
ROUNDING = 1e-4


def checked_results(path: str | Path, gpu: str | None = None, op: str | None = None) -> ResultFile:
    """Read a result file for a report.

    gpu: key of the GPU that it must be of; any if None
    op:  that it must have results of alone; any if None

    Raises:
        StoreError: missing, empty, damaged, of another schema, GPU or Op, or its times are not
                    those of its samples; names the row.
    """
    if Path(path).is_file() and not Path(path).stat().st_size:
        raise StoreError(f"{path}: is empty")
    file = load(path)
    if not file.rows:
        raise StoreError(f"{path}: has no rows")
    key = str((file.environment.get("gpu_facts") or {}).get("key", ""))
    if gpu is not None and key and key != gpu:
        raise StoreError(f"{path}: it is of the GPU {key}, where results of {gpu} belong")
    others = {row.op for row in file.rows} - {op}
    if op is not None and others:
        has = ", ".join(sorted(others))
        raise StoreError(f"{path}: it is of the Op {has}, where results of {op} belong")
    for number, row in enumerate(file.rows):
        error = _contradiction(row)
        if error:
            raise StoreError(f"{path}: row {number}: {error}")
    return file


def _contradiction(row: Row) -> str | None:
    """Return why a row's time cannot be its samples': it is outside of their middle half."""
    if not row.samples or not row.us > 0:
        return None
    low, high = _middle(row.samples)
    if not low * (1 - ROUNDING) <= row.us <= high * (1 + ROUNDING):
        return (
            f"us is {row.us:g}, and half of its samples are between {low:g} and {high:g}: "
            "they contradict each other"
        )
    return None


def _middle(samples: Sequence[float]) -> tuple[float, float]:
    """Return the quartiles, each as the sample beyond it."""
    low = np.percentile(samples, 25, method="lower")
    high = np.percentile(samples, 75, method="higher")
    return float(low), float(high)
