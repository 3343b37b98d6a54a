"""Rows of a search: what is known of a candidate before, and what a measurement adds to it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ferrum_numba.compile import Binary, blocks_per_sm
from ferrum_numba.contract import Config, Kernel, Problem, describe
from ferrum_numba.results import Row, median_interval
from ferrum_numba.results.row import FINAL, MEASURED
from ferrum_numba.tune.model import bound_by, bound_us
from ferrum_numba.tune.worker import Outcome

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

SEED = 0
# recorded ceilings are another run's: a board may be that much faster
RECORDED_SLACK = 1.05
# how far above a ceiling that was measured a time may lie: the ceiling had its own clocks
ANOMALY = 1.05
# of what a measurer saw: for the account of the GPU's time, not for a row
ACCOUNT = ("busy_us",)


@dataclass(frozen=True)
class RowMaker:
    """Makes the rows of one run.

    run:       its date
    untrusted: why none of them may be believed, if there is a reason
    factors:   as in a `SearchTask`
    """

    gpu: Gpu
    regime: str
    run: str
    untrusted: str
    factors: Mapping[str, float] = field(default_factory=dict)

    def blank(
        self, kernel: Kernel, config: Config | None, problem: Problem, status: str, reason: str
    ) -> Row:
        """Return a row of everything that is known without measuring."""
        work = kernel.op.work(problem)
        return Row(
            kernel.name, kernel.op.name, describe(problem),
            {} if config is None else describe(config), self.gpu.arch, self.regime,
            flops=work.flops, bytes=work.bytes, bound_us=bound_us(work, self.gpu),
            status=status, reason=reason, seed=SEED, run=self.run, untrusted=self.untrusted,
            board=self.gpu.uuid, board_factor=self.factors.get(bound_by(work, self.gpu)),
        )  # fmt: skip

    def built(self, row: Row, binary: Binary) -> Row:
        """Return a row with what its program needs of a GPU."""
        return replace(
            row, registers=binary.registers, spill_bytes=binary.spill_bytes,
            smem_bytes=binary.smem_bytes, blocks_per_sm=blocks_per_sm(binary, self.gpu),
            source_hash=binary.fingerprint,
        )  # fmt: skip

    def heat(self, row: Row, outcome: Outcome, roof_us: float = 0.0) -> Row:
        """Return a row with what came of measuring it alone.

        roof_us: what the board's measured ceilings leave for the problem, 0 where there are none
        """
        row = replace(
            row, status=outcome.status, reason=outcome.reason,
            rel_error=_number(outcome.rel_error), max_error=_number(outcome.max_error),
            ok=outcome.status in (MEASURED, "slow"), stage="full",
        )  # fmt: skip
        return self._timed(row, outcome, roof_us) if outcome.us else row

    def final(self, row: Row, outcome: Outcome, roof_us: float = 0.0) -> Row:
        """Return a row with its times in a final; `roof_us` as of a heat."""
        return replace(self._timed(row, outcome, roof_us), stage=FINAL, run=self.run)

    def _timed(self, row: Row, outcome: Outcome, roof_us: float) -> Row:
        """Return a row with the times of an outcome, and what was seen of the board meanwhile.

        What is no time would keep the whole result file from being written.
        """
        odd = [us for us in outcome.us if not 0 < us < math.inf]
        if odd:
            reason = f"{len(odd)} of {len(outcome.us)} samples are no times, such as {odd[0]} us"
            return replace(row, ok=False, status="failed", reason=reason)
        seen: dict[str, Any] = {k: v for k, v in outcome.extra.items() if k not in ACCOUNT}
        row = replace(_with_times(row, outcome), more={**row.more, **seen})
        # what no weights were rotated for may be served by L2
        reason = self._too_fast(row, roof_us) if outcome.rotated else ""
        return replace(row, ok=False, status="wrong", reason=reason) if reason else row

    def _too_fast(self, row: Row, roof_us: float) -> str:
        """Return why a time cannot be, if it is below what the machine needs."""
        slack = RECORDED_SLACK if self.gpu.source == "recorded" else 1.0
        work = f"{row.bytes} bytes and {row.flops} FLOPs need"
        why = "the work is overstated or the weights were not cold"
        if row.us * slack < row.bound_us:
            least_us = row.bound_us
            return (
                f"{row.us:.4g} us is less than the {least_us:.4g} us that {work} on "
                f"{self.gpu.name}: {why}"
            )
        if row.us * ANOMALY < roof_us:
            return (
                f"{row.us:.4g} us is less than the {roof_us:.4g} us that {work} at this "
                f"board's measured ceilings, by more than {ANOMALY - 1:.0%}: {why}"
            )
        return ""


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _with_times(row: Row, outcome: Outcome) -> Row:
    """Return a row with the times of an outcome and what follows from them."""
    assert row.bytes is not None
    assert row.flops is not None
    # samples of one round are no independent samples: each round counts once
    each = [statistics.median(one) for one in outcome.rounds] or outcome.us
    median, low, high = median_interval(each)
    return replace(
        row, us=median, us_low=low, us_high=high, samples=outcome.us,
        gbps=row.bytes / median / 1e3, tflops=row.flops / median / 1e6,
        fraction=row.bound_us / median,
        rounds=outcome.rounds, contest=outcome.contest, round_mhz=outcome.round_mhz,
        throttled=outcome.throttled if outcome.rounds else _throttled(outcome),
    )  # fmt: skip


def _throttled(outcome: Outcome) -> tuple[int, ...]:
    """Return the places of samples that were taken alone under throttle: all, or none, were."""
    return tuple(range(len(outcome.us))) if outcome.extra.get("throttle") else ()
