"""The arithmetic of the roofline: points, ceilings, ridges and floors from plain result rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ferrum_numba.results import Planned, Row, size_name, size_of
from ferrum_numba.results.row import SIZE_NAMES

Source = Literal["measured", "datasheet"]
Kind = Literal["memory", "tensor", "latency", "other"]
Unit = Literal["GB/s", "TFLOP/s", "10^12 weights/s", "us"]
Limit = Literal["latency", "memory", "tensor", "unknown"]

# below this bound, launch, ramp-up and the last wave cost as much as the work: on an H200 a plain
# read of 8.4 MB takes 3.9 us, twice what its bandwidth alone would give
LATENCY_BOUND_US = 5.0
# how far above a measured ceiling a point may lie before it is disbelieved; a datasheet's has none
ANOMALY = 1.05
# sizes of a layer of experts, which name it together
EXPERTS = ("num_experts", "top_k", "K", "N")


@dataclass(frozen=True)
class Ceiling:
    """One limit of the machine.

    kind:   "memory" is device memory; "other" is shown in tables only (L2, ALU)
    rate:   10^9 B/s (GB/s), 10^12 FLOP/s (TFLOP/s), 10^12 weights/s or us, as `unit` says
    low:    the rate at the slow end of the interval of time; equal to `rate` if unknown
    """

    name: str
    kind: Kind
    rate: float
    unit: Unit
    source: Source
    low: float
    high: float
    regime: str = ""

    @property
    def text(self) -> str:
        """Return the rate with its unit, TB/s from 1000 GB/s."""
        if self.unit == "GB/s" and self.rate >= 1000:
            return f"{self.rate / 1000:.2f} TB/s"
        return f"{self.rate:.3g} µs" if self.unit == "us" else f"{self.rate:.4g} {self.unit}"


@dataclass(frozen=True)
class Point:
    """One kernel on one problem in one regime.

    size:  M, or what else the problem sweeps; None if it has no such size
    bytes: compulsory traffic to device memory
    doubt: why the point must not be trusted; empty if it may be
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
    fraction: float | None = None
    doubt: str = ""
    modelled: bool = False
    size_name: str = "M"

    @property
    def intensity(self) -> float:
        """Return FLOP per byte of device memory."""
        return self.flops / self.bytes

    @property
    def tflops(self) -> float:
        """Return 10^12 FLOP/s."""
        return self.flops / self.us / 1e6


@dataclass(frozen=True)
class Peer:
    """A time somebody else's kernel takes for the same problem.

    kind: what it multiplies: "4-bit" weights or dense "fp16" ones
    """

    name: str
    kind: Literal["4-bit", "fp16"]
    shape: str
    size: int | None
    us: float
    date: str
    source: str


def number(facts: Mapping[str, Any], name: str) -> float | None:
    """Return a fact's figure, or None if it is missing, not a number or not finite."""
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def work(row: Row) -> tuple[float, float] | None:
    """Return (FLOPs, compulsory bytes) of a row, from its rates where it does not state them."""
    flops = row.tflops * row.us * 1e6 if row.flops is None else row.flops
    size_bytes = row.gbps * row.us * 1e3 if row.bytes is None else row.bytes
    # of what nobody measured no comparison holds
    known = 0 < flops < math.inf and 0 < size_bytes < math.inf
    return (float(flops), float(size_bytes)) if known else None


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


def datasheet(facts: Mapping[str, Any]) -> list[Ceiling]:
    """Return the ceilings of a GPU's facts; those of a recorded result count as measured."""
    source: Source = "measured" if facts.get("source") == "recorded" else "datasheet"
    dram, tensor = number(facts, "dram_gbps"), number(facts, "tensor_tflops")
    found = []
    if dram:
        found.append(Ceiling("DRAM", "memory", dram, "GB/s", source, dram, dram))
    if tensor:
        found.append(Ceiling("tensor cores", "tensor", tensor, "TFLOP/s", source, tensor, tensor))
    return found


