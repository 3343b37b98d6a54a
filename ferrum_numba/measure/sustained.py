"""What a board holds when it is asked for one thing for seconds: a hot board is another board."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ferrum_numba.launch import Device
from ferrum_numba.measure.timing import Call, Policy, Samples, Timer

# work between two looks at the board
LOOK_US = 100_000.0


@dataclass(frozen=True)
class Sustained:
    """The second half of a run without a pause.

    us:        median time of a call, and the lowest and the highest median of a look
    seconds:   how long the whole run took
    clock_mhz, power_w, temperature_c: medians over the looks; None where unknown
    throttle:  reasons of low clocks that were seen
    """

    us: float
    us_low: float
    us_high: float
    seconds: float
    clock_mhz: float | None
    power_w: float | None
    temperature_c: float | None
    throttle: tuple[str, ...]


def sustain(
    device: Device, calls: Sequence[Call], regime: str, policy: Policy, seconds: float
) -> Sustained:
    """Repeat calls for so many seconds and return what the board did in the second half.

    Raises:
        LaunchError: a call failed.
    """
    with Timer(device, calls, regime, policy) as timer:
        first = timer.take(1, 0.0, briefly=True)
        replays = max(1, math.ceil(LOOK_US / (first.us[0] * first.calls)))
        taken: list[Samples] = []
        began = time.perf_counter()
        while not taken or time.perf_counter() - began < seconds:
            taken.append(timer.take(replays, 0.0))
        return held(taken, time.perf_counter() - began)


def held(taken: Sequence[Samples], seconds: float) -> Sustained:
    """Return what the second half of the looks saw."""
    later = taken[len(taken) // 2 :]
    # samples between two looks are not independent: each look counts once
    each = [median(one.us) for one in later]

    def middle(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return median(known) if known else None

    return Sustained(
        median(each), min(each), max(each), seconds, middle([one.clock_mhz[1] for one in later]),
        middle([one.power_w for one in later]), middle([one.temperature_c for one in later]),
        tuple(sorted({why for one in later for why in one.throttle})),
    )  # fmt: skip
