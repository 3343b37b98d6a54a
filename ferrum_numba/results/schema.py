"""What is expected of the parts of a result file that only some rows and runs have.

Fields of newer versions may stand beside these, and are kept; of these, a wrong type would be found
where it is used, by a report half an hour later.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ferrum_numba import door

# of a measured number: what is beyond is no measurement
Number = Annotated[float, Meta(ge=-1e18, le=1e18)]
Words = Annotated[str, Meta(max_length=100_000)]
Scalar = str | float | bool | None


class _Ceiling(msgspec.Struct):
    kind: Words | None = None


class _More(msgspec.Struct):
    """What a row has besides its fields."""

    peer: Words | None = None
    kind: Words | None = None
    version: Words | None = None
    throttle: list[Words] | None = None
    clock_mhz: list[Number | None] | None = None
    power_w: Number | None = None
    temperature_c: Number | None = None
    calls: int | None = None
    rate: Number | None = None
    unit: Words | None = None
    pace: Scalar = None
    mode: Scalar = None
    ceiling: _Ceiling | None = None
    sustained: dict[str, Any] | None = None
    # a number each, but for `stalls`: part of the time, by reason
    counters: dict[str, Number | dict[str, Number] | None] | None = None


class _Yardstick(msgspec.Struct):
    us: Annotated[float, Meta(gt=0, le=1e18)]
    bound: Words = ""


class _Environment(msgspec.Struct):
    """A run's; that all of it is there, and its GPU's facts, is looked at elsewhere."""

    gpu: Words | None
    uuid: Words | None
    driver: Words | None
    versions: dict[str, Words | None]
    commit: Words | None
    dirty: bool | None
    date: Words
    command: Words
    clocks: dict[str, Any] | None
    policy: dict[str, Any]
    yardstick: list[_Yardstick] = []


def more_error(row: object) -> str | None:
    """Return what is wrong with what a row has besides its fields, or None."""
    return _error(row, _More)


def environment_error(environment: object) -> str | None:
    """Return what is wrong with a run's environment that has all of its fields, or None."""
    return _error(environment, _Environment)


def _error(found: object, kind: type) -> str | None:
    try:
        msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        return door.in_words(error)
    return None
