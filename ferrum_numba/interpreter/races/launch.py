"""What the watched blocks of a launch share: buffers, what was released, places in the source."""

from __future__ import annotations

from collections.abc import Collection
from types import FrameType
from typing import TYPE_CHECKING, Any

from ferrum_numba.interpreter.lane import MARK, where
from ferrum_numba.interpreter.memory import GlobalMemory
from ferrum_numba.interpreter.races.clocks import Message
from ferrum_numba.interpreter.races.spaces import GlobalSpace

if TYPE_CHECKING:
    from ferrum_numba.interpreter.warp import Group


class Record:
    """What the watched blocks of one launch share.

    launched_early: the launch before may still run: its writes, and its reads, are others' too
    constant:       buffers that the launch before leaves alone: weights
    """

    def __init__(
        self, memory: GlobalMemory, *, launched_early: bool, constant: Collection[str]
    ) -> None:
        self.memory = memory
        self.launched_early = launched_early
        self.changing = [region.name not in constant for region in memory.regions]
        self.spaces = [GlobalSpace(r.base, r.size_bytes) for r in memory.regions]
        self.sites: list[str] = [""]
        self._sites: dict[Any, int] = {}
        self.blocks: list[tuple[int, int, int]] = []
        # what was released at an address of global memory
        self.released: dict[int, Message] = {}
        # how often a tensor map was published at an address
        self.maps: dict[int, int] = {}
        self.cell_bytes = 16
        self.group: Group | None = None

    def site(self) -> int:
        """Return the number of the place in the source where the lanes now stand."""
        group = self.group
        if group is None:
            return 0
        frame = group.lanes[0].gr_frame
        while frame is not None and MARK not in frame.f_globals:
            frame = frame.f_back
        if frame is None:
            return 0
        key = (frame.f_code, frame.f_lasti, group.plan)
        found = self._sites.get(key)
        if found is None:
            found = self._sites[key] = len(self.sites)
            self.sites.append(f"{where(group.lanes[0].places())} ({group.plan.name})")
        return found

    def line(self, frame: FrameType) -> int:
        """Return the number of the line at which a function of the kernel stands."""
        key = (frame.f_code, frame.f_lasti)
        if key not in self._sites:
            self._sites[key] = len(self.sites)
            self.sites.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return self._sites[key]
