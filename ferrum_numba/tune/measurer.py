"""What measures on a GPU: checks a candidate on operands that stay there, then times it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np

from ferrum_numba.check import GUARD_BYTES, Checked, bind_and_run, same_bits
from ferrum_numba.compile import Binary
from ferrum_numba.contract import Kernel, Problem
from ferrum_numba.errors import LaunchError
from ferrum_numba.launch import (
    Device,
    HostOperands,
    Loaded,
    OperandSet,
    Uploads,
    load,
    page_locked,
)
from ferrum_numba.measure import Policy, Samples, Timer, host_time_us
from ferrum_numba.tune.prepared import Prepared
from ferrum_numba.tune.worker import Candidate, Outcome

QUICK_SAMPLES = 3
# a GPU that idles no longer keeps its clocks, and is warm after one burst
IDLE_S, BRIEF_MS = 1.0, 30.0
# memory for a result, at first
RESULT_BYTES = 64 << 20
# work in the replays that are timed of a candidate alone, with so many of them at least
HEAT_US, FEWEST_SAMPLES = 60_000.0, 5
# likewise of a finalist in one round
ROUND_US = 2_000.0
# a candidate that takes this many times the best is not timed in full
SLOW = 2.0


class GpuMeasurer:
    """Measures on the first GPU of the process; keeps the operands of one problem.

    Inputs, their packing and the reference cost far more than a candidate, and serve them all.
    """

    def __init__(self, policy: Policy) -> None:
        """Open the GPU.

        Raises:
            DeviceError: there is none.
        """
        self._device = Device.open()
        self._policy = policy
        self._problem: Problem = None
        self._operands: dict[str, OperandSet] = {}
        self._hosts: dict[str, HostOperands] = {}
        self._uploads = Uploads()
        # programs by fingerprint: one serves many problems
        self._loaded: dict[str, Loaded] = {}
        # where results are copied to: of two checks, or of a check and what came of timing
        self._results = [np.empty(0, np.uint8)] * 2
        # of the last final, by kernel and config
        self._finalists: dict[tuple[str, Any], Timer] = {}
        # compares results while the GPU is at work
        self._host = ThreadPoolExecutor(1)
        # when the GPU was last seen at work, s
        self._busy_at = -math.inf

    def open(self, kernel: Kernel, problem: Problem, prepared: Prepared | None = None) -> None:
        """Upload the operands of a kernel, made here unless they were before."""
        if problem != self._problem:
            self._end_final()
            self._operands.clear()
            self._hosts.clear()
            self._uploads.next_problem()
            self._problem = problem
        # with the reference, which is computed here, where the time limit allows for it
        host = prepared.load() if prepared else HostOperands.make(kernel, problem)
        self._hosts[kernel.name] = host
        self._operands[kernel.name] = self._uploaded(kernel)

    def _uploaded(self, kernel: Kernel) -> OperandSet:
        return OperandSet(
            self._device, kernel, self._problem,
            rotate_bytes=self._policy.rotate_bytes(self._device.gpu), guard_bytes=GUARD_BYTES,
            host=self._hosts[kernel.name], uploads=self._uploads,
        )  # fmt: skip

    def run(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """Check a candidate, take a quick look at its time, then time it in full."""
        operands = self._operands[candidate.kernel.name]
        ran = bind_and_run(
            operands, candidate.config, candidate.binary,
            loaded=self._program(candidate.binary), into=self._memory(operands),
        )  # fmt: skip
        if ran.bound is None:
            return self._wrong(ran.check())
        comparing = self._host.submit(ran.check)
        with Timer(self._device, ran.bound.calls(), candidate.regime, self._policy) as timer:
            # what the GPU does meanwhile is warm-up: no sample is taken beside the host's work
            timer.keep_busy(comparing.done)
            checked = comparing.result()
            if not checked.ok:
                return self._wrong(checked)
            errors: dict[str, Any] = {
                "rel_error": checked.rel_error,
                "max_error": checked.max_error,
            }
            quick = None if best_us is None else timer.take(QUICK_SAMPLES, 0.0, briefly=True)
            if quick is not None and best_us is not None and median(quick.us) > SLOW * best_us:
                reason = f"more than {SLOW:g} times the best so far, {best_us:.4g} us"
                return Outcome("slow", reason, quick.us, extra=self._seen(quick), **errors)
            taken = timer.take(self._samples(timer), self._warmup_ms())
        busy_us = taken.busy_us + (quick.busy_us if quick else 0.0)
        extra = {**self._seen(taken), "busy_us": busy_us}
        if not same_bits(operands.result(self._results[1]), ran.results[0]):
            self._renew()
            reason = "gave other bits while it was timed than when checked"
            return Outcome("wrong", reason, extra=extra, **errors)
        if candidate.regime == "eager":
            extra["host_us"] = host_time_us(ran.bound.prepared(), 0)
        rotated = self._rotated(candidate)
        return Outcome("measured", "", taken.us, rotated=rotated, extra=extra, **errors)

    def _wrong(self, checked: Checked) -> Outcome:
        self._renew()
        return Outcome(
            "wrong", checked.reason, rel_error=checked.rel_error, max_error=checked.max_error
        )

    def _program(self, binary: Binary) -> Loaded | None:
        """Return a program that is on the GPU already; what is refused, the check is told of."""
        if binary.fingerprint not in self._loaded:
            try:
                self._loaded[binary.fingerprint] = load(binary, self._device)
            except LaunchError:
                return None
        return self._loaded[binary.fingerprint]

    def _memory(self, operands: OperandSet) -> Sequence[Any]:
        size_bytes = operands.out.size_bytes
        if self._results[0].size < size_bytes:
            # growing takes as long as a heat, so it grows seldom
            size_bytes = max(2 * self._results[0].size, size_bytes, RESULT_BYTES)
            self._results = [page_locked(size_bytes) for _ in self._results]
        return self._results

    def _renew(self) -> None:
        """Upload everything again: a wrong kernel may have written to what others read."""
        self._uploads.clear()
        for name, operands in self._operands.items():
            self._operands[name] = self._uploaded(operands.kernel)

    def _samples(self, timer: Timer) -> int:
        """Return how many replays to time: fewer where they take long, a final decides."""
        enough = math.ceil(HEAT_US / max(timer.replay_us, 1.0))
        return min(self._policy.samples, max(FEWEST_SAMPLES, enough))

    def _warmup_ms(self) -> float:
        """Return how long the clocks may take to settle: little where the GPU was just at work."""
        idle_s = time.monotonic() - self._busy_at
        return self._policy.warmup_ms if idle_s > IDLE_S else min(BRIEF_MS, self._policy.warmup_ms)

    def round(self, candidates: Sequence[Candidate], turn: int, samples: int) -> list[Outcome]:
        """Time each candidate once, one after the other; in odd rounds the last comes first."""
        if turn == 0:
            self._end_final()
        taken: dict[int, Samples] = {}
        places = range(len(candidates))
        for i in places if turn % 2 == 0 else reversed(places):
            taken[i] = self._in_turn(candidates[i], samples)
        return [
            Outcome(
                "measured", us=taken[i].us, rotated=self._rotated(one), extra=self._seen(taken[i])
            )
            for i, one in enumerate(candidates)
        ]

    def _in_turn(self, candidate: Candidate, samples: int) -> Samples:
        """Time a finalist, at the clocks that the one before it left."""
        about = (candidate.kernel.name, candidate.config)
        # a final does not begin on an idle board
        warmup_ms = 0.0 if self._finalists else self._warmup_ms()
        timer = self._finalists.get(about)
        if timer is None:
            operands = self._operands[candidate.kernel.name]
            loaded = self._program(candidate.binary)
            bound = operands.bind(candidate.config, candidate.binary, loaded)
            timer = Timer(self._device, bound.calls(), candidate.regime, self._policy)
            self._finalists[about] = timer
            return timer.take(_in_round(timer, samples), warmup_ms)
        return timer.take(_in_round(timer, samples), 0.0, briefly=True)

    def _end_final(self) -> None:
        for timer in self._finalists.values():
            timer.close()
        self._finalists.clear()

    def _rotated(self, candidate: Candidate) -> bool:
        return candidate.regime == "cold" and self._operands[candidate.kernel.name].copies > 1

    def _seen(self, taken: Samples) -> dict[str, Any]:
        """Return the board's state while samples were taken."""
        self._busy_at = time.monotonic()
        return {
            "calls": taken.calls,
            "clock_mhz": list(taken.clock_mhz),
            "power_w": taken.power_w,
            "temperature_c": taken.temperature_c,
            "throttle": list(taken.throttle),
            "busy_us": taken.busy_us,
        }


def _in_round(timer: Timer, samples: int) -> int:
    """Return how many replays to time in a round: fewer where they take long, more rounds say more.

    The median of few counts, so never two.
    """
    enough = math.ceil(ROUND_US / max(timer.replay_us, 1.0))
    return samples if enough >= samples else 1
