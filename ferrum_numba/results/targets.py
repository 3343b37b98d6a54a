"""Targets: what share of a limit the winners of a regime must reach, and whether they do.

    [[target]]
    name = "decode of one row"
    op = "w4a16_gemm"
    sizes = [1, 1]            # M, or tokens, from the one to the other
    of = "DRAM"               # of the read ceiling; see OF
    at_least = 0.9
    share = 0.75              # of the problems that must reach it; all by default

What is compared is the winner of each problem. Of a limit that nobody measured nothing is said.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

from ferrum_numba import door
from ferrum_numba.errors import StoreError
from ferrum_numba.results.row import Row, as_text, size_of
from ferrum_numba.results.winners import winners
from ferrum_numba.words import counted

# a target takes a hundred
MOST_BYTES = 1 << 20
# what a target is a share of
OF = {
    "bound": "the time that the machine needs at least, as the row has it",
    "DRAM": "the measured read ceiling, of compulsory bytes",
    "tensor": "the measured fp16 tensor ceiling, of FLOPs",
    "4-bit": "the fastest 4-bit peer's rate, of the same problem",
    "fp16": "the fastest fp16 peer's rate, of the same problem",
}
# ceiling kernels that measure a limit, the best of which counts
READS = ("dram_read", "dram_read_bulk")
TENSORS = ("mma_sync", "wgmma", "mma_sync_fed", "wgmma_fed")
# sizes that a target is about, if it states none
ANY = (1, 2**31)
# fields that tell problems apart
TELLING = ("M", "N", "K", "tokens", "num_experts", "top_k", "group_size")


@dataclass(frozen=True)
class Target:
    """What must be reached.

    sizes:    M, or tokens, from the first to the last; all problems, those without one too, where
              they are ANY
    where:    fields that a problem has besides, by name
    of:       one of OF
    at_least: the share of it
    share:    of the problems that must reach it
    """

    name: str
    op: str
    of: str
    at_least: float
    sizes: tuple[int, int] = ANY
    regime: str = "cold"
    share: float = 1.0
    where: Mapping[str, Any] = field(default_factory=dict)

    def concerns(self, row: Row) -> bool:
        """Tell whether a row is of a problem that the target is about."""
        size = size_of(row.problem)
        low, high = self.sizes
        return (
            (row.op, row.regime) == (self.op, self.regime)
            and (self.sizes == ANY if size is None else low <= size <= high)
            and all(row.problem.get(name) == value for name, value in self.where.items())
        )


@dataclass(frozen=True)
class Reached:
    """What became of a target.

    shares: what each problem reached, by its row, the least first; a limit that nobody measured
            leaves a problem out
    unknown: problems left out
    """

    target: Target
    shares: tuple[tuple[Row, float], ...]
    unknown: int = 0

    @property
    def good(self) -> int:
        """How many problems reach the target."""
        return sum(share >= self.target.at_least for _, share in self.shares)

    @property
    def met(self) -> bool | None:
        """Whether so many problems reach it as must; None where nothing was measured."""
        if not self.shares:
            return None
        return self.good >= self.target.share * len(self.shares)

    @property
    def text(self) -> str:
        """Return the target in a line, with both numbers."""
        target = self.target
        if not self.shares:
            return f"{target.name}: nothing was measured to hold against {target.of}"
        verdict = "met" if self.met else "MISSED"
        problems = counted(len(self.shares), "problem")
        return (
            f"{verdict}: {target.name}: at least {target.at_least:.0%} of {target.of} on "
            f"{self.good} of {problems} (needs {target.share:.0%}); median "
            f"{self.median:.0%}, worst {self.shares[0][1]:.0%} ({self.worst_at})"
        )

    @property
    def median(self) -> float:
        """Return what was reached in the median; something was measured."""
        return median(share for _, share in self.shares)

    @property
    def worst_at(self) -> str:
        """Return which kernel reached the least, and on what; something was measured."""
        row, _ = self.shares[0]
        words = (f"{name}={row.problem[name]}" for name in row.problem if name in TELLING)
        return f"{row.kernel}, {' '.join(words)}"


def load_targets(path: str | Path) -> list[Target]:
    """Read targets.

    Raises:
        StoreError: missing, no TOML, or a target lacks a field or has one that is none.
    """
    try:
        found = tomllib.loads(door.read_bytes(path, MOST_BYTES).decode())
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: is not TOML: {error}") from error
    stated = found.get("target", [])
    if not stated or not isinstance(stated, list):
        raise StoreError(f"{path}: has no [[target]]")
    return [_target(f"{path}: target {i + 1}", one) for i, one in enumerate(stated)]


def evaluate(
    targets: Iterable[Target], rows: Iterable[Row], ceilings: Iterable[Row] = ()
) -> list[Reached]:
    """Return what became of each target.

    Args:
        rows:     of one GPU, peers' among them
        ceilings: rows of the ceiling kernels; those of a row's own board where it has some
    """
    rows = list(rows)
    won = [winner.row for winner in winners(rows)]
    limits = _limits(rows, list(ceilings))
    found = []
    for target in targets:
        about = [row for row in won if target.concerns(row)]
        told = [(row, share) for row in about if (share := limits[target.of](row)) is not None]
        told.sort(key=lambda one: one[1])
        found.append(Reached(target, tuple(told), len(about) - len(told)))
    return found


Limit = Callable[[Row], float | None]


def _limits(rows: Sequence[Row], ceilings: Sequence[Row]) -> dict[str, Limit]:
    """Return what share of each limit a row reaches, None where it was not measured."""
    boards = {board: [c for c in ceilings if c.board == board] for board in _boards(ceilings)}
    gbps = {board: _best(some, READS, "gbps") for board, some in boards.items()}
    tflops = {board: _best(some, TENSORS, "tflops") for board, some in boards.items()}
    # of a board without ceilings those of all others
    usual = _best(ceilings, READS, "gbps"), _best(ceilings, TENSORS, "tflops")
    peers: dict[tuple[str, str, str, str], float] = {}
    for row in rows:
        if row.peer and row.us > 0 and row.ok:
            key = _about(row, str(row.more.get("kind")))
            peers[key] = min(row.us, peers.get(key, math.inf))

    def against(kind: str) -> Limit:
        def share(row: Row) -> float | None:
            us = peers.get(_about(row, kind))
            return None if us is None else us / row.us

        return share

    def dram(row: Row) -> float | None:
        roof = gbps.get(row.board) or usual[0]
        return roof and (row.bytes or 0) / row.us / 1e3 / roof

    def tensor(row: Row) -> float | None:
        roof = tflops.get(row.board) or usual[1]
        return roof and (row.flops or 0) / row.us / 1e6 / roof

    return {
        "bound": lambda row: None if math.isnan(row.bound_us) else row.bound_us / row.us,
        "DRAM": dram,
        "tensor": tensor,
        "4-bit": against("4-bit"),
        "fp16": against("fp16"),
    }


def _boards(rows: Iterable[Row]) -> set[str]:
    return {row.board for row in rows}


def _about(row: Row, kind: str) -> tuple[str, str, str, str]:
    return row.op, as_text(row.problem), row.regime, kind


def _best(rows: Iterable[Row], names: Sequence[str], rate: str) -> float | None:
    found = [getattr(row, rate) for row in rows if row.kernel in names and row.ok]
    return max((one for one in found if one > 0), default=None)


def _target(about: str, stated: object) -> Target:
    if not isinstance(stated, dict):
        raise StoreError(f"{about} must be a table, got {door.quoted(stated)}")
    known = {one.name: one for one in fields(Target)}
    needed = [
        name
        for name, one in known.items()
        if one.default is MISSING and one.default_factory is MISSING
    ]
    for name in needed:
        if name not in stated:
            raise StoreError(f"{about} has no {name}")
    for name, value in stated.items():
        if name not in known:
            raise StoreError(
                f"{about} has no field {name[: door.SHOWN]}: known are {', '.join(known)}"
            )
        if not _fits(name, value):
            raise StoreError(f"{about}: {name} cannot be {door.quoted(value)}")
    sizes = stated.get("sizes", Target.sizes)
    return Target(**{**stated, "sizes": tuple(sizes)})


def _fits(name: str, value: object) -> bool:
    if name == "of":
        return isinstance(value, str) and value in OF
    if name in ("at_least", "share"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and 0 < float(value) <= (1 if name == "share" else 10)  # type: ignore[arg-type]
    if name == "sizes":
        return (
            isinstance(value, list)
            and len(value) == 2
            and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
            and 0 < value[0] <= value[1] <= 2**63
        )
    return isinstance(value, dict if name == "where" else str)
