"""Device time of a call, in one of three regimes that are never mixed.

    cold   calls on rotated copies of the weights, in a graph: nothing is left in L2
    warm   calls on the same buffers, in a graph
    eager  calls on rotated copies, each launched by the host

A sample is the time between two events around a replay of all calls, divided by their number.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from cuda.bindings import driver

from ferrum_numba.errors import ConfigError
from ferrum_numba.gpu import Gpu
from ferrum_numba.launch import Device, Graph
from ferrum_numba.launch.device import call
from ferrum_numba.measure.clocks import Reading, read_clocks

Regime = Literal["cold", "warm", "eager"]
REGIMES: tuple[Regime, ...] = ("cold", "warm", "eager")
Call = Callable[[int], Any]
# work between two looks at the clocks; warm-up ends when two looks agree
BURST_US = 15_000.0
SETTLED = 0.01
# replays of the rotation that tell how many of it fill a replay
LOOKS = 5
# launches the driver queues before it makes the host wait for the GPU
QUEUE = 256


@dataclass(frozen=True)
class Policy:
    """How a time is taken.

    samples:             replays that are timed
    min_graph_us:        work in one replay, so that an event's grain does not count
    rotate_bytes_factor: what the copies of the weights exceed together, in sizes of L2
    warmup_ms:           time within which the clocks must settle
    round_samples:       replays that are timed of a finalist in a round; the median counts
    most_rounds:         rounds after which what is undecided stays so
    tie:                 relative difference that does not matter
    """

    samples: int = 15
    min_graph_us: float = 400.0
    rotate_bytes_factor: float = 3.0
    warmup_ms: float = 300.0
    round_samples: int = 3
    most_rounds: int = 128
    tie: float = 0.01

    def rotate_bytes(self, gpu: Gpu) -> int:
        """Return what the rotated copies of the weights must exceed."""
        return int(self.rotate_bytes_factor * gpu.l2_bytes)


@dataclass(frozen=True)
class Samples:
    """Times of one call.

    us:        device time of a call, one a replay: the replay's time divided by its calls
    calls:     calls in a replay
    clock_mhz: SM clock after the warm-up, and during the last replays; None where unknown
    throttle:  reasons of low clocks that were seen
    busy_us:   how long the GPU worked for it, with all replays that do not count
    """

    us: tuple[float, ...]
    regime: str
    calls: int
    clock_mhz: tuple[float | None, float | None]
    power_w: float | None
    temperature_c: float | None
    throttle: tuple[str, ...]
    busy_us: float = 0.0


def measure(device: Device, calls: Sequence[Call], regime: str, policy: Policy) -> Samples:
    """Time calls that do the same work on different copies of the weights.

    Args:
        calls: one for each copy, called with a stream handle; `warm` takes the first

    Raises:
        ConfigError: an unknown regime, or nothing to call.
        LaunchError: a call failed.
    """
    with Timer(device, calls, regime, policy) as timer:
        return timer.take(policy.samples, policy.warmup_ms)


class Timer:
    """Calls made ready to be timed: captured once, replayed whenever samples are wanted."""

    def __init__(self, device: Device, calls: Sequence[Call], regime: str, policy: Policy) -> None:
        """Run the calls until a replay is known to be long enough, then capture it.

        Args, errors: as of `measure`.
        """
        if regime not in REGIMES:
            raise ConfigError(f"a regime is one of {', '.join(REGIMES)}; got {regime}")
        if not calls:
            raise ConfigError("there is nothing to measure: no calls were given")
        rotation = tuple(calls[:1] if regime == "warm" else calls)
        self._device, self._regime = device, regime
        self._stream = device.new_stream()
        try:
            # outside a capture and a timing: a first launch may load code
            rotation[0](self._stream)
            device.synchronize()
            looks_us = _looks_us(device, rotation, regime, self._stream)
            # the best of a few: the clocks are still rising
            rounds = rounds_to_fill(policy.min_graph_us, min(looks_us))
            self._calls = rotation * rounds
            # by the looks that were taken, with all that a first one has to load
            self.replay_us = sum(looks_us) / LOOKS * rounds
            self._busy_us = _busy_us(looks_us)
            self._replay = _replay(device, self._calls, regime)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Timer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the stream."""
        driver.cuStreamDestroy(self._stream)

    def keep_busy(self, until: Callable[[], bool]) -> None:
        """Replay while the host does something else, so that the clocks stay where they are."""
        count = math.ceil(BURST_US / max(self.replay_us, 1.0))
        while not until():
            self._busy_us += _busy_us(_times_us(self._replay, self._stream, count)[0])

    def take(self, samples: int, warmup_ms: float, *, briefly: bool = False) -> Samples:
        """Replay until the clocks have settled, then time so many replays.

        briefly: look at the clock alone; power and temperature take NVML longer than a replay
        """
        look = partial(read_clocks, self._device.gpu.uuid, briefly=briefly)
        before, warm_us = _warm_up(self._replay, self._stream, look, warmup_ms)
        times_us, after = _times_us(self._replay, self._stream, samples, look)
        before = before or after
        busy_us = self._busy_us + warm_us + _busy_us(times_us)
        self._busy_us = 0.0
        return Samples(
            us=tuple(us / len(self._calls) for us in times_us),
            regime=self._regime,
            calls=len(self._calls),
            clock_mhz=(before.clock_mhz, after.clock_mhz),
            power_w=after.power_w,
            temperature_c=after.temperature_c,
            throttle=tuple(sorted({*before.throttle, *after.throttle})),
            busy_us=busy_us,
        )


