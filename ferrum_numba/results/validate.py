"""What a result file must look like, field by field; read before anything believes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ferrum_numba.door import quoted
from ferrum_numba.errors import StoreError
from ferrum_numba.gpu import Gpu, facts_error
from ferrum_numba.results.row import MEASURED, STATUSES

_NUMBER = (int, float, type(None))
_COUNT = (int, type(None))
# field of every row -> types it may have
FIELDS: dict[str, tuple[type, ...]] = {
    "kernel": (str,), "op": (str,), "problem": (dict,), "config": (dict,), "arch": (str,),
    "regime": (str,), "us": _NUMBER, "us_low": _NUMBER, "us_high": _NUMBER, "samples": (list,),
    "gbps": _NUMBER, "tflops": _NUMBER, "bound_us": _NUMBER, "fraction": _NUMBER,
    "rel_error": _NUMBER, "max_error": _NUMBER, "ok": (bool,), "status": (str,), "reason": (str,),
    "registers": _COUNT, "spill_bytes": _COUNT, "smem_bytes": _COUNT, "blocks_per_sm": _COUNT,
    "source_hash": (str,), "seed": (int,),
}  # fmt: skip
# fields that came later: files from before have rows without them
LATER: dict[str, tuple[type, ...]] = {
    "flops": _NUMBER, "bytes": _NUMBER, "stage": (str,), "run": (str,), "untrusted": (str,),
    "rounds": (list,), "contest": (str,), "round_mhz": (list,), "throttled": (list,),
    "board_factor": _NUMBER,
}  # fmt: skip
# what a peer multiplies: fp16 rows by 4-bit or fp16 weights, or rows of 8 bits, less exactly
PEER_KINDS = ("4-bit", "fp16", "W4A8", "fp8")
SIZES = ("M", "N", "K", "tokens", "num_tokens", "num_experts", "top_k")
# of a size: no GPU holds as many bytes
LARGEST = 2**40
# of a time or a rate
MOST = 1e18
ARCH = re.compile(r"sm_\d{2,3}[af]?")
ENVIRONMENT = (
    "gpu", "uuid", "driver", "versions", "commit", "dirty", "date", "command", "clocks", "policy",
    "gpu_facts",
)  # fmt: skip


def validate(found: Mapping[str, Any], name: str = "results") -> None:
    """Check every field of a result file as JSON has it.

    Raises:
        StoreError: names the file, the row and the field.
    """
    for part, wanted in (("environment", dict), ("rows", list), ("earlier", list)):
        if not isinstance(found[part], wanted):
            raise StoreError(f"{name}: {part} must be a {wanted.__name__}")
    earlier = [(f"earlier[{i}]", one) for i, one in enumerate(found["earlier"])]
    for part, one in [("environment", found["environment"]), *earlier]:
        wrong = run_error(one)
        if wrong:
            raise StoreError(f"{name}: {part}{wrong}")
    for i, row in enumerate(found["rows"]):
        error = row_error(row)
        if error:
            raise StoreError(f"{name}: row {i}: {error}")


def run_error(environment: object) -> str | None:
    """Return what is wrong with a run's environment as JSON has it, or None; after its name."""
    # whoever reads no result file has no need of it
    from ferrum_numba.results.schema import environment_error

    if not isinstance(environment, dict):
        environment = {}
    missing = [word for word in ENVIRONMENT if word not in environment]
    if missing:
        return f" has no {', '.join(missing)}"
    wrong = _facts_error(environment["gpu_facts"])
    if wrong:
        return f".gpu_facts {wrong}"
    wrong = environment_error(environment)
    return f".{wrong}" if wrong else None


def _facts_error(facts: object) -> str | None:
    """Return what is wrong with a GPU's facts; those that a newer version has besides are not."""
    if not isinstance(facts, dict):
        return facts_error(facts)
    known = {f.name for f in fields(Gpu)}
    return facts_error({name: value for name, value in facts.items() if name in known})


