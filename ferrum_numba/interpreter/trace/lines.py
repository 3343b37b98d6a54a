"""What is counted of a line of the source, and what of a whole launch."""

from __future__ import annotations

import linecache
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from ferrum_numba.interpreter.trace.requests import Cost

# kinds of requests, as they are named after the instructions that make them; `cp.async` has one to
# global memory and one to shared memory
GlobalKind = Literal["ld.global", "st.global", "red.global", "cp.async", "cp.async.bulk"]
SharedKind = Literal[
    "ld.shared", "st.shared", "red.shared", "ldmatrix", "stmatrix", "cp.async to shared"
]
Kind = GlobalKind | SharedKind
GLOBAL: tuple[GlobalKind, ...] = (
    "ld.global", "st.global", "red.global", "cp.async", "cp.async.bulk",
)  # fmt: skip
SHARED: tuple[SharedKind, ...] = (
    "ld.shared", "st.shared", "red.shared", "ldmatrix", "stmatrix", "cp.async to shared",
)  # fmt: skip


@dataclass
class Requests:
    """Requests of one kind.

    count: requests, one a warp and access; of bulk copies one a copy
    lanes: that took part, summed over the requests
    units: sectors of 32 bytes of global memory, or wavefronts of shared memory
    least: as few as would do
    worst: units of the worst of them; `needed` of them would have done
    stride_bytes: from lane to lane in the worst, where it is even
    """

    count: int = 0
    lanes: int = 0
    units: int = 0
    least: int = 0
    worst: int = 0
    needed: int = 0
    stride_bytes: int | None = None

    def add(self, cost: Cost, lanes: int) -> None:
        """Count a request."""
        self.count += 1
        self.lanes += lanes
        self.units += cost.units
        self.least += cost.least
        # by how many times too many, then by how many
        if not self.worst or cost.units * self.needed > self.worst * cost.least:
            self.worst, self.needed, self.stride_bytes = cost

    def merge(self, other: Requests) -> None:
        """Add what was counted elsewhere."""
        self.count, self.lanes = self.count + other.count, self.lanes + other.lanes
        self.units, self.least = self.units + other.units, self.least + other.least
        if not self.worst or other.worst * self.needed > self.worst * other.needed:
            self.worst, self.needed = other.worst, other.needed
            self.stride_bytes = other.stride_bytes


@dataclass
class Line:
    """What warps did at one line of the source.

    executed:     times that a warp executed an instruction here
    instructions: of PTX that it was, one a warp; Python's own arithmetic is not among them
    here, on:     lanes that were there, and that were not predicated off, summed over `executed`
    waits:        times that a warp came to a wait: barriers, mbarriers, copies, products
    for_one:      the instructions here are made for one lane: mbarriers, bulk copies
    in_flight:    bytes of copies, begun and not yet waited for, at most: `cp.async` of one warp,
                  bulk copies of a block
    requests:     to memory, by kind
    """

    filename: str
    number: int
    executed: int = 0
    instructions: int = 0
    here: int = 0
    on: int = 0
    waits: int = 0
    for_one: bool = True
    in_flight: int = 0
    requests: dict[Kind, Requests] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The line as people write it: its file with the folder, and its number."""
        return f"{'/'.join(PurePath(self.filename).parts[-2:])}:{self.number}"

    @property
    def text(self) -> str:
        """What the line says."""
        return linecache.getline(self.filename, self.number).strip()

    @property
    def lanes(self) -> float:
        """How many of a warp's 32 lanes do something here, on average."""
        return self.on / self.executed if self.executed else 0.0

    def of(self, kind: Kind) -> Requests:
        """Return the requests of a kind, which may be none yet."""
        return self.requests.setdefault(kind, Requests())

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {**asdict(self), "place": self.place, "text": self.text}


def total(lines: Iterable[Line], kinds: Iterable[Kind]) -> Requests:
    """Return the requests of some kinds of all lines together."""
    found, wanted = Requests(), set(kinds)
    for line in lines:
        for kind, requests in line.requests.items():
            if kind in wanted:
                found.merge(requests)
    return found
