"""Addresses and stream handles of other libraries' objects, without importing any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ferrum_numba.errors import LaunchError


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
