"""Where things lie: regions of a block's shared memory, and which thread holds what of a tile."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Region:
    """A named part of a block's dynamic shared memory.

    offset:     from its begin, or where the region is a part of another one, from that one's; bytes
    size_bytes: of all its places together
    what:       what lies there, in words
    places:     equal ones, one after the other, such as the stages of a ring
    parts:      what one of the places is made of
    """

    name: str
    offset: int
    size_bytes: int
    what: str = ""
    places: int = 1
    parts: tuple[Region, ...] = ()


def regions(size_bytes: int, *begins: Region) -> tuple[Region, ...]:
    """Return regions that end where the next one begins, without those that are empty.

    Args:
        size_bytes: where the last one ends
        begins:     regions in the order of their offsets; what they say of their size is not read
    """
    ends = [*(one.offset for one in begins), size_bytes]
    return tuple(
        Region(one.name, begin, end - begin, one.what, one.places, one.parts)
        for one, (begin, end) in zip(begins, pairwise(ends), strict=True)
        if end > begin
    )


def begin(
    name: str, offset: int, what: str = "", places: int = 1, parts: tuple[Region, ...] = ()
) -> Region:
    """Return the begin of a region, for `regions`."""
    return Region(name, offset, 0, what, places, parts)


@dataclass(frozen=True, eq=False)
class Tile:
    """Which thread holds which element of a tile.

    name:          what it is a tile of
    rows, columns: what its rows and columns are called, such as k and n
    lane:          [R, C] int, the thread of a warp, or of a warpgroup, that holds the element
    place:         [R, C] str, where in that thread
    place_is:      what a place is, in words: "word.nibble"
    """

    name: str
    rows: str
    columns: str
    lane: npt.NDArray[Any]
    place: npt.NDArray[Any]
    place_is: str

    def held_by(self, lane: int) -> list[tuple[str, int, int]]:
        """Return place, row and column of each element that a thread holds, in their order."""
        found = [(str(self.place[r, c]), int(r), int(c)) for r, c in np.argwhere(self.lane == lane)]
        return sorted(found, key=lambda one: ([int(n) for n in one[0].split(".")], one[1:]))
