"""More rows of x than a kernel counts, in launches of some of them each, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ferrum_numba.division import ceil_div, round_up
from ferrum_numba.kernels.w4a16 import MOST_M
from ferrum_numba.linear.launch_plan import LaunchPlan
from ferrum_numba.linear.stages import ELEMENT_BYTES

# rows that every tile divides
GRAIN = 128


@dataclass(frozen=True, eq=False)
class Pieces:
    """The plans of all pieces of x and out.

    plans: with the bytes before each piece, in x and in out
    """

    plans: tuple[tuple[LaunchPlan, int, int], ...]

    def __call__(self, stream: int, x: int, out: int, operands: bytes) -> None:
        """Launch all, as `LaunchPlan` does."""
        for plan, x_offset, out_offset in self.plans:
            plan(stream, x + x_offset, out + out_offset, operands)


Plan = LaunchPlan | Pieces


def planned(M: int, K: int, N: int, plan_of: Callable[[int], LaunchPlan]) -> Plan:
    """Return the plan of any number of rows.

    K, N:    elements of a row of x and of out
    plan_of: returns that of so many rows as a kernel counts
    """
    if M <= MOST_M:
        return plan_of(M)
    found, first = [], 0
    for rows in sizes(M):
        before = first * ELEMENT_BYTES
        found.append((plan_of(rows), before * K, before * N))
        first += rows
    return Pieces(tuple(found))


def sizes(M: int) -> Iterator[int]:
    """Yield the rows of each piece: as few pieces as can be, all alike but the last."""
    size = min(MOST_M, round_up(ceil_div(M, ceil_div(M, MOST_M)), GRAIN))
    for first in range(0, M, size):
        yield min(size, M - first)
