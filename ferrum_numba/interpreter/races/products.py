"""The products of a warpgroup: which groups of them were committed, and which have ended."""

from __future__ import annotations

from typing import Any

from ferrum_numba.interpreter.races.registers import Fresh, Sums
from ferrum_numba.interpreter.races.report import RaceFault


class Products:
    """Of one warpgroup; a group's number is its epoch as an actor."""

    def __init__(self) -> None:
        self.committed = 0
        self.ended = 0
        self.open = False
        self.fresh = [Fresh() for _ in range(4)]

    @property
    def group(self) -> int:
        """The number of the group that a product begun now belongs to."""
        return self.committed + 1

    @property
    def last(self) -> int:
        """The number of the last group that has products."""
        return self.committed + self.open

    def commit(self) -> None:
        """Close the group."""
        self.committed += 1
        self.open = False

    def wait(self, pending: int) -> int:
        """Return the last group that has ended when at most `pending` have not."""
        self.ended = max(self.ended, self.committed - pending)
        return self.ended

    def fence(self) -> None:
        """Order accesses to registers before the products that follow."""
        for fresh in self.fresh:
            fresh.fence()

    def check(self, request: tuple[Any, ...], names: tuple[str, ...]) -> None:
        """Refuse registers that were written after the last fence."""
        fresh = self.fresh[0]
        if not fresh.fenced:
            raise RaceFault(
                "begins a product whose registers no fence orders; missing: wgmma_fence() before "
                "the first product"
            )
        for name, operand in zip(names, request[1:], strict=True):
            if name == "acc" and isinstance(operand, Sums):
                continue
            if name in ("acc", "a") and fresh.has(operand):
                raise RaceFault(
                    f"begins a product with registers of {name} that were written since the last "
                    "fence; missing: wgmma_fence() between the two"
                )