def _kind_of(name: str, gbps: float, tflops: float) -> tuple[Kind, Unit]:
    """Return what a ceiling kernel of these rates measures; its name says which FLOPs or bytes."""
    if name.startswith("dequant"):
        return "other", "10^12 weights/s"
    if tflops * 1e3 > gbps:
        return "tensor" if "mma" in name else "other", "TFLOP/s"
    if gbps > 0:
        cached = any(word in name.lower() for word in ("l2", "shared", "smem"))
        return "other" if cached else "memory", "GB/s"
    return "latency", "us"


def _ceiling(row: Row) -> Ceiling | None:
    """Return what a ceiling row measured: a rate of FLOPs, else of bytes, else a time."""
    if not row.ok or math.isnan(row.us):
        return None
    us, low_us, high_us = interval_us(row)
    name = row.kernel.replace("_", " ")
    name = name.replace("dram", "DRAM").replace("mma sync", "mma.sync").replace("l2", "L2")
    kind, unit = _kind_of(name, row.gbps, row.tflops)
    if unit == "us":
        return Ceiling(name, kind, us, unit, "measured", low_us, high_us, row.regime)
    rate = row.gbps if unit == "GB/s" else row.tflops
    low, high = rate * us / high_us, rate * us / low_us
    return Ceiling(name, kind, rate, unit, "measured", low, high, row.regime)


def interval_us(row: Row) -> tuple[float, float, float]:
    """Return a row's time and the ends of its interval, which are the time where there is none."""
    low, high = (row.us if math.isnan(end) else end for end in (row.us_low, row.us_high))
    return row.us, low, high


def measured_ceilings(rows: Iterable[Row]) -> list[Ceiling]:
    """Return the best of every ceiling kernel, by name."""
    best: dict[str, Ceiling] = {}
    for found in filter(None, map(_ceiling, rows)):
        known = best.get(found.name)
        faster = known is None or (found.rate < known.rate) == (found.unit == "us")
        if faster:
            best[found.name] = found
    return [best[name] for name in sorted(best)]


def roof(ceilings: Iterable[Ceiling], kind: str, source: Source | None = None) -> Ceiling | None:
    """Return the highest ceiling of a kind: measured if there is one, else from the datasheet."""
    found = [c for c in ceilings if c.kind == kind and (source is None or c.source == source)]
    measured = [c for c in found if c.source == "measured"]
    return max(measured or found, key=lambda c: c.rate, default=None)


def ridge(memory: Ceiling, tensor: Ceiling) -> float:
    """Return the FLOP per byte above which the tensor cores limit, not the memory."""
    return tensor.rate * 1e3 / memory.rate


def memory_floor_us(size_bytes: float, memory: Ceiling) -> float:
    """Return the time the compulsory bytes need at a memory ceiling."""
    return size_bytes / memory.rate / 1e3


def tensor_floor_us(flops: float, tensor: Ceiling) -> float:
    """Return the time the FLOPs need at a tensor ceiling."""
    return flops / tensor.rate / 1e6


def limit_of(row: Row, ceilings: Sequence[Ceiling]) -> Limit:
    """Return what limits a row's problem on this machine, whatever the kernel."""
    memory, tensor, amount = roof(ceilings, "memory"), roof(ceilings, "tensor"), work(row)
    if memory is None or tensor is None or amount is None:
        return "unknown"
    memory_us, tensor_us = memory_floor_us(amount[1], memory), tensor_floor_us(amount[0], tensor)
    if max(memory_us, tensor_us) < LATENCY_BOUND_US:
        return "latency"
    return "memory" if memory_us >= tensor_us else "tensor"


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
        limits = [c for c in ceilings if c.kind == kind]
        sheet = [c.rate for c in limits if c.source == "datasheet"]
        top = max(sheet or [c.rate * ANOMALY for c in limits], default=math.inf)
        if rate > top:
            return f"{rate:.0f} {unit} is above the {top:.0f} {unit} this GPU can reach"
    return ""


def point(row: Row, shape: str, ceilings: Sequence[Ceiling]) -> Point | None:
    """Return the point of a row, or None if it has no time or no work to draw it from."""
    amount = work(row)
    if amount is None or not row.us > 0:
        return None
    us, us_low, us_high = interval_us(row)
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
        fraction=None if math.isnan(row.bound_us) else row.bound_us / us,
        doubt=doubt(row, ceilings),
        size_name=size_name(row.problem),
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
