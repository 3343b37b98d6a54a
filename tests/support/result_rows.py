"""Rows of results and the environment they come from, for tests."""

from dataclasses import dataclass, replace

from ferrum_numba import results
from ferrum_numba.gpu import KNOWN
from ferrum_numba.results import Row


@dataclass(frozen=True)
class Policy:
    samples: int = 3


def make_environment(date="2026-01-01T00:00:00.000+00:00"):
    return {
        **results.environment(KNOWN["h200"], Policy(), ["ferrum-numba", "tune"]),
        "date": date,
    }


def json_row(kernel="marlin", us=10.0, M=1, status="measured", **changes):
    row = {
        "kernel": kernel, "op": "w4a16_gemm", "problem": {"M": M, "N": 64, "K": 64},
        "config": {"tile_m": 16}, "arch": "sm_90a", "regime": "cold", "us": us, "us_low": us,
        "us_high": us, "samples": [us] * 3, "gbps": 1.0, "tflops": 1.0, "bound_us": 5.0,
        "fraction": 0.5, "rel_error": 1e-4, "max_error": 1e-4, "ok": True, "status": status,
        "reason": "", "registers": 64, "spill_bytes": 0, "smem_bytes": 0, "blocks_per_sm": 2,
        "source_hash": "abc", "seed": 0,
    }  # fmt: skip
    return {**row, **changes}


def make_row(*args, **changes):
    """Return the row that a file with these fields has; `board` is its environment's."""
    board = changes.pop("board", "")
    return replace(Row.from_json(json_row(*args, **changes)), board=board)
