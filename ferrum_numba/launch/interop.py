"""Addresses and stream handles of other libraries' objects, without importing any of them."""

from __future__ import annotations

from typing import Any

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
               (CuPy, numba), or a cuda.core Buffer
    """
    if isinstance(array, int):
        return array
    if hasattr(array, "data_ptr"):
        if not array.is_cuda:
            raise LaunchError(f"the tensor is on {array.device}; a kernel needs it on the GPU")
        return int(array.data_ptr())
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        return int(interface["data"][0])
    for name in ("pointer", "handle"):
        address = getattr(array, name, None)
        if address is not None:
            return int(address)
    raise LaunchError(f"a kernel needs memory of the GPU; got {type(array).__name__}")
