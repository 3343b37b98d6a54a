"""What a board can do at most: ceilings from the datasheet and from rows of the ceiling kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ferrum_numba.results import Row

Source = Literal["measured", "datasheet"]
Kind = Literal["memory", "cache", "tensor", "alu", "unpack", "latency"]
Unit = Literal["GB/s", "TFLOP/s", "TOP/s", "10^12 weights/s", "us"]
Pace = Literal["", "burst", "sustained"]

# what a row says it is a ceiling of -> its kind here
KINDS: dict[str, Kind] = {
    "DRAM": "memory", "L2": "cache", "shared memory": "cache", "tensor": "tensor", "ALU": "alu",
    "dequantisation": "unpack", "latency": "latency",
}  # fmt: skip
# words of a ceiling kernel's name -> the type of its operands; of the others it is fp16
OPERANDS = {
    "fp8": "fp8", "e4m3": "fp8", "e5m2": "fp8", "f8": "fp8", "int8": "int8", "s8": "int8",
    "bf16": "bf16", "tf32": "tf32",
}  # fmt: skip
HALF = frozenset({"fp16", "bf16"})
# what tensor cores do of them, as datasheets have it, of what they do of fp16
EIGHT_BIT = {"fp8": 2, "int8": 2}
# two int4 weights to a byte
WEIGHTS_A_BYTE = 2
SPELLINGS = {"dram": "DRAM", "l2": "L2", "mma sync": "mma.sync", "smem": "shared memory"}


@dataclass(frozen=True)
class Ceiling:
    """One limit of a board.

    kind:   "memory" is device memory, "cache" L2 or shared memory, "alu" the lanes beside the
            tensor cores, "unpack" int4 weights made operands, "latency" what a launch costs
    rate:   10^9 B/s (GB/s), 10^12 FLOP/s (TFLOP/s), 10^12 weights/s or us, as `unit` says
    low:    the rate at the slow end of the interval of time; equal to `rate` if unknown
    pace:   whether it was taken in a burst or sustained, where a file says so
    board:  uuid of the board, and date of the run, if measured
    clock_mhz: SM clock at the end of its timing, where it was read
    dtype:  of what a tensor ceiling multiplies; nothing where its name says so
    """

    name: str
    kind: Kind
    rate: float
    unit: Unit
    source: Source
    low: float
    high: float
    regime: str = ""
    pace: Pace = ""
    board: str = ""
    date: str = ""
    clock_mhz: float | None = None
    dtype: str = ""

    @property
    def text(self) -> str:
        """Return the rate with its unit, TB/s from 1000 GB/s."""
        if self.unit == "GB/s" and self.rate >= 1000:
            return f"{self.rate / 1000:.2f} TB/s"
        return f"{self.rate:.3g} µs" if self.unit == "us" else f"{self.rate:.4g} {self.unit}"

    @property
    def operands(self) -> str:
        """Return the type that a tensor ceiling multiplies."""
        words = self.name.replace(".", " ").split()
        return self.dtype or next((OPERANDS[word] for word in words if word in OPERANDS), "fp16")

    @property
    def gbps(self) -> float:
        """Return the slope of a diagonal, 10^9 bytes/s; of unpacking, bytes of packed weights."""
        return self.rate * 1e3 / WEIGHTS_A_BYTE if self.kind == "unpack" else self.rate


def number(facts: Mapping[str, Any], name: str) -> float | None:
    """Return a fact's figure, or None if it is missing, not a number or not finite."""
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


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
    if name.startswith(("dequant", "unpack")):
        return "unpack", "10^12 weights/s"
    if tflops * 1e3 > gbps:
        return "tensor" if "mma" in name else "alu", "TFLOP/s"
    if gbps > 0:
        cached = any(word in name for word in ("L2", "shared", "L1"))
        return "cache" if cached else "memory", "GB/s"
    return "latency", "us"


def _pace(row: Row) -> Pace:
    """Return whether a row is of a burst or sustained, wherever its file says so."""
    said = (row.regime, *row.kernel.split("_"), *row.problem.values(), *row.config.values())
    said = (*said, row.more.get("pace"), row.more.get("mode"))
    if "sustained" in said:
        return "sustained"
    return "burst" if "burst" in said else ""


def _name_of(row: Row) -> str:
    words = [word for word in row.kernel.split("_") if word not in ("burst", "sustained")]
    name = " ".join(words)
    for plain, spelled in SPELLINGS.items():
        name = name.replace(plain, spelled)
    return name


