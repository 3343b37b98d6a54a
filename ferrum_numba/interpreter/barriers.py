"""Barriers of a block or cluster, and mbarriers, with their counts kept exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ferrum_numba.interpreter.memory import Array, Fault


@dataclass
class Barrier:
    """Threads wait until `expected` of them have arrived; then the next generation begins."""

    name: str
    expected: Callable[[], int]
    arrived: int = 0
    generation: int = 0
    # first thread of a group that arrived -> the generation it waits to see end
    waiting: dict[int, int] = field(default_factory=dict)
    # what those that arrived in this generation know, and in the one before: see races/clocks.py
    gathered: dict[int, Any] = field(default_factory=dict)
    released: dict[int, Any] = field(default_factory=dict)

    def arrive(self, count: int) -> None:
        """Count `count` threads in."""
        self.arrived += count
        self.poll()

    def poll(self) -> None:
        """End the generation if everybody is here; the threads that exist may have become fewer."""
        expected = self.expected()
        if self.arrived > expected:
            raise Fault(f"{self.name}: {self.arrived} threads arrive, it expects {expected}")
        if self.arrived == expected:
            self.arrived = 0
            self.generation += 1
            self.released, self.gathered = self.gathered, {}

    def wait(self, thread: int) -> bool:
        """Return whether the generation in which this thread arrived has ended."""
        if self.arrived:
            self.poll()
        if self.waiting[thread] == self.generation:
            return False
        del self.waiting[thread]
        return True


@dataclass
class Copy:
    """A copy into shared memory that has not landed: 16-byte units, and what they will hold."""

    index: Array
    data: Array
    # number of its place in the source, for the detector of races
    site: int = 0


@dataclass
class Mbarrier:
    """An mbarrier: a phase ends when no arrivals and no bytes are outstanding."""

    count: int
    pending: int
    tx_bytes: int = 0
    phase: int = 0
    # with the block whose shared memory they go to
    copies: list[tuple[Any, Copy]] = field(default_factory=list)
    # phases that have ended, and for the detector of races: what those that arrived know, the
    # mbarrier's number among the actors, who made it (thread, epoch) and whether a fence followed
    phases: int = 0
    gathered: dict[int, Any] = field(default_factory=dict)
    released: dict[int, Any] = field(default_factory=dict)
    actor: int = 0
    maker: tuple[int, int] = (0, 0)
    fenced: bool = False

    def arrive(self, count: int = 1) -> None:
        """Count arrivals; more than the phase expects is an error."""
        if count > self.pending:
            raise Fault(
                f"arrives at an mbarrier whose {self.count} arrivals of this phase are all in "
                f"({self.tx_bytes} bytes are outstanding)"
            )
        self.pending -= count
        self._poll()

    def expect(self, size_bytes: int) -> None:
        """Add to the bytes that copies must bring before the phase can end."""
        self.tx_bytes += size_bytes

    def complete(self, size_bytes: int) -> None:
        """Take the bytes of a copy that landed off."""
        self.tx_bytes -= size_bytes
        self._poll()

    def take_copies(self) -> list[tuple[Any, Copy]]:
        """Return the copies that have not landed, to be landed now."""
        copies, self.copies = self.copies, []
        return copies

    def _poll(self) -> None:
        if self.pending == 0 and self.tx_bytes == 0:
            self.phase ^= 1
            self.phases += 1
            self.released, self.gathered = self.gathered, {}
            self.pending = self.count
