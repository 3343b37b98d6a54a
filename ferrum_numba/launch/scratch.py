"""Scratch memory of launches: one set of grow-only buffers for every stream of a GPU.

Launches of one stream run one after the other, so they share their scratch; those of two streams
may run at once and must not. A stream is known by its id, because the driver gives the handle of a
destroyed stream to the next one.

A captured graph keeps the addresses it was captured with, so nothing is freed when a buffer grows.
While a stream is captured the driver does not tell its id (it ends the capture that asks). So a
capture gets the spare set, which `reserve` fills beforehand, once for each capture; without one,
the set of the stream that was last seen or reserved for under this handle. A graph must not run at
the same time as other work on the set that it was captured with.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from cuda.bindings import driver

from ferrum_numba.errors import CaptureError
from ferrum_numba.launch.buffer import Buffer
from ferrum_numba.launch.device import Device, call, call_all

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
    """The scratch of one GPU: an `Area` for every stream, and one reserved for a capture."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._spare = Area(device)
        self._all = [self._spare]
        self._of_stream: dict[int, Area] = {}  # by id
        self._of_handle: dict[int, Area] = {}
        self._of_capture: dict[int, Area] = {}  # by the capture's id
        self._lock = threading.Lock()

    def addresses(self, stream: int, needs: Mapping[str, int]) -> dict[str, int]:
        """Return the addresses of a stream's buffers, by name; grows them where it must.

        needs: bytes by name; what must be zero before a launch is left zero by every launch

        Raises:
            CaptureError: the stream is being captured and its buffers are too small.
        """
        if capturing(stream):
            return self._captured(stream, needs).addresses
        area = self._of_stream.get(int(call(driver.cuStreamGetId, stream)))
        if area is None or not area.holds(needs):
            with self._lock:
                area = self._area(stream)
                area.grow(needs)
        return area.addresses

    def reserve(self, needs: Mapping[str, int], stream: Any = None) -> None:
        """Grow the buffers of a stream; without one, the spare set for a capture to come."""
        with self._lock:
            area = self._spare if stream is None else self._area(stream)
            area.grow(needs)

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(area.size_bytes for area in self._all)

    def _area(self, stream: int) -> Area:
        """Return the area of a stream that is not being captured."""
        stream_id = int(call(driver.cuStreamGetId, stream))
        if stream_id not in self._of_stream:
            self._of_stream[stream_id] = self._new()
        self._of_handle[stream] = self._of_stream[stream_id]
        return self._of_stream[stream_id]

    def _captured(self, stream: int, needs: Mapping[str, int]) -> Area:
        """Return the area of a capture, chosen when it first asks."""
        with self._lock:
            _status, capture_id, *_ = call_all(driver.cuStreamGetCaptureInfo, stream)
            area = self._of_capture.get(int(capture_id))
            if area is None:
                area = self._spare if self._spare.holds(needs) else self._of_handle.get(stream)
            if area is None or not area.holds(needs):
                raise CaptureError(
                    f"{sum(needs.values())} bytes of scratch cannot be allocated while a graph is "
                    "captured, and a stream does not use another's"
                )
            if area is self._spare:
                self._spare = self._new()
            self._of_capture[int(capture_id)] = area
            return area

    def _new(self) -> Area:
        area = Area(self._device)
        self._all.append(area)
        return area