def host_time_us(prepared: Call, stream: int, launches: int = 10_000) -> float:
    """Return the host's time for one launch: the median over batches that do not fill the queue."""
    batches = []
    for _ in range(max(launches // QUEUE, 1)):
        began = time.perf_counter()
        for _ in range(QUEUE):
            prepared(stream)
        batches.append((time.perf_counter() - began) / QUEUE * 1e6)
        call(driver.cuStreamSynchronize, stream)
    return float(np.median(batches))


def rounds_to_fill(min_us: float, rotation_us: float) -> int:
    """Return how many whole rotations hold at least this much work."""
    return max(1, math.ceil(min_us / max(rotation_us, 1e-3)))


def _looks_us(device: Device, rotation: Sequence[Call], regime: str, stream: int) -> list[float]:
    """Return what a few replays of a rotation take."""
    return _times_us(_replay(device, rotation, regime), stream, LOOKS)[0]


def _busy_us(times_us: Sequence[float]) -> float:
    """Return how long the GPU worked for these: one replay more ran before the first event."""
    return sum(times_us) * (1 + 1 / len(times_us))


def _replay(device: Device, calls: Sequence[Call], regime: str) -> Call:
    """Return what runs all calls once: a graph's launch, or the host's loop."""
    if regime != "eager":
        return Graph.capture(device, calls).launch

    def one_by_one(stream: int) -> None:
        for each in calls:
            each(stream)

    return one_by_one


def _warm_up(
    replay: Call, stream: int, look: Callable[[], Reading], limit_ms: float
) -> tuple[Reading | None, float]:
    """Replay until two bursts in a row take the same time at the same clock, or the time is up.

    Returns:
        the board's state then, None where there is no time, and how long the GPU was busy, in us
    """
    if not limit_ms:
        return None, 0.0
    began = time.perf_counter()
    times_us = _times_us(replay, stream, 2)[0]
    busy_us, last_us, last = _busy_us(times_us), min(times_us), look()
    while (time.perf_counter() - began) * 1e3 < limit_ms:
        times_us, now = _times_us(replay, stream, math.ceil(BURST_US / last_us), look)
        now_us, busy_us = float(np.median(times_us)), busy_us + _busy_us(times_us)
        if _near(now_us, last_us) and _near(now.clock_mhz or 0.0, last.clock_mhz or 0.0):
            return now, busy_us
        last_us, last = now_us, now
    return last, busy_us


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= SETTLED * max(a, b)


def _times_us(
    replay: Call, stream: int, count: int, look: Callable[[], Reading] = Reading
) -> tuple[list[float], Reading]:
    """Return the times of replays queued back to back, and the board's state while they run."""
    events = [call(driver.cuEventCreate, 0) for _ in range(count + 1)]
    try:
        # while the GPU runs this one the host gets ahead: no sample waits for a launch
        replay(stream)
        call(driver.cuEventRecord, events[0], stream)
        for event in events[1:]:
            replay(stream)
            call(driver.cuEventRecord, event, stream)
        seen = look()
        call(driver.cuEventSynchronize, events[-1])
        elapsed = partial(call, driver.cuEventElapsedTime)
        return [elapsed(a, b) * 1e3 for a, b in itertools.pairwise(events)], seen
    finally:
        for event in events:
            driver.cuEventDestroy(event)
