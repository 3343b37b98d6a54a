"""What measures on a GPU: checks a candidate on operands that stay there, then times it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from ferrum_numba.check import GUARD_BYTES, on_operands
from ferrum_numba.contract import Kernel, Problem
from ferrum_numba.launch import Bound, Device, OperandSet
from ferrum_numba.measure import Policy, Samples, Timer, host_time_us, measure
from ferrum_numba.tune.worker import Candidate, Outcome

QUICK_SAMPLES = 3
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
        # of the last final, by kernel and config
        self._finalists: dict[tuple[str, Any], Timer] = {}

    def open(self, kernel: Kernel, problem: Problem) -> None:
        """Upload the operands of a kernel and compute the reference."""
        if problem != self._problem:
            self._end_final()
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

    def round(self, candidates: Sequence[Candidate], turn: int, samples: int) -> list[Outcome]:
        """Time each candidate once, one after the other; in odd rounds the last comes first."""
        if turn == 0:
            self._end_final()
        taken: dict[int, Samples] = {}
        places = range(len(candidates))
        for i in places if turn % 2 == 0 else reversed(places):
            taken[i] = self._in_turn(candidates[i], samples)
        return [
            Outcome("measured", us=taken[i].us, rotated=self._rotated(one), extra=_seen(taken[i]))
            for i, one in enumerate(candidates)
        ]

    def _in_turn(self, candidate: Candidate, samples: int) -> Samples:
        """Time a finalist, at the clocks that the one before it left."""
        about = (candidate.kernel.name, candidate.config)
        # a final does not begin on an idle board
        warmup_ms = 0.0 if self._finalists else self._policy.warmup_ms
        timer = self._finalists.get(about)
        if timer is None:
            bound = self._operands[candidate.kernel.name].bind(candidate.config, candidate.binary)
            timer = Timer(self._device, bound.calls(), candidate.regime, self._policy)
            self._finalists[about] = timer
            return timer.take(samples, warmup_ms)
        return timer.take(samples, 0.0, briefly=True)

    def _end_final(self) -> None:
        for timer in self._finalists.values():
            timer.close()
        self._finalists.clear()

    def _rotated(self, candidate: Candidate) -> bool:
        return candidate.regime == "cold" and self._operands[candidate.kernel.name].copies > 1

    def _measure(
        self, bound: Bound, candidate: Candidate, samples: int, warmup_ms: float
    ) -> Samples:
        policy = replace(self._policy, samples=samples, warmup_ms=warmup_ms)
        return measure(self._device, bound.calls(), candidate.regime, policy)


def _seen(taken: Samples) -> dict[str, Any]:
    """Return the board's state while samples were taken."""
    return {
        "calls": taken.calls,
        "clock_mhz": list(taken.clock_mhz),
        "power_w": taken.power_w,
        "temperature_c": taken.temperature_c,
        "throttle": list(taken.throttle),
        "busy_us": taken.busy_us,
    }
