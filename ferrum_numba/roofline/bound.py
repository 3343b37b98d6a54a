"""The least time a problem needs on a board, and where the rest of a kernel's time goes: modelled.

A bound is the largest of its terms, which overlap, and the launch, which does not: compulsory
bytes at the memory's ceiling, FLOPs at the tensor cores', int4 weights unpacked once at the
unpacking ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ferrum_numba.division import ceil_div
from ferrum_numba.results import Row, num_tiles
from ferrum_numba.roofline.ceilings import Ceiling, launch_floor, ramp, roof

Limit = Literal["latency", "memory", "tensor", "unpack", "unknown"]
# below this, launch, ramp-up and the last wave cost as much as the work: on an H200 a plain read of
# 8.4 MB takes 3.9 us, twice what its bandwidth alone would give
LATENCY_BOUND_US = 5.0
TERM_WORDS = {"memory": "bytes", "tensor": "products", "unpack": "unpacking"}


@dataclass(frozen=True)
class Term:
    """What one unit needs for a problem.

    limit: which unit
    us:    the work at its ceiling
    """

    limit: Limit
    us: float
    ceiling: Ceiling


@dataclass(frozen=True)
class Bound:
    """The least time of a problem: the largest term and the launch."""

    terms: tuple[Term, ...]
    launch_us: float

    @property
    def longest(self) -> Term:
        """Return the term that binds."""
        return max(self.terms, key=lambda term: term.us)

    @property
    def us(self) -> float:
        """Return the least time, modelled."""
        return self.longest.us + self.launch_us

    @property
    def limit(self) -> Limit:
        """Return what limits: a unit, or the launch where the units have too little to do."""
        return "latency" if self.longest.us < LATENCY_BOUND_US else self.longest.limit

    @property
    def source(self) -> str:
        """Return whether the term that binds is of a measured ceiling."""
        return self.longest.ceiling.source


def work(row: Row) -> tuple[float, float] | None:
    """Return (FLOPs, compulsory bytes) of a row, from its rates where it does not state them."""
    flops = row.tflops * row.us * 1e6 if row.flops is None else row.flops
    size_bytes = row.gbps * row.us * 1e3 if row.bytes is None else row.bytes
    # of what nobody measured no comparison holds
    known = 0 < flops < math.inf and 0 < size_bytes < math.inf
    return (float(flops), float(size_bytes)) if known else None


def memory_floor_us(size_bytes: float, memory: Ceiling) -> float:
    """Return the time the compulsory bytes need at a memory ceiling."""
    return size_bytes / memory.rate / 1e3


def tensor_floor_us(flops: float, tensor: Ceiling) -> float:
    """Return the time the FLOPs need at a tensor ceiling."""
    return flops / tensor.rate / 1e6


def num_weights(problem: Mapping[str, Any]) -> float:
    """Return how many int4 weights a problem reads; of experts, those that are hit; 0 if none."""
    if not {"K", "N", "group_size"} <= problem.keys():
        return 0.0
    each = float(problem["K"] * problem["N"])
    return each * hit_experts(problem) if "num_experts" in problem else each


def hit_experts(problem: Mapping[str, Any]) -> float:
    """Return how many experts to expect a weight to be read of, under a uniform routing."""
    num_experts, top_k = problem["num_experts"], problem.get("top_k", 1)
    tokens = next((problem[n] for n in ("tokens", "num_tokens", "M") if n in problem), 1)
    return float(num_experts * (1 - (1 - min(1.0, top_k / num_experts)) ** tokens))


def bound_of(
    amount: tuple[float, float], problem: Mapping[str, Any], ceilings: Sequence[Ceiling]
) -> Bound | None:
    """Return the bound of a problem under some ceilings; None where memory or tensor has none.

    amount:  (FLOPs, compulsory bytes)
    problem: multiplies in `x_dtype`, where it says so, else in `dtype`
    """
    flops, size_bytes = amount
    memory = roof(ceilings, "memory")
    multiplied = str(problem.get("x_dtype", problem.get("dtype", "fp16")))
    tensor = roof(ceilings, "tensor", dtype=multiplied)
    if memory is None or tensor is None:
        return None
    terms = [
        Term("memory", memory_floor_us(size_bytes, memory), memory),
        Term("tensor", tensor_floor_us(flops, tensor), tensor),
    ]
    unpack, weights = roof(ceilings, "unpack", dtype=multiplied), num_weights(problem)
    if unpack is not None and weights:
        terms.append(Term("unpack", weights / unpack.rate / 1e6, unpack))
    floor = launch_floor(ceilings)
    return Bound(tuple(terms), floor.rate if floor else 0.0)


def clocked(bound: Bound, clock_mhz: float | None) -> float:
    """Return the least time, us, at the SM clock the board held; memory has a clock of its own."""
    longest = bound.longest
    at = longest.ceiling.clock_mhz
    if longest.limit == "memory" or not clock_mhz or not at or clock_mhz >= at:
        return bound.us
    slowed = longest.us * at / clock_mhz
    return max(slowed, *(term.us for term in bound.terms)) + bound.launch_us


def waves(row: Row, num_sms: int | None) -> float | None:
    """Return how often a kernel's blocks fill the GPU; None where they share the work evenly.

    Only of configs that cut the result into whole tiles, one or more a block: those with
    `stripes` off, or with `split_k`.
    """
    config, problem = row.config, row.problem
    whole = config.get("stripes") is False or "split_k" in config
    if not whole or not num_sms or not {"tile_m", "tile_n"} <= config.keys() or "N" not in problem:
        return None
    tiles = num_tiles(config, problem) * ceil_div(problem["N"], config["tile_n"])
    return float(tiles * config.get("split_k", 1) / (num_sms * (row.blocks_per_sm or 1)))


@dataclass(frozen=True)
class Piece:
    """A part of a kernel's time.

    name:     "bytes", "products" and "unpacking" overlap; the others come on top
    us:       how long, modelled; "rest" is measured less modelled
    why:      what it is, in the user's numbers
    """

    name: str
    us: float
    why: str


def pieces(row: Row, bound: Bound, ceilings: Sequence[Ceiling], num_sms: int | None) -> list[Piece]:
    """Return where a row's time goes: the overlapping terms, then what comes on top of the longest.

    All but the row's time is modelled.
    """
    found = [
        Piece(TERM_WORDS[term.limit], term.us, f"at {term.ceiling.name} {term.ceiling.text}")
        for term in bound.terms
    ]
    longest = bound.longest
    extra = [Piece("launch", bound.launch_us, f"{bound.launch_us:.2g} µs a launch")]
    first = ramp(ceilings)
    if first is not None:
        us = max(0.0, first.rate - bound.launch_us)
        extra.append(Piece("ramp", us, f"{us:.2g} µs until the first bytes are there"))
    extra.append(_tail(longest, waves(row, num_sms)))
    slower = clocked(bound, row.clock_mhz_after) - bound.us
    clocks = f"SM clock {row.clock_mhz_after or 0:.0f} of {longest.ceiling.clock_mhz or 0:.0f} MHz"
    extra.append(Piece("clocks", slower, clocks))
    extra = [piece for piece in extra if piece.us > 0]
    rest = row.us - longest.us - sum(piece.us for piece in extra)
    return [*found, *extra, Piece("rest", rest, f"{rest:.3g} µs that no term explains")]


def _tail(longest: Term, count: float | None) -> Piece:
    """Return what the last, partly filled wave costs; nothing where memory limits.

    Blocks that are alone on the GPU get its whole bandwidth.
    """
    if count is None or longest.limit == "memory":
        return Piece("tail", 0.0, "")
    us = longest.us * (math.ceil(count) / count - 1)
    return Piece("tail", us, f"{count:.2f} waves take the time of {math.ceil(count)}")
