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

    def heat(self, row: Row, outcome: Outcome) -> Row:
        """Return a row with what came of measuring it alone."""
        row = replace(
            row, status=outcome.status, reason=outcome.reason,
            rel_error=_number(outcome.rel_error), max_error=_number(outcome.max_error),
            ok=outcome.status in (MEASURED, "slow"), stage="full",
        )  # fmt: skip
        return self._timed(row, outcome) if outcome.us else row

    def final(self, row: Row, outcome: Outcome) -> Row:
        """Return a row with its times in a final."""
        return replace(self._timed(row, outcome), stage=FINAL, run=self.run)

    def _timed(self, row: Row, outcome: Outcome) -> Row:
        """Return a row with the times of an outcome, and what was seen of the board meanwhile."""
        seen: dict[str, Any] = {k: v for k, v in outcome.extra.items() if k not in ACCOUNT}
        row = replace(_with_times(row, outcome), more={**row.more, **seen})
        slack = RECORDED_SLACK if self.gpu.source == "recorded" else 1.0
        # what no weights were rotated for may be served by L2
        if not outcome.rotated or row.us * slack >= row.bound_us:
            return row
        reason = (
            f"{row.us:.4g} us is less than the {row.bound_us:.4g} us that {row.bytes} bytes and "
            f"{row.flops} FLOPs need on {self.gpu.name}: the work is overstated or the "
            "weights were not cold"
        )
        return replace(row, ok=False, status="wrong", reason=reason)


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
        throttled=outcome.throttled,
    )  # fmt: skip
