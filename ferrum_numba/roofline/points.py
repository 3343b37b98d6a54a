"""The points of the roofline: what was measured, in the roofline's terms, and what it is called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ferrum_numba.results import Planned, Row, size_name, size_of
from ferrum_numba.results.row import SIZE_NAMES
from ferrum_numba.roofline.bound import Bound, Limit, bound_of, clocked, hit_experts, work
from ferrum_numba.roofline.ceilings import HALF, Ceiling, interval_us

# how far above a measured ceiling a point may lie before it is disbelieved; a datasheet's has none
ANOMALY = 1.05
# sizes of a layer of experts, which name it together
EXPERTS = ("num_experts", "top_k", "K", "N")


@dataclass(frozen=True)
class Point:
    """One kernel on one problem in one regime.

    size:     M, or what else the problem sweeps; None if it has no such size
    bytes:    compulsory traffic to device memory
    bound_us: the least time under the board's ceilings, modelled, and under the datasheet's
    held_us:  the bound at the SM clock that the board held
    limit:    what binds
    doubt:    why the point must not be trusted; empty if it may be
    run:      date of the run it comes from
    hit:      experts that a layer of experts reads
    traffic:  bytes of device memory that a profiler counted
    """

    kernel: str
    shape: str
    size: int | None
    regime: str
    flops: float
    bytes: float
    us: float
    us_low: float
    us_high: float
    bound_us: float | None = None
    sheet_us: float | None = None
    held_us: float | None = None
    limit: Limit = "unknown"
    doubt: str = ""
    modelled: bool = False
    size_name: str = "M"
    run: str = ""
    hit: float | None = None
    traffic: float | None = None

    @property
    def intensity(self) -> float:
        """Return FLOP per byte of device memory."""
        return self.flops / self.bytes

    @property
    def tflops(self) -> float:
        """Return 10^12 FLOP/s."""
        return self.flops / self.us / 1e6

    @property
    def fraction(self) -> float | None:
        """Return the part of the bound that is reached."""
        return None if self.bound_us is None else self.bound_us / self.us


@dataclass(frozen=True)
class Peer:
    """A time somebody else's kernel takes for the same problem.

    kind: what it multiplies: "4-bit" weights, dense "fp16" ones, …
    rank: 0 if it was measured in our row's run, 1 in another run of ours, 2 if it is of a table
    """

    name: str
    kind: str
    shape: str
    size: int | None
    us: float
    date: str
    source: str
    rank: int = 2


def varying(problems: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the fields that differ between these problems; the others need no label."""
    values: dict[str, set[str]] = {}
    problems = list(problems)
    for problem in problems:
        for name in problem:
            values.setdefault(name, set())
    for name, seen in values.items():
        seen.update(repr(problem.get(name)) for problem in problems)
    return frozenset(name for name, seen in values.items() if len(seen) > 1)


def shape_of(problem: Mapping[str, Any], shown: frozenset[str]) -> str:
    """Return the name of a problem without its size: `K×N`, then the fields that vary.

    A layer of experts is `E128 k8 2048→1536`: its experts, how many of them a token, K and N. Of a
    field that is true there is its name, of one that is false nothing.
    """
    words = []
    if problem.keys() >= set(EXPERTS):
        num_experts, top_k, K, N = (problem[name] for name in EXPERTS)
        words += [f"E{num_experts}", f"k{top_k}", f"{K}→{N}"]
        shown = shown - set(EXPERTS)
    elif "K" in problem and "N" in problem:
        words.append(f"{problem['K']}×{problem['N']}")
        shown = shown - {"K", "N"}
    for name, value in problem.items():
        if name in shown and name not in SIZE_NAMES and value is not False:
            words.append(_field(name, value))
    return " ".join(words) or "all"


def _field(name: str, value: object) -> str:
    if value is True:
        return name
    return value if isinstance(value, str) else f"{name}={value}"


def titled(shape: str) -> str:
    """Return a shape's name for a heading, saying what its sizes are."""
    return f"K×N {shape}" if "×" in shape else shape


def natural(text: str) -> tuple[str | int, ...]:
    """Return a sort key that orders the numbers in a name by value: 8192 before 28672."""
    return tuple(int(w) if i % 2 else w for i, w in enumerate(re.split(r"(\d+)", text)))


def row_bound(row: Row, ceilings: Sequence[Ceiling]) -> Bound | None:
    """Return the bound of a row's problem; None where its work or the ceilings are unknown."""
    amount = work(row)
    return None if amount is None else bound_of(amount, row.problem, ceilings)


def limit_of(row: Row, ceilings: Sequence[Ceiling]) -> Limit:
    """Return what limits a row's problem on this machine, whatever the kernel."""
    bound = row_bound(row, ceilings)
    return "unknown" if bound is None else bound.limit


def doubt(row: Row, ceilings: Sequence[Ceiling]) -> str:
    """Return why a row must not win: it failed its check, or it beats physics; else nothing."""
    if not row.ok:
        return row.reason or row.status
    if row.untrusted:
        return row.untrusted
    # a warm L2 may serve more bytes than device memory can
    rates = [(row.tflops, "tensor", "TFLOP/s")]
    rates += [(row.gbps, "memory", "GB/s")] if row.regime == "cold" else []
    for rate, kind, unit in rates:
        limits = [c for c in ceilings if c.kind == kind and c.operands in HALF]
        sheet = [c.rate for c in limits if c.source == "datasheet"]
        top = max(sheet or [c.rate * ANOMALY for c in limits], default=float("inf"))
        if rate > top:
            return f"{rate:.0f} {unit} is above the {top:.0f} {unit} this GPU can reach"
    return ""


def point(row: Row, shape: str, ceilings: Sequence[Ceiling]) -> Point | None:
    """Return the point of a row, or None if it has no time or no work to draw it from."""
    amount = work(row)
    if amount is None or not row.us > 0:
        return None
    us, us_low, us_high = interval_us(row)
    bound = bound_of(amount, row.problem, ceilings)
    sheet = bound_of(amount, row.problem, [c for c in ceilings if c.source == "datasheet"])
    return Point(
        kernel=row.kernel,
        shape=shape,
        size=size_of(row.problem),
        regime=row.regime,
        flops=amount[0],
        bytes=amount[1],
        us=us,
        us_low=us_low,
        us_high=us_high,
        bound_us=bound.us if bound else None,
        sheet_us=sheet.us if sheet else None,
        held_us=clocked(bound, row.clock_mhz_after) if bound else None,
        limit="unknown" if bound is None else bound.limit,
        doubt=doubt(row, ceilings),
        size_name=size_name(row.problem),
        run=row.run,
        hit=hit_experts(row.problem) if "num_experts" in row.problem else None,
        traffic=(row.more.get("counters") or {}).get("dram_bytes"),
    )


def modelled_point(planned: Planned, shape: str) -> Point:
    """Return the point of a candidate that takes no longer than its bound."""
    return Point(
        kernel=planned.kernel,
        shape=shape,
        size=size_of(planned.problem),
        regime="",
        flops=float(planned.flops),
        bytes=float(planned.bytes),
        us=planned.bound_us,
        us_low=planned.bound_us,
        us_high=planned.bound_us,
        modelled=True,
        size_name=size_name(planned.problem),
    )
