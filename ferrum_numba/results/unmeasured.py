"""Rows of what was not timed: planned candidates, and checks against the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ferrum_numba.results.display import Usual, of_checks, of_plan, of_planned
from ferrum_numba.shown import Part, Shown

T = TypeVar("T")


@dataclass(frozen=True)
class Planned(Shown):
    """A candidate of a plan: what it compiles to, and the least time it could take.

    problem, config: their fields by name
    registers, spill_bytes: of a thread; None where it was not built
    smem_bytes, blocks_per_sm: of a block; likewise
    flops, bytes: the problem's least work
    bound_us:  the least time that the machine needs for this work
    status:    "ok", "spills", "does not fit" or "build failed", with its reason
    estimate_us: what it is expected to take, for ranking; None where it does not run
    modelled:  no figure of it is the time of a kernel
    remarks:   what is likely not meant in the program, a sentence each
    stack_bytes: of a thread; None where it was not built
    fp64:      instructions of its PTX that compute in fp64; likewise
    sass:      instructions of its cubin by opcode; None where nobody counted them
    """

    kernel: str
    op: str
    problem: Mapping[str, Any]
    config: Mapping[str, Any]
    arch: str
    registers: int | None
    spill_bytes: int | None
    smem_bytes: int | None
    blocks_per_sm: int | None
    flops: float
    bytes: float
    bound_us: float
    status: str
    reason: str
    estimate_us: float | None = None
    modelled: bool = True
    remarks: tuple[str, ...] = ()
    stack_bytes: int | None = None
    fp64: int | None = None
    sass: Mapping[str, int] | None = None

    def parts(self) -> Iterable[Part]:
        """Return what is known of it."""
        return [of_planned(self)]


@dataclass(frozen=True)
class CheckRow(Shown):
    """A kernel's config on a problem against the reference.

    problem, config: their fields by name
    how:       "gpu" or "interpreter"; nothing where it did not come to an end
    rel_error: ||got - want|| / ||want||
    reason:    what is wrong where it is not ok
    remarks:   what is likely not meant in the program, a sentence each
    num_sms:   of the GPU that it was launched for: fewer than there are where that is harder
    """

    kernel: str
    op: str
    problem: Mapping[str, Any]
    config: Mapping[str, Any]
    ok: bool
    reason: str
    how: str = ""
    rel_error: float | None = None
    max_error: float | None = None
    seconds: float | None = None
    remarks: tuple[str, ...] = ()
    num_sms: int | None = None

    @property
    def status(self) -> str:
        """The outcome in a word."""
        return "ok" if self.ok else "failed"

    def parts(self) -> Iterable[Part]:
        """Return it as a table of one line."""
        return of_checks([self], Usual())


class _Rows(list[T], Shown):
    """Rows with what is usual of them: of a config and a problem there is what differs."""

    def __init__(self, rows: Iterable[T], usual: Usual) -> None:
        super().__init__(rows)
        self.usual = usual

    def __repr__(self) -> str:
        return str(self)


class Candidates(_Rows[Planned]):
    """What a plan returns: its rows, shown as a table for each kernel and problem."""

    def parts(self) -> Iterable[Part]:
        """Return the tables, and why others do not fit."""
        return of_plan(self, self.usual)


class Checks(_Rows[CheckRow]):
    """Checks of several cases, shown as a table for each kernel."""

    def parts(self) -> Iterable[Part]:
        """Return the tables, and what is wrong."""
        return of_checks(self, self.usual)
