"""Byte-addressed memory that refuses what a GPU would do silently.

Every access is checked for bounds and alignment, and every read for bytes that nobody wrote.
Buffers in global memory lie 2**40 bytes apart, so that a stray address hits no other buffer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ferrum_numba.division import round_up
from ferrum_numba.errors import InterpreterError

Array = npt.NDArray[Any]

# state of a byte; only WRITTEN may be read, and only the first two may be written. It is 0, so that
# a large window that is hardly touched takes no memory
WRITTEN, UNWRITTEN, IN_FLIGHT, MBARRIER = 0, 1, 2, 3
_REASONS = {
    UNWRITTEN: "which nobody has written",
    IN_FLIGHT: "which an asynchronous copy is still writing; nobody waited for it here",
    MBARRIER: "which hold an mbarrier",
}
_UNITS: dict[int, Any] = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "V16"}
# addresses (i + 1) * 2**40 + [-2**39, 2**39) belong to buffer i, its first byte is the middle
GAP_BITS = 40


class Fault(InterpreterError):
    """A broken rule, before it is known where: `row` is the address, or lane, that broke it."""

    # what it is raised as when that is known
    error: type[InterpreterError] = InterpreterError

    def __init__(self, message: str, row: int = 0) -> None:
        super().__init__(message)
        self.row = row


class Unwritten(Fault):
    """A read of a byte, at an address, that nobody has written."""

    def __init__(self, message: str, row: int, address: int) -> None:
        super().__init__(message, row)
        self.address = address


class Window(NamedTuple):
    """The part of a buffer that is there, of zeros: so many bytes from an offset on."""

    offset: int
    size_bytes: int


class Region:
    """A run of bytes at an address of its own, with the state of every byte."""

    def __init__(self, name: str, size_bytes: int, state: int = WRITTEN, base: int = 0) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.base = base
        self.stored = False
        padded = round_up(size_bytes, 16)
        self.data = np.zeros(padded, np.uint8)
        self.state = np.zeros(padded, np.uint8)
        if state:
            self.state[:] = state
        self._data = {size: self.data.view(unit) for size, unit in _UNITS.items()}
        self._state = {size: self.state.view(unit) for size, unit in _UNITS.items()}
        self._written = {size: _unit(size, WRITTEN) for size in _UNITS}

    def load(self, address: Array, size_bytes: int) -> Array:
        """Return [n, size_bytes] uint8 at n unsigned addresses."""
        if size_bytes not in _UNITS:
            units, unit_bytes, rows = _split(address, size_bytes)
            with _Rows(rows):
                return self.load(units, unit_bytes).reshape(-1, size_bytes)
        index = self._index(address, size_bytes, "reads")
        state = self._state[size_bytes].take(index).tobytes()
        if state.count(WRITTEN) != len(state):
            raise self._refuse_state(address, size_bytes, state, "reads", {WRITTEN})
        data: Array = self._data[size_bytes].take(index).view(np.uint8)
        return data.reshape(-1, size_bytes)

    def store(self, address: Array, data: Array) -> None:
        """Write [n, size_bytes] uint8 at n unsigned addresses."""
        size_bytes = data.shape[1]
        if size_bytes not in _UNITS:
            places, unit_bytes, rows = _split(address, size_bytes)
            with _Rows(rows):
                self.store(places, np.ascontiguousarray(data).reshape(-1, unit_bytes))
            return
        index = self._index(address, size_bytes, "writes")
        state = self._state[size_bytes].take(index).tobytes()
        if IN_FLIGHT in state or MBARRIER in state:
            raise self._refuse_state(address, size_bytes, state, "writes", {UNWRITTEN, WRITTEN})
        units = np.ascontiguousarray(data).view(_UNITS[size_bytes])[:, 0]
        self._data[size_bytes][index] = units
        self._state[size_bytes][index] = self._written[size_bytes]
        self.stored = True

    def claim(self, address: Array, size_bytes: int, state: int, verb: str) -> Array:
        """Give bytes that no copy or mbarrier holds a state; return the units' indices."""
        index = self._index(address, size_bytes, verb)
        held = self._state[size_bytes].take(index).tobytes()
        if IN_FLIGHT in held or MBARRIER in held:
            raise self._refuse_state(address, size_bytes, held, verb, {UNWRITTEN, WRITTEN})
        self._state[size_bytes][index] = _unit(size_bytes, state)
        return index

    def land(self, index: Array, data: Array) -> None:
        """Write what a copy brought, [n, size_bytes] uint8, where it claimed its units."""
        unit = _UNITS[data.shape[1]]
        self._data[data.shape[1]][index] = np.ascontiguousarray(data).view(unit)[:, 0]
        self._state[data.shape[1]][index] = self._written[data.shape[1]]

    def _index(self, address: Array, size_bytes: int, verb: str) -> Array:
        offset = self._bounds(address, size_bytes, verb)
        if int(np.bitwise_or.reduce(offset)) & (size_bytes - 1):
            row = int(np.flatnonzero(offset % size_bytes)[0])
            raise Fault(
                f"{verb} {size_bytes} bytes at {self._place(address, row)}, which is no multiple "
                f"of {size_bytes}",
                row,
            )
        return (offset >> (size_bytes.bit_length() - 1)).astype(np.int64)

    def _bounds(self, address: Array, size_bytes: int, verb: str) -> Array:
        # an address below the base wraps to a huge offset
        offset: Array = address - address.dtype.type(self.base)
        if int(np.maximum.reduce(offset)) > self.size_bytes - size_bytes:
            bad = [int(o) > self.size_bytes - size_bytes for o in offset]
            row = bad.index(True)
            raise Fault(
                f"{verb} {size_bytes} bytes at {self._place(address, row)}, outside its "
                f"{self.size_bytes} bytes",
                row,
            )
        return offset

    def _place(self, address: Array, row: int) -> str:
        offset = int(address[row]) - self.base
        return f"{self.name} {'+' if offset >= 0 else '-'} {abs(offset)}"

    def _refuse_state(
        self, address: Array, size_bytes: int, state: bytes, verb: str, allowed: set[int]
    ) -> Fault:
        first = next(i for i, value in enumerate(state) if value not in allowed)
        row = first // size_bytes
        words = (
            f"{verb} {size_bytes} bytes at {self._place(address, row)}, {_REASONS[state[first]]}"
        )
        if state[first] == UNWRITTEN:
            return Unwritten(words, row, int(address[row]) + first % size_bytes)
        return Fault(words, row)