def row_error(row: object) -> str | None:
    """Return what is wrong with a row as JSON has it, or None."""
    if not isinstance(row, dict):
        return f"must be an object, got {type(row).__name__}"
    for name, kinds in {**FIELDS, **LATER}.items():
        if name not in row:
            if name in LATER:
                continue
            return f"has no {name}"
        value = row[name]
        wrong_bool = isinstance(value, bool) and bool not in kinds
        if not isinstance(value, kinds) or wrong_bool:
            wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            return f"{name} must be {wanted}, got {quoted(value)}"
    if row["status"] not in STATUSES:
        return f"status must be one of {', '.join(sorted(STATUSES))}, got {quoted(row['status'])}"
    if row["status"] == MEASURED and (not row["samples"] or row["us"] is None):
        return "is measured and has no us or no samples"
    if row.get("peer") and row.get("kind") not in PEER_KINDS:
        return f"of a peer, kind must be {', '.join(PEER_KINDS)}, got {quoted(row.get('kind'))}"
    from ferrum_numba.results.schema import more_error

    return (
        _times_error(row) or _rounds_error(row) or _sizes_error(row) or _numbers_error(row)
        or more_error(row)
    )  # fmt: skip


def _times_error(row: Mapping[str, Any]) -> str | None:
    for name in ("us", "us_low", "us_high"):
        if row[name] is not None and not _positive(row[name]):
            return f"{name} must be above 0, got {row[name]!r}"
    for i, sample in enumerate(row["samples"]):
        if not _positive(sample):
            return f"samples[{i}] must be a number above 0, got {quoted(sample)}"
    return None


def _rounds_error(row: Mapping[str, Any]) -> str | None:
    rounds, count = row.get("rounds", []), len(row["samples"])
    if not all(isinstance(one, list) and one for one in rounds):
        return "rounds must be lists of samples, none of them empty"
    if rounds and [us for one in rounds for us in one] != row["samples"]:
        return "rounds must hold the samples, all of them in their order"
    if bool(rounds) != bool(row.get("contest")):
        return "rounds need a contest, and a contest needs rounds"
    clocks = row.get("round_mhz", [])
    if clocks and len(clocks) != len(rounds):
        return f"round_mhz must have one clock a round, got {len(clocks)} of {len(rounds)}"
    if not all(clock is None or _positive(clock) for clock in clocks):
        return f"round_mhz must be numbers above 0 or null, got {quoted(clocks)}"
    for place in row.get("throttled", []):
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < count:
            return f"throttled must be places of the {count} samples, got {quoted(place)}"
    factor = row.get("board_factor")
    if factor is not None and not _positive(factor):
        return f"board_factor must be above 0, got {factor!r}"
    return None


def _numbers_error(row: Mapping[str, Any]) -> str | None:
    for name, kinds in {**FIELDS, **LATER}.items():
        value = row.get(name)
        # of a result that is wrong an error may be anything; sizes and times are below nothing
        if kinds in (_NUMBER, _COUNT) and value is not None and not 0 <= value < MOST:
            return f"{name} must be 0 or above, and finite, got {value!r}"
    if row["arch"] and not ARCH.fullmatch(row["arch"]):
        return f"arch must be one such as sm_90a, got {quoted(row['arch'])}"
    return None


def _positive(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 < value < MOST


def _sizes_error(row: Mapping[str, Any]) -> str | None:
    return sizes_error(row["problem"], row["config"])


def sizes_error(problem: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a problem and a config as JSON has them, or None."""
    for part, fields_of in (("problem", problem), ("config", config)):
        for name, value in fields_of.items():
            if not isinstance(value, str | int | float | None):
                return f"{part}.{name} must be text, a number, a bool or null, got {quoted(value)}"
            if isinstance(value, int | float) and not abs(value) <= LARGEST:
                return f"{part}.{name} must be within ±{LARGEST}, got {value!r}"
    sizes = [("problem", name, problem) for name in SIZES]
    for part, name, fields_of in [*sizes, ("config", "tile_m", config)]:
        value = fields_of.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            return f"{part}.{name} must be an integer above 0, got {value!r}"
    return None