def ceilings_of_row(row: Row, board: str = "") -> list[Ceiling]:
    """Return what a ceiling row measured: a rate of FLOPs, else of bytes, else a time.

    A row that says what it is a ceiling of is believed; of others the kernel's name tells. With
    `sustained`, it is two: in a burst and after seconds at the limit.
    """
    if not row.ok or math.isnan(row.us):
        return []
    about = row.more.get("ceiling") or {}
    name = _name_of(row)
    kind, unit = _kind_of(name, row.gbps, row.tflops)
    rate: float = {"us": row.us, "GB/s": row.gbps}.get(unit, row.tflops)
    if about.get("kind") in KINDS and row.more.get("rate"):
        kind, unit, rate = KINDS[about["kind"]], row.more["unit"], float(row.more["rate"])
    known = Ceiling(
        name, kind, rate, unit, "measured", *_ends(rate, unit, interval_us(row)), row.regime,
        _pace(row), board, row.run, row.clock_mhz_after, about.get("dtype", ""),
    )  # fmt: skip
    held = row.more.get("sustained") or {}
    if not held.get("rate"):
        return [known]
    us = float(held["us"])
    ends = _ends(held["rate"], unit, (us, held.get("us_low") or us, held.get("us_high") or us))
    sustained = replace(
        known, rate=float(held["rate"]), low=ends[0], high=ends[1], pace="sustained",
        clock_mhz=held.get("clock_mhz"),
    )  # fmt: skip
    return [replace(known, pace="burst"), sustained]


def _ends(rate: float, unit: str, us: tuple[float, float, float]) -> tuple[float, float]:
    """Return the interval of a rate, of that of its time; a long time is a low rate."""
    middle, low, high = us
    if unit == "us":
        return rate * low / middle, rate * high / middle
    return rate * middle / high, rate * middle / low


def interval_us(row: Row) -> tuple[float, float, float]:
    """Return a row's time and the ends of its interval, which are the time where there is none."""
    low, high = (row.us if math.isnan(end) else end for end in (row.us_low, row.us_high))
    return row.us, low, high


def measured_ceilings(rows: Iterable[Row], board: str = "") -> list[Ceiling]:
    """Return the best of every ceiling kernel at every pace, by name."""
    best: dict[tuple[str, Pace], Ceiling] = {}
    for found in (one for row in rows for one in ceilings_of_row(row, board)):
        known = best.get((found.name, found.pace))
        faster = known is None or (found.rate < known.rate) == (found.unit == "us")
        if faster:
            best[found.name, found.pace] = found
    return [best[key] for key in sorted(best)]


def roof(
    ceilings: Sequence[Ceiling], kind: str, source: Source | None = None, dtype: str = "fp16"
) -> Ceiling | None:
    """Return the highest ceiling of a kind: measured if there is one, else from the datasheet.

    dtype: of the operands that a tensor ceiling multiplies, or that weights are unpacked to; fp16
           and bf16 stand in for each other
    """
    found = [c for c in ceilings if c.kind == kind and (source is None or c.source == source)]
    found = [c for c in found if kind not in ("tensor", "unpack") or _multiplies(c, dtype)]
    measured = [c for c in found if c.source == "measured"]
    if kind == "tensor" and not found and dtype in EIGHT_BIT:
        return _of_eight_bits(roof(ceilings, kind, "datasheet"), dtype)
    return max(measured or found, key=lambda c: c.rate, default=None)


def _of_eight_bits(half: Ceiling | None, dtype: str) -> Ceiling | None:
    """Return the ceiling of a type that nobody measured, of the datasheet's of fp16."""
    if half is None:
        return None
    rate = half.rate * EIGHT_BIT[dtype]
    return replace(half, name=f"{half.name} {dtype}", rate=rate, low=rate, high=rate, dtype=dtype)


def _multiplies(ceiling: Ceiling, dtype: str) -> bool:
    return ceiling.operands == dtype or {ceiling.operands, dtype} <= HALF


def launch_floor(ceilings: Iterable[Ceiling]) -> Ceiling | None:
    """Return the least that a launch costs, of a kernel that does nothing."""
    found = [c for c in ceilings if c.kind == "latency"]
    named = [c for c in found if any(word in c.name for word in ("launch", "node", "empty"))]
    return min(named, key=lambda c: c.rate, default=None)


def ramp(ceilings: Iterable[Ceiling]) -> Ceiling | None:
    """Return what a kernel takes until its first bytes are there, where that was measured."""
    found = [c for c in ceilings if c.kind == "latency" and "ramp" in c.name]
    return min(found, key=lambda c: c.rate, default=None)


def ridge(memory: Ceiling, tensor: Ceiling) -> float:
    """Return the FLOP per byte above which the tensor cores limit, not the memory."""
    return tensor.rate * 1e3 / memory.gbps


def bands(ceilings: Sequence[Ceiling]) -> list[tuple[Ceiling, Ceiling]]:
    """Return (sustained, burst) of every ceiling that was measured at both paces."""
    paces: dict[str, dict[str, Ceiling]] = {}
    for one in ceilings:
        paces.setdefault(one.name, {})[one.pace] = one
    both = [found for found in paces.values() if {"burst", "sustained"} <= found.keys()]
    return [(found["sustained"], found["burst"]) for found in both]