def _unit(size_bytes: int, state: int) -> Any:
    """Return the states of the bytes of a unit as one element."""
    return np.full(size_bytes, state, np.uint8).view(_UNITS[size_bytes])[0]


class GlobalMemory:
    """All buffers of a launch, by address."""

    def __init__(
        self,
        buffers: Mapping[str, Array],
        unwritten: Collection[str],
        windows: Mapping[str, Window],
    ) -> None:
        self.regions: list[Region] = []
        self.address: dict[str, int] = {}
        for name, array in buffers.items():
            if not array.flags.c_contiguous:
                raise InterpreterError(f"buffer {name} must be C-contiguous; its strides are not")
            region = self._add(name, array.nbytes, UNWRITTEN if name in unwritten else WRITTEN)
            region.data[: array.nbytes] = array.reshape(-1).view(np.uint8)
        for name, window in windows.items():
            self._add(name, window.size_bytes, WRITTEN, window.offset)

    def _add(self, name: str, size_bytes: int, state: int, offset: int = 0) -> Region:
        base = ((len(self.regions) + 1) << GAP_BITS) + (1 << (GAP_BITS - 1))
        self.regions.append(Region(name, size_bytes, state, base))
        self.address[name] = base - offset
        return self.regions[-1]

    def stored(self) -> frozenset[str]:
        """Return the names of what was written to."""
        return frozenset(region.name for region in self.regions if region.stored)

    def write_back(self, buffers: Mapping[str, Array]) -> None:
        """Copy every buffer that was stored to into the caller's array."""
        for region in self.regions:
            if region.stored and region.name in buffers:
                target = buffers[region.name].reshape(-1).view(np.uint8)
                target[:] = region.data[: region.size_bytes]

    def load(self, address: Array, size_bytes: int) -> Array:
        """Return [n, size_bytes] uint8 at n addresses."""
        try:
            return self._region(address).load(address, size_bytes)
        except Fault:
            parts = _by_owner(address)
            if len(parts) == 1:
                raise
        out = np.empty((len(address), size_bytes), np.uint8)
        for rows in parts:
            with _Rows(rows):
                out[rows] = self._region(address[rows]).load(address[rows], size_bytes)
        return out

    def store(self, address: Array, data: Array) -> None:
        """Write [n, size_bytes] uint8 at n addresses."""
        try:
            self._region(address).store(address, data)
            return
        except Fault:
            parts = _by_owner(address)
            if len(parts) == 1:
                raise
        for rows in parts:
            with _Rows(rows):
                self._region(address[rows]).store(address[rows], data[rows])

    def _region(self, address: Array) -> Region:
        """Return the region that the first address lies in or next to."""
        owner = (int(address[0]) >> GAP_BITS) - 1
        if not 0 <= owner < len(self.regions):
            raise Fault(f"uses address {int(address[0]):#x}, which lies in no buffer")
        return self.regions[owner]


class _Rows:
    """Translate the row of a fault inside a part to the row of the whole."""

    def __init__(self, rows: Array) -> None:
        self.rows = rows

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Fault):
            error.row = int(self.rows[error.row])


def _by_owner(address: Array) -> list[Array]:
    """Return the rows of each buffer that the addresses lie in or next to."""
    owners = address >> GAP_BITS
    return [np.flatnonzero(owners == owner) for owner in np.unique(owners)]


def _split(address: Array, size_bytes: int) -> tuple[Array, int, Array]:
    """Return addresses of the largest aligned units, at most 16 bytes, their size and rows."""
    unit_bytes = min(size_bytes & -size_bytes, 16)
    steps = np.arange(0, size_bytes, unit_bytes, dtype=address.dtype)
    rows = np.repeat(np.arange(len(address)), len(steps))
    return (address[:, None] + steps).reshape(-1), unit_bytes, rows
