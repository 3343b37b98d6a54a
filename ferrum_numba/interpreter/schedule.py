"""In which order warps and blocks run: what a kernel computes must not depend on it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from ferrum_numba.interpreter.warp import Warp

Order = Literal["in turn", "oldest first", "youngest first", "one ahead", "random"]
_Item = TypeVar("_Item")
# instructions that a warp executes at once in a random order, or beside the one that is ahead
_MOST_AT_ONCE, _BESIDE = 24, 2
_TOGETHER = 3


@dataclass(frozen=True)
class Schedule:
    """An order of warps and blocks.

    order: "in turn": a warp after the other, each until it waits, and back; "oldest first" and
           "youngest first": always the first or the last that can go on, blocks likewise;
           "one ahead": one warp as far as it comes, the others a little at a time; "random"
    seed:  of the random numbers, and which warp is ahead
    """

    order: Order = "in turn"
    seed: int = 0

    def __str__(self) -> str:
        seeded = self.order in ("one ahead", "random")
        return f"{self.order} ({self.seed})" if seeded else self.order

    @property
    def together(self) -> int:
        """How many clusters run together where they need not wait for each other.

        They begin in the order of their indices: a block may wait for one that began before it.
        """
        return 1 if self.order in ("in turn", "oldest first") else _TOGETHER

    def clusters(self, live: Sequence[_Item], turn: int) -> Sequence[_Item]:
        """Return in which order those that have begun run."""
        if self.order == "youngest first":
            return live[::-1]
        if self.order == "random":
            return random.Random(f"{self.seed} {turn}").sample(live, len(live))
        return live

    def turns(self, warps: Sequence[Warp]) -> Iterator[bool]:
        """Run the warps of a cluster; yield, after each of them, whether it moved.

        It ends when none of them can go on.
        """
        run = {
            "in turn": self._in_turn,
            "oldest first": self._first,
            "youngest first": self._first,
            "one ahead": self._one_ahead,
            "random": self._random,
        }[self.order]
        yield from run(list(warps))

    def _in_turn(self, warps: list[Warp]) -> Iterator[bool]:
        moved = True
        while moved:
            moved = False
            for warp in warps:
                now = warp.run()
                moved |= now
                yield now
            # a missing barrier shows only if the reader comes before the writer
            warps.reverse()

    def _first(self, warps: list[Warp]) -> Iterator[bool]:
        ordered = sorted(warps, key=lambda warp: (warp.block.rank, warp.first))
        if self.order == "youngest first":
            ordered.reverse()
        while any(now := warp.run() for warp in ordered):
            yield now

    def _one_ahead(self, warps: list[Warp]) -> Iterator[bool]:
        ordered = sorted(warps, key=lambda warp: (warp.block.rank, warp.first))
        chosen = ordered.pop(self.seed % len(ordered))
        moved = True
        while moved:
            moved = chosen.run()
            for warp in ordered:
                moved |= warp.run(_BESIDE)
                chosen.run()
            yield moved

    def _random(self, warps: list[Warp]) -> Iterator[bool]:
        numbers = random.Random(f"{self.seed} {warps[0].block.index}")
        moved = True
        while moved:
            moved = False
            for warp in numbers.sample(warps, len(warps)):
                now = warp.run(numbers.randint(1, _MOST_AT_ONCE))
                moved |= now
                yield now


IN_TURN = Schedule()
# those that hurt, the likeliest first
SCHEDULES = (
    IN_TURN,
    Schedule("youngest first"),
    Schedule("random", 1),
    Schedule("one ahead", 0),
    Schedule("oldest first"),
    Schedule("random", 2),
    Schedule("one ahead", 3),
    Schedule("random", 3),
)
