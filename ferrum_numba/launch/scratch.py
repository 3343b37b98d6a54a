"""Scratch memory of launches: one set of grow-only buffers for every stream of a GPU.

Launches of one stream run one after the other, so they share their scratch; those of two streams
may run at once and must not. A stream is known by its id, because the driver gives the handle of a
destroyed stream to the next one.

A captured graph keeps the addresses it was captured with, so nothing is freed when a buffer grows.
Each capture has a set of its own: the spare one, which `reserve` fills beforehand, or what was
reserved for its stream, which all captures of that stream share, or a new one. A graph must not run
at the same time as other work on the set that it was captured with.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from cuda.bindings import driver

from ferrum_numba.errors import CaptureError, ContextError, LaunchError
from ferrum_numba.launch.buffer import Buffer
from ferrum_numba.launch.device import Device, call, call_all
from ferrum_numba.launch.direct import Streams

# what a buffer grows to is at least so many times what it was: a longer and longer prompt then
# leaves no more memory behind than it uses
GROWTH = 2
# the driver's own, which is never captured
DEFAULT_STREAM = 0
_RELAXED = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED


def capturing(stream: int) -> bool:
    """Tell whether a stream is being captured into a graph."""
    status = call(driver.cuStreamIsCapturing, stream)
    return bool(status != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)


# compared by identity: it is looked up with every call
@dataclass(frozen=True, eq=False)
class Needs:
    """The scratch of a launch: bytes by name.

    What must be zero before a launch is left zero by every launch.

    parts: places in these buffers by names of their own: the buffer's, and how many bytes from its
           start
    """

    sizes: Mapping[str, int]
    parts: Mapping[str, tuple[str, int]] = field(default_factory=dict)


class Area:
    """The scratch of one stream: grow-only buffers by name, zero when they are new.

    places: for needs that were met, the addresses of their buffers, then of the parts of those, in
            their order, 8 bytes each
    """

    def __init__(self, device: Device) -> None:
        self.places: dict[Needs, bytes] = {}
        self._device = device
        self._buffers: dict[str, Buffer] = {}
        self._replaced: list[Buffer] = []

    def holds(self, needs: Needs) -> bool:
        """Tell whether every buffer is as large as needed."""
        return all(self._size(name) >= size for name, size in needs.sizes.items())

    def grow(self, needs: Needs) -> bytes:
        """Return the addresses, having replaced buffers that are too small; the old ones stay."""
        if not self.holds(needs):
            with _allocating(self._device) as stream:
                for name, size_bytes in needs.sizes.items():
                    if self._size(name) < size_bytes:
                        self._replace(name, size_bytes, stream)
            self.places.clear()
        pointers = [self._buffers[name].pointer for name in needs.sizes]
        pointers += [self._buffers[whole].pointer + at for whole, at in needs.parts.values()]
        self.places[needs] = b"".join(pointer.to_bytes(8, "little") for pointer in pointers)
        return self.places[needs]

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers, those that were replaced among them."""
        return sum(buffer.size_bytes for buffer in (*self._buffers.values(), *self._replaced))

    def _size(self, name: str) -> int:
        return self._buffers[name].size_bytes if name in self._buffers else 0

    def _replace(self, name: str, size_bytes: int, stream: int) -> None:
        have = self._size(name)
        buffer = Buffer.empty(self._device, max(size_bytes, GROWTH * have))
        call(driver.cuMemsetD8Async, buffer.pointer, 0, buffer.size_bytes, stream)
        call(driver.cuStreamSynchronize, stream)
        if have:
            self._replaced.append(self._buffers[name])
        self._buffers[name] = buffer


class Scratch:
    """The scratch of one GPU: an `Area` for every stream and capture."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._spare = Area(device)
        self._all = [self._spare]
        self._default = self._new()
        self._of_stream: dict[int, Area] = {}  # by id
        self._of_handle: dict[int, Area] = {}  # what was reserved for captures
        self._of_capture: dict[int, Area] = {}  # by the capture's id
        self._streams = Streams()
        self._lock = threading.Lock()

    def addresses(self, stream: int, needs: Needs) -> bytes:
        """Return the addresses of a stream's buffers and their parts, in order, 8 bytes each.

        Raises:
            CaptureError: the stream is being captured and memory cannot be had.
        """
        if stream == DEFAULT_STREAM:
            area = self._default
        else:
            stream_id = self._streams.id_of(stream)
            if stream_id is None:
                area = self._captured(stream, needs)
            else:
                area = self._of_stream.get(stream_id) or self._of_id(stream_id)
        return area.places.get(needs) or self._grown(area, needs)

    def reserve(self, needs: Needs, stream: int | None = None) -> None:
        """Grow the buffers of a stream; without one, the spare set for a capture to come."""
        area = self._spare if stream is None else self._of_later_captures(stream)
        self._grown(area, needs)

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(area.size_bytes for area in self._all)

    def _grown(self, area: Area, needs: Needs) -> bytes:
        with self._lock:
            return area.grow(needs)

    def _of_id(self, stream_id: int) -> Area:
        with self._lock:
            if stream_id not in self._of_stream:
                self._of_stream[stream_id] = self._new()
            return self._of_stream[stream_id]

    def _of_later_captures(self, stream: int) -> Area:
        if stream == DEFAULT_STREAM:
            return self._default
        area = self._of_handle[stream] = self._of_id(call(driver.cuStreamGetId, stream))
        return area

    def _captured(self, stream: int, needs: Needs) -> Area:
        """Return the area of a capture, chosen when it first asks, with room for its needs."""
        # the driver does not tell the id of a captured stream: it ends the capture that asks
        _status, capture_id, *_ = call_all(driver.cuStreamGetCaptureInfo, stream)
        area = self._of_capture.get(int(capture_id))
        if area is None:
            area = self._of_capture[int(capture_id)] = self._chosen(stream, needs)
        try:
            self._grown(area, needs)
        except ContextError:
            raise
        except LaunchError as error:
            raise CaptureError(
                f"{sum(needs.sizes.values())} bytes of scratch cannot be allocated while a graph "
                f"is captured: {error}"
            ) from error
        return area

    def _chosen(self, stream: int, needs: Needs) -> Area:
        with self._lock:
            reserved = self._of_handle.get(stream)
            if reserved is not None and not self._spare.holds(needs):
                return reserved
            area, self._spare = self._spare, self._new()
            return area

    def _new(self) -> Area:
        area = Area(self._device)
        self._all.append(area)
        return area


@contextmanager
def _allocating(device: Device) -> Iterator[int]:
    """Give a stream of its own to fill new memory on; neither disturbs a capture that is going on.

    Whoever captures, in whatever thread, forbids the others what might wait for it, unless they say
    that they know what they do.
    """
    with device.activated():
        before = call(driver.cuThreadExchangeStreamCaptureMode, _RELAXED)
        try:
            stream = device.new_stream()
            yield stream
            call(driver.cuStreamDestroy, stream)
        finally:
            call(driver.cuThreadExchangeStreamCaptureMode, before)
