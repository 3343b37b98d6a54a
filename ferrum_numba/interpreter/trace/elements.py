"""Accesses to static shared arrays, which lanes make one after the other, put together by warps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ferrum_numba.interpreter.memory import Array
from ferrum_numba.interpreter.trace.lines import Kind, Line

if TYPE_CHECKING:
    from ferrum_numba.interpreter.rebind import SharedArray


class Together(NamedTuple):
    """What the lanes of a warp read or write at one line at once, in an array of its own."""

    line: Line
    kind: Kind
    size_bytes: int
    thread: list[int]
    offset: list[int]

    @property
    def threads(self) -> Array:
        """Which threads they are."""
        return np.array(self.thread)

    @property
    def address(self) -> Array:
        """Where, if the array begins at bank 0."""
        return np.array(self.offset)


class Elements:
    """What the lanes of one warp access between two instructions.

    Lanes are taken to be in step: the i-th time that each of them is at a line is one instruction.
    """

    def __init__(self) -> None:
        self._times: Counter[Any] = Counter()
        self._found: dict[Any, Together] = {}

    def add(self, line: Line, array: SharedArray, thread: int, index: Any, *, writes: bool) -> None:
        """Note an access of a lane."""
        what = (line.filename, line.number, writes, id(array))
        self._times[what, thread] += 1
        kind: Kind = "st.shared" if writes else "ld.shared"
        key = (what, self._times[what, thread])
        if key not in self._found:
            self._found[key] = Together(line, kind, array.item_bytes, [], [])
        self._found[key].thread.append(thread)
        self._found[key].offset.append(array.offset_of(index))

    def take(self) -> Iterator[Together]:
        """Yield what was accessed, and begin anew."""
        found, self._found = self._found, {}
        self._times.clear()
        yield from found.values()
