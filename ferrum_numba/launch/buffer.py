"""Device memory with guard zones, copied to and from NumPy."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver

from ferrum_numba.errors import LaunchError
from ferrum_numba.launch.device import Device, call, failure

Array = npt.NDArray[Any]
# NaN in fp16, bf16 and fp32: what is read past the end, or never written, shows in a result
POISON = 0xFF


def page_locked(size_bytes: int) -> Array:
    """Return host memory that the GPU copies to directly, or ordinary one where it is refused.

    Several times faster than a copy through the driver's own; it takes a while to make.
    """
    array = np.zeros(size_bytes, np.uint8)
    try:
        call(driver.cuMemHostRegister, array.ctypes.data, size_bytes, 0)
    except LaunchError:
        return array
    # not at exit, when there may be no driver left
    weakref.finalize(array, driver.cuMemHostUnregister, array.ctypes.data).atexit = False
    return array


def _free(cuda: Any, context: Any, base: int) -> None:
    """Free memory, from whatever thread; in a lost context there is nothing left to free."""
    cuda.cuCtxPushCurrent(context)
    cuda.cuMemFree(base)
    cuda.cuCtxPopCurrent()


class Buffer:
    """Device memory between two guard zones; freed with its last reference, or by `free`.

    Copies and fills wait for the whole device: they order themselves after every stream's work and
    before whatever is launched next. They are for preparing and reading, not for timing.
    """

    def __init__(self, device: Device, pointer: int, size_bytes: int, guard_bytes: int = 0) -> None:
        self.device = device
        self.pointer = pointer
        self.size_bytes = size_bytes
        self.guard_bytes = guard_bytes
        self._owner: Buffer | None = None
        self._release: weakref.finalize[..., Buffer] | None = None

    @classmethod
    def empty(cls, device: Device, size_bytes: int, guard_bytes: int = 0) -> Buffer:
        """Allocate memory between poisoned guard zones; a multiple of 256 keeps its alignment."""
        total_bytes = size_bytes + 2 * guard_bytes
        # the driver refuses to allocate nothing
        status, base = driver.cuMemAlloc(max(total_bytes, 1))
        if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            gpu = device.gpu
            raise LaunchError(
                f"{gpu.name} has no {total_bytes:,} bytes left of its {gpu.dram_bytes:,}"
            )
        if status != driver.CUresult.CUDA_SUCCESS:
            raise failure(status, "cuMemAlloc")
        base = int(base)
        buffer = cls(device, base + guard_bytes, size_bytes, guard_bytes)
        buffer._release = weakref.finalize(buffer, _free, driver, device.context, base)
        buffer._release.atexit = False
        if guard_bytes:
            call(driver.cuMemsetD8, base, POISON, total_bytes)
            device.synchronize()
        return buffer

    @classmethod
    def from_array(cls, device: Device, array: Array, guard_bytes: int = 0) -> Buffer:
        """Allocate a copy of an array."""
        buffer = cls.empty(device, array.nbytes, guard_bytes)
        buffer.write(array)
        return buffer

    def part(self, offset_bytes: int, size_bytes: int) -> Buffer:
        """Return a view of a part; it keeps the whole alive."""
        view = Buffer(self.device, self.pointer + offset_bytes, size_bytes)
        view._owner = self
        return view

    def free(self) -> None:
        """Give the memory back now; whoever still has its address must not use it."""
        if self._release is not None:
            self._release()

    def fill(self, byte: int) -> None:
        """Set every byte."""
        self.device.synchronize()
        if self.size_bytes:
            call(driver.cuMemsetD8, self.pointer, byte, self.size_bytes)
        # a fill does not keep the host waiting, nor a stream of ours
        self.device.synchronize()

    def write(self, array: Array) -> None:
        """Copy an array to the start of the buffer."""
        if array.nbytes > self.size_bytes:
            raise LaunchError(f"{array.nbytes} bytes do not fit a buffer of {self.size_bytes}")
        contiguous = np.ascontiguousarray(array)
        self.device.synchronize()
        if contiguous.nbytes:
            call(driver.cuMemcpyHtoD, self.pointer, contiguous.ctypes.data, contiguous.nbytes)
        # the copy returns when the array is staged, before it has arrived
        self.device.synchronize()

    def copy_from(self, other: Buffer) -> None:
        """Copy another buffer of this device to the start of this one."""
        if other.size_bytes > self.size_bytes:
            raise LaunchError(f"{other.size_bytes} bytes do not fit a buffer of {self.size_bytes}")
        self.device.synchronize()
        call(driver.cuMemcpyDtoD, self.pointer, other.pointer, other.size_bytes)
        self.device.synchronize()

    def read(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return a copy of the start of the buffer as an array."""
        return self.read_into(np.empty(shape, dtype))

    def read_into(self, array: Array) -> Array:
        """Copy the start of the buffer into a contiguous array, and return that."""
        if array.nbytes > self.size_bytes:
            raise LaunchError(f"{array.nbytes} bytes asked of a buffer of {self.size_bytes}")
        return self._copy_out(self.pointer, array)

    def damage(self) -> str | None:
        """Return what was written to the guard zones, or None."""
        for side, start in (
            ("before the start", self.pointer - self.guard_bytes),
            ("past the end", self.pointer + self.size_bytes),
        ):
            zone = self._copy_out(start, np.empty(self.guard_bytes, np.uint8))
            if zone.tobytes() == bytes([POISON]) * zone.size:
                continue
            touched = np.flatnonzero(zone != POISON)
            if touched.size:
                first = int(touched[0]) - (self.guard_bytes if start < self.pointer else 0)
                return f"{touched.size} bytes written {side}, the first at {first:+d}"
        return None

    def _copy_out(self, start: int, array: Array) -> Array:
        # a copy waits for the default stream only
        self.device.synchronize()
        if array.nbytes:
            call(driver.cuMemcpyDtoH, array.ctypes.data, start, array.nbytes)
        return array
