"""Scratch memory of launches: one set of grow-only buffers for every stream of a GPU.

Launches of one stream run one after the other, so they share their scratch; those of two streams
may run at once and must not. A stream is known by its id, because the driver gives the handle of a
destroyed stream to the next one.

A captured graph keeps the addresses of the stream it was captured on. So nothing is freed when a
buffer grows, and a stream that first shows up in the middle of a capture gets the spare set, which
`reserve` fills beforehand, once for each such stream. A graph must not run at the same time as
other work of the stream it was captured on.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from cuda.bindings import driver

from ferrum_numba.errors import CaptureError
from ferrum_numba.launch.buffer import Buffer
from ferrum_numba.launch.device import Device, call

# what a buffer grows to is at least so many times what it was: a longer and longer prompt then
# leaves no more memory behind than it uses
GROWTH = 2


def capturing(stream: int) -> bool:
    """Tell whether a stream is being captured into a graph."""
    status = call(driver.cuStreamIsCapturing, stream)
    return bool(status != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)


class Area:
    """The scratch of one stream: grow-only buffers by name, zero when they are new."""

    def __init__(self, device: Device) -> None:
        self.addresses: dict[str, int] = {}
        self._device = device
        self._sizes: dict[str, int] = {}
        self._buffers: list[Buffer] = []

    def holds(self, needs: Mapping[str, int]) -> bool:
        """Tell whether every buffer is as large as needed."""
        return all(self._sizes.get(name, 0) >= size for name, size in needs.items())

    def grow(self, needs: Mapping[str, int]) -> None:
        """Replace the buffers that are too small; the old ones stay where they are."""
        for name, size_bytes in needs.items():
            have = self._sizes.get(name, 0)
            if have < size_bytes:
                buffer = Buffer.empty(self._device, max(size_bytes, GROWTH * have))
                buffer.fill(0)
                self._buffers.append(buffer)
                self.addresses[name] = buffer.pointer
                self._sizes[name] = buffer.size_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers, those that were replaced among them."""
        return sum(buffer.size_bytes for buffer in self._buffers)


class Scratch:
    """The scratch of one GPU, an `Area` for every stream."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._areas: dict[int, Area] = {}
        self._spare = Area(device)
        self._lock = threading.Lock()

    def addresses(self, stream: int, needs: Mapping[str, int]) -> dict[str, int]:
        """Return the addresses of a stream's buffers, by name; grows them where it must.

        needs: bytes by name; what must be zero before a launch is left zero by every launch

        Raises:
            CaptureError: the stream is being captured and its buffers are too small.
        """
        area = self._areas.get(int(call(driver.cuStreamGetId, stream)))
        if area is None or not area.holds(needs):
            area = self._make_room(stream, needs)
        return area.addresses

    def reserve(self, needs: Mapping[str, int], stream: Any = None) -> None:
        """Grow the buffers of a stream; without one, the spare set for a capture to come."""
        with self._lock:
            area = self._spare if stream is None else self._area_of(stream)
            area.grow(needs)

    @property
    def size_bytes(self) -> int:
        """Bytes of all streams' buffers."""
        return sum(area.size_bytes for area in (*self._areas.values(), self._spare))

    def _make_room(self, stream: int, needs: Mapping[str, int]) -> Area:
        with self._lock:
            if not capturing(stream):
                area = self._area_of(stream)
                area.grow(needs)
                return area
            stream_id = int(call(driver.cuStreamGetId, stream))
            area = self._areas.get(stream_id, self._spare)
            if not area.holds(needs):
                raise CaptureError(
                    f"{sum(needs.values())} bytes of scratch cannot be allocated while a graph is "
                    "captured, and a stream does not use another's"
                )
            if area is self._spare:
                self._areas[stream_id], self._spare = area, Area(self._device)
            return area

    def _area_of(self, stream: int) -> Area:
        stream_id = int(call(driver.cuStreamGetId, stream))
        return self._areas.setdefault(stream_id, Area(self._device))
