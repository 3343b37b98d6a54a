"""A trial: two programs on one problem, timed in turn until the rounds decide."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ferrum_numba.compare.built import Built
from ferrum_numba.contract import Op, Problem, describe
from ferrum_numba.gpu import Gpu
from ferrum_numba.measure import Policy
from ferrum_numba.results import Row, Verdict, median_interval
from ferrum_numba.results.display import of_pairs
from ferrum_numba.results.pairs import Pair
from ferrum_numba.results.row import FINAL, MEASURED
from ferrum_numba.results.statistics import compare_rounds, undecided
from ferrum_numba.shown import Part, Shown
from ferrum_numba.tune import bound_us
from ferrum_numba.tune.finals import contest
from ferrum_numba.tune.worker import Candidate, Measurer, Outcome

Two = tuple[Outcome, Outcome]
# of two there is one comparison, where a final of eight has many: so surely the interval holds
CONFIDENCE = 0.999


@dataclass(frozen=True)
class Trial(Shown):
    """A pair, and the programs that it is of: the old and the new."""

    pair: Pair
    built: tuple[Built, Built]

    def parts(self) -> Iterable[Part]:
        """Return it as a line of a comparison."""
        return [of_pairs([self.pair])]


def tried(
    op: Op, problem: Problem, built: tuple[Built, Built], alone: Two, taken: Sequence[Outcome],
    gpu: Gpu, run: str,
) -> Trial:  # fmt: skip
    """Return what came of a trial.

    Args:
        alone: how each did when it was checked
        taken: of the contest, the old's and the new's; empty where there was none
    """
    old, new = (
        _row(op, problem, one, taken[i] if taken else alone[i], alone[i], gpu, run)
        for i, one in enumerate(built)
    )
    verdict, why = _verdict(alone, taken)
    pair = Pair(op.name, describe(problem), old.regime, old, new, verdict, why)
    return Trial(pair, built)


def against(measurer: Measurer, candidates: Sequence[Candidate], policy: Policy) -> list[Outcome]:
    """Time the old and the new round by round until the rounds decide between them.

    A final ends where nobody can be faster than its leader any more; whether two are the same may
    take another.

    Returns:
        both with all of their rounds; nothing where the first pair of rounds failed
    """
    taken = contest(measurer, candidates, policy)
    while taken and len(taken[0].rounds) < policy.most_rounds:
        if verdict_between(*taken).name != "UNDECIDED":
            break
        more = contest(measurer, candidates, policy)
        if not more:
            break
        taken = [_longer(one, further) for one, further in zip(taken, more, strict=True)]
    return taken


def verdict_between(old: Outcome, new: Outcome) -> Verdict:
    """Return the verdict on the rounds of two, the new against the old."""
    return compare_rounds(
        new.rounds, old.rounds, confidence=CONFIDENCE, a_mhz=new.round_mhz, b_mhz=old.round_mhz
    )


def _longer(one: Outcome, further: Outcome) -> Outcome:
    """Return an outcome with the rounds of another contest after its own."""
    before = len(one.us)
    return replace(
        one, us=one.us + further.us, rounds=one.rounds + further.rounds,
        round_mhz=one.round_mhz + further.round_mhz,
        throttled=one.throttled + tuple(before + place for place in further.throttled),
    )  # fmt: skip


def _verdict(alone: Two, taken: Sequence[Outcome]) -> tuple[Verdict, str]:
    old, new = alone
    if new.status != MEASURED:
        return Verdict("SLOWER", math.inf, math.inf, math.inf), f"{new.status}: {new.reason}"
    if old.status != MEASURED:
        return undecided(math.nan), f"the old is {old.status}: {old.reason}"
    if not taken:
        return undecided(statistics.median(new.us) / statistics.median(old.us)), "a round failed"
    return verdict_between(*taken), ""


def _row(
    op: Op, problem: Problem, built: Built, taken: Outcome, alone: Outcome, gpu: Gpu, run: str
) -> Row:
    work = op.work(problem)
    bound = bound_us(work, gpu)
    times: dict[str, Any] = {}
    if taken.us:
        each = [statistics.median(one) for one in taken.rounds] or taken.us
        us, low, high = median_interval(each)
        times = {
            "us": us, "us_low": low, "us_high": high, "samples": taken.us,
            "gbps": work.bytes / us / 1e3, "tflops": work.flops / us / 1e6, "fraction": bound / us,
        }  # fmt: skip
    good = alone.status == MEASURED
    return Row(
        built.kernel, op.name, describe(problem), built.config, gpu.arch, **times,
        flops=work.flops, bytes=work.bytes, bound_us=bound,
        rel_error=math.nan if alone.rel_error is None else alone.rel_error,
        max_error=math.nan if alone.max_error is None else alone.max_error,
        ok=good, status=alone.status, reason=alone.reason, registers=built.registers,
        spill_bytes=built.spill_bytes, smem_bytes=built.smem_bytes, source_hash=built.source_hash,
        stage=FINAL if taken.rounds else "full", run=run, rounds=taken.rounds,
        contest=taken.contest, round_mhz=taken.round_mhz, throttled=taken.throttled,
        board=gpu.uuid, more=taken.extra,
    )  # fmt: skip
