"""A row of results: one kernel with one config on one problem in one regime."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ferrum_numba.division import ceil_div
from ferrum_numba.shown import Part, Shown

MEASURED = "measured"
STATUSES = frozenset(
    {
        MEASURED,  # checked, timed in full
        "slow",  # checked, dropped after a quick look: more than twice the best time
        "pruned",  # built, not run: it does not fit the GPU
        "refused",  # the kernel cannot run the problem
        "build failed",
        "wrong",  # differs from the reference, or is faster than the machine can be
        "failed",  # the driver or the process died of it
        "timeout",
    }
)
# the stage of rows that were timed in turn with each other
FINAL = "final"
# what problems of one weight sweep is called by one of these
SIZE_NAMES = ("M", "tokens", "num_tokens")


@dataclass(frozen=True)
class Row(Shown):
    """What is known of one kernel with one config on one problem in one regime.

    The fields stand in the order of a file's. A number that nobody took is nan, null in JSON.

    problem, config: their fields by name
    us:          median time of a call, and of it the interval's ends, `us_low` and `us_high`
    samples:     time of a call, one a replay, in us
    gbps:        10^9 compulsory bytes/s
    tflops:      10^12 FLOP/s
    flops, bytes: the problem's least work; None where a file does not state it
    bound_us:    the least time that the machine needs for this work, modelled
    fraction:    bound_us / us
    ok:          the result is the reference's
    status:      one of STATUSES, with its reason where it is not good
    registers, spill_bytes: of a thread; None where nothing was built
    smem_bytes, blocks_per_sm: of a block; likewise
    source_hash: fingerprint of the program
    stage:       "full" for a time taken alone, FINAL for one taken in turn with the other best
    run:         date of the run that it comes from, as its environment has it
    untrusted:   why the time must not be believed, if there is a reason
    rounds:      of a final: the samples of each of its rounds; in one list they are `samples`
    contest:     a name of one final: its rows compare round by round, with no others
    round_mhz:   SM clock in each round; null where it was not read
    throttled:   places in `samples` of those taken while the board held its clocks down
    board_factor: time of the yardstick on this board / on the board all others are compared with;
                 None where no yardstick was measured
    board:       UUID of the board; files have it in the environment of the row's run
    more:        what else a file has of it: the board's state, fields of newer versions; of a row
                 that is somebody else's, `peer`, whose it is, and `kind`, "4-bit" or "fp16"
    """

    kernel: str
    op: str
    problem: Mapping[str, Any]
    config: Mapping[str, Any]
    arch: str = ""
    regime: str = "cold"
    us: float = math.nan
    us_low: float = math.nan
    us_high: float = math.nan
    samples: tuple[float, ...] = ()
    gbps: float = math.nan
    tflops: float = math.nan
    flops: float | None = None
    bytes: float | None = None
    bound_us: float = math.nan
    fraction: float = math.nan
    rel_error: float = math.nan
    max_error: float = math.nan
    ok: bool = False
    status: str = MEASURED
    reason: str = ""
    registers: int | None = None
    spill_bytes: int | None = None
    smem_bytes: int | None = None
    blocks_per_sm: int | None = None
    source_hash: str = ""
    seed: int = 0
    stage: str = ""
    run: str = ""
    untrusted: str = ""
    rounds: tuple[tuple[float, ...], ...] = ()
    contest: str = ""
    round_mhz: tuple[float | None, ...] = ()
    throttled: tuple[int, ...] = ()
    board_factor: float | None = None
    board: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Row:
        """Return the row that a file has, once `row_error` has found nothing wrong with it."""
        known = {name: found[name] for name in NAMES if name in found}
        known |= {name: _number(known[name]) for name in NUMBERS if name in known}
        for name in LISTS & known.keys():
            known[name] = tuple(known[name])
        known["rounds"] = tuple(tuple(one) for one in known.get("rounds", ()))
        more = {name: value for name, value in found.items() if name not in NAMES}
        return cls(**known, more=more)

    def to_json(self) -> dict[str, Any]:
        """Return the row as a file has it; what only some rows have, where it has it."""
        known = {name: getattr(self, name) for name in NAMES if name != "board"}
        known = {name: one for name, one in known.items() if name not in RARE or one not in EMPTY}
        lists = {name: list(known[name]) for name in LISTS & known.keys()}
        if self.rounds:
            lists["rounds"] = [list(one) for one in self.rounds]
        return {**known, **lists, **self.more}

    @property
    def key(self) -> tuple[str, ...]:
        """What a row is about; of two rows with one key, the newer holds.

        The source hash is not part of it: a kernel whose source changed is measured anew, and the
        time of a program that no longer exists must not win.
        """
        texts = as_text(self.problem), as_text(self.config)
        return (self.op, self.kernel, *texts, self.regime)

    @property
    def peer(self) -> str:
        """Whose kernel it is, if it is none of this house's."""
        return str(self.more.get("peer") or "")

    @property
    def throttle(self) -> tuple[str, ...]:
        """Why the clocks were low while it was timed, if they were."""
        return tuple(self.more.get("throttle") or ())

    @property
    def clock_mhz_after(self) -> float | None:
        """The SM clock at the end of its timing, where it was read."""
        clocks: list[float | None] = self.more.get("clock_mhz") or [None]
        return clocks[-1]

    def parts(self) -> Iterable[Part]:
        """Return what is known of it."""
        # it knows winners, and these know rows
        from ferrum_numba.results.display import of_row

        return [of_row(self)]


NAMES = tuple(f.name for f in fields(Row) if f.name != "more")
NUMBERS = tuple(f.name for f in fields(Row) if f.type == "float")
LISTS = {"samples", "round_mhz", "throttled"}
RARE = {"rounds", "contest", "round_mhz", "throttled", "board_factor"}
EMPTY = ((), "", None)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def problem_key(problem: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return a problem as a hashable value."""
    return tuple(sorted(problem.items()))


def same(left: object, right: object) -> bool:
    """Tell whether two JSON-like values are equal once written and read."""
    return as_text(left) == as_text(right)


def as_text(value: object) -> str:
    """Return a JSON-like value as one text, whatever the order of its names."""
    return json.dumps(value, sort_keys=True)


def size_of(problem: Mapping[str, Any]) -> int | None:
    """Return the size that problems of one shape sweep: M, or the tokens of a MoE layer."""
    return next((int(problem[name]) for name in SIZE_NAMES if name in problem), None)


def size_name(problem: Mapping[str, Any]) -> str:
    """Return what the size that problems of one shape sweep is called."""
    return next((name for name in SIZE_NAMES if name in problem), SIZE_NAMES[0])


def num_tiles(config: Mapping[str, Any], problem: Mapping[str, Any]) -> float:
    """Return how many tiles a config cuts a problem's rows into: of `tile_m`, or of one row each.

    A tile takes as long however many of its rows are used. Of experts each that is hit has one at
    least; how many are hit is what to expect of a uniform routing.
    """
    rows, tile_m = size_of(problem) or 0, int(config.get("tile_m", 1))
    if not {"num_experts", "top_k"} <= problem.keys():
        return ceil_div(rows, tile_m)
    # more experts a token than there are: of those, the others are elsewhere
    num_experts, top_k = problem["num_experts"], problem["top_k"]
    if config.get("direct"):
        return float(rows * top_k)
    hit = num_experts * (1 - (1 - min(1.0, top_k / num_experts)) ** rows)
    return float(max(hit, rows * top_k / tile_m))
