"""Addresses and stream handles of other libraries' objects, without importing any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver

from ferrum_numba.errors import LaunchError
from ferrum_numba.launch.buffer import Buffer
from ferrum_numba.launch.device import call

# a device that is no GPU
HOST = -1
_LEGACY_STREAM = 1


def stream_handle(stream: Any) -> int:
    """Return the handle of a stream.

    Args:
        stream: an int handle, anything with `__cuda_stream__` (cuda.core, numba, torch), or with
                `cuda_stream` (torch), `ptr` (CuPy) or `handle` (numba)
    """
    if isinstance(stream, int):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        _version, handle = protocol()
        return int(handle)
    for name in ("cuda_stream", "ptr", "handle"):
        handle = getattr(stream, name, None)
        if handle is not None:
            # numba keeps a ctypes pointer, whose value is None for the default stream
            return int(getattr(handle, "value", handle) or 0)
    raise LaunchError(f"a stream is an int handle or a stream object; got {type(stream).__name__}")


def pointer(array: Any) -> int:
    """Return the device address of an array's first element.

    Args:
        array: an int address, a Buffer, a torch tensor, anything with `__cuda_array_interface__`
               (CuPy, numba), or a cuda.core Buffer; what has strides must be contiguous, row-major

    Raises:
        LaunchError: not memory of the GPU, or not contiguous.
    """
    if isinstance(array, int):
        return array
    if hasattr(array, "data_ptr"):
        if not array.is_cuda:
            raise LaunchError(f"the tensor is on {array.device}; a kernel needs it on the GPU")
        if not array.is_contiguous():
            raise not_contiguous("tensor", array.shape, array.stride(), "elements")
        return int(array.data_ptr())
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        return _address(interface)
    for name in ("pointer", "handle"):
        address = getattr(array, name, None)
        if address is not None:
            return int(address)
    raise LaunchError(f"a kernel needs memory of the GPU; got {type(array).__name__}")


class Shared(NamedTuple):
    """An array of another library's.

    address: of its first element
    shape:   its sizes
    dtype:   name of its type, as the library or NumPy has it
    device:  number of its GPU, HOST, or None where it does not say
    keep:    what must live as long as the address is used
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: int | None
    read_only: bool
    keep: Any


def shared(array: Any, stream: int | None) -> Shared | None:
    """Return an array with `__cuda_array_interface__` or DLPack, None for one with neither.

    stream: handle of the one that will work on the array: it waits for what the array's library
            has still to do; None for nobody to wait

    Raises:
        LaunchError: not contiguous, or its library does not share it.
    """
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        address = _address(interface)
        if stream is not None:
            _wait(stream, interface.get("stream"))
        shape, (_, read_only) = tuple(interface["shape"]), interface["data"]
        return Shared(address, shape, interface["typestr"], None, read_only, None)
    return _from_dlpack(array, stream) if hasattr(array, "__dlpack__") else None


def exported(buffer: Buffer, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
    """Return an object with DLPack on a buffer, which it keeps alive.

    Nobody waits for what is still to be written there.
    """
    import cuda.core
    from cuda.core.utils import StridedMemoryView

    whole = cuda.core.Buffer.from_handle(buffer.pointer, buffer.size_bytes, owner=buffer)
    return StridedMemoryView.from_buffer(whole, shape, dtype=np.dtype(dtype))


def _from_dlpack(array: Any, stream: int | None) -> Shared:
    from cuda.core.utils import StridedMemoryView

    # DLPack's name for the driver's default stream is 1, and for nobody to wait -1
    consumer = -1 if stream is None else stream or _LEGACY_STREAM
    try:
        view = StridedMemoryView.from_dlpack(array, stream_ptr=consumer)
    except (BufferError, TypeError, ValueError) as error:
        raise LaunchError(f"{type(array).__name__} does not share its memory: {error}") from None
    shape, itemsize = tuple(view.shape), view.dtype.itemsize
    # it counts elements, and has none where they are row-major
    strides = None if view.strides is None else tuple(s * itemsize for s in view.strides)
    if strides is not None and not _row_major(shape, strides, itemsize):
        raise not_contiguous("array", shape, strides, "bytes")
    device = view.device_id if view.is_device_accessible else HOST
    return Shared(view.ptr, shape, str(view.dtype), device, view.readonly, view)


def _wait(stream: int, producer: int | None) -> None:
    """Let a stream wait for another's work; there is nothing to wait for without another."""
    if producer is None or (producer or _LEGACY_STREAM) == (stream or _LEGACY_STREAM):
        return
    event = call(driver.cuEventCreate, driver.CUevent_flags.CU_EVENT_DISABLE_TIMING.value)
    try:
        call(driver.cuEventRecord, event, producer)
        call(driver.cuStreamWaitEvent, stream, event, 0)
    finally:
        driver.cuEventDestroy(event)


def _address(interface: Mapping[str, Any]) -> int:
    """Return the address in a `__cuda_array_interface__`; it has no strides where contiguous."""
    shape, strides = interface["shape"], interface.get("strides")
    if strides is not None:
        itemsize = np.dtype(interface["typestr"]).itemsize
        if not _row_major(shape, strides, itemsize):
            raise not_contiguous("array", shape, strides, "bytes")
    return int(interface["data"][0])


def _row_major(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Tell whether an array is C-contiguous; the stride of a dimension of 1 says nothing."""
    if 0 in shape:
        return True
    want = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != want:
            return False
        want *= size
    return True


def not_contiguous(
    what: str, shape: Sequence[int], strides: Sequence[int], unit: str
) -> LaunchError:
    """Return the error of an array that is not row-major."""
    return LaunchError(
        f"the {what} has shape {tuple(shape)} and strides {tuple(strides)} in {unit}; a kernel "
        "needs it contiguous, row-major: pass a copy, as .contiguous() of torch or "
        "ascontiguousarray() of CuPy makes it"
    )
