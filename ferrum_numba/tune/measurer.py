"""What measures on a GPU: checks a candidate on operands that stay there, then times it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from ferrum_numba.check import GUARD_BYTES, on_operands
from ferrum_numba.contract import Kernel, Problem
from ferrum_numba.launch import Bound, Device, OperandSet
from ferrum_numba.measure import Policy, Samples, host_time_us, measure
from ferrum_numba.tune.worker import Candidate, Outcome

QUICK_SAMPLES = 3
# a candidate that takes this many times the best is not timed in full
SLOW = 2.0
# even, so that each order of the finalists occurs as often as its reverse
FINAL_ROUNDS = 4


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

    def open(self, kernel: Kernel, problem: Problem) -> None:
        """Upload the operands of a kernel and compute the reference."""
        if problem != self._problem:
            self._operands.clear()
            self._problem = problem
        operands = OperandSet(
            self._device, kernel, problem,
            rotate_bytes=self._policy.rotate_bytes(self._device.gpu), guard_bytes=GUARD_BYTES,
        )  # fmt: skip
        # computed here, where the time limit allows for it
        _ = operands.want
        self._operands[kernel.name] = operands

    def run(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """Check a candidate, take a quick look at its time, then time it in full."""
        operands = self._operands[candidate.kernel.name]
        checked = on_operands(operands, candidate.config, candidate.binary)
        errors: dict[str, Any] = {"rel_error": checked.rel_error, "max_error": checked.max_error}
        if not checked.ok:
            return Outcome("wrong", checked.reason, **errors)
        before = operands.result()
        bound = operands.bind(candidate.config, candidate.binary)
        if best_us is not None:
            quick = self._measure(bound, candidate, QUICK_SAMPLES, warmup_ms=0.0)
            if median(quick.us) > SLOW * best_us:
                reason = f"more than {SLOW:g} times the best so far, {best_us:.4g} us"
                return Outcome("slow", reason, quick.us, extra=_seen(quick), **errors)
        taken = self._measure(bound, candidate, self._policy.samples, self._policy.warmup_ms)
        if operands.result().tobytes() != before.tobytes():
            return Outcome(
                "wrong", "gave other bits while it was timed than when checked", **errors
            )
        extra = _seen(taken)
        if candidate.regime == "eager":
            extra["host_us"] = host_time_us(bound.prepared(), 0)
        rotated = self._rotated(candidate)
        return Outcome("measured", "", taken.us, rotated=rotated, extra=extra, **errors)

    def final(self, candidates: Sequence[Candidate]) -> list[Outcome]:
        """Time candidates in turn, the order reversed from round to round."""
        bounds = [self._operands[c.kernel.name].bind(c.config, c.binary) for c in candidates]
        samples = math.ceil(self._policy.samples / 2)
        taken: list[list[Samples]] = [[] for _ in candidates]
        for turn in range(FINAL_ROUNDS):
            order = range(len(candidates))
            for i in order if turn % 2 == 0 else reversed(order):
                warmup_ms = self._policy.warmup_ms
                taken[i].append(self._measure(bounds[i], candidates[i], samples, warmup_ms))
        return [
            Outcome(
                "measured",
                us=tuple(us for one in rounds for us in one.us),
                rotated=self._rotated(candidate),
                extra=_seen(*rounds),
            )
            for candidate, rounds in zip(candidates, taken, strict=True)
        ]

    def _rotated(self, candidate: Candidate) -> bool:
        return candidate.regime == "cold" and self._operands[candidate.kernel.name].copies > 1

    def _measure(
        self, bound: Bound, candidate: Candidate, samples: int, warmup_ms: float
    ) -> Samples:
        policy = replace(self._policy, samples=samples, warmup_ms=warmup_ms)
        return measure(self._device, bound.calls(), candidate.regime, policy)


def _seen(*taken: Samples) -> dict[str, Any]:
    """Return the board's state: over all that was taken, the last where there is one of each."""
    last = taken[-1]
    return {
        "calls": last.calls,
        "clock_mhz": [taken[0].clock_mhz[0], last.clock_mhz[1]],
        "power_w": last.power_w,
        "temperature_c": last.temperature_c,
        "throttle": sorted({reason for samples in taken for reason in samples.throttle}),
    }
