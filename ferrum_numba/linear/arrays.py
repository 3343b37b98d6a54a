"""Arrays of torch, CuPy, JAX and NumPy, seen alike; none of their libraries is imported here.

What is no torch tensor and no NumPy array is asked for `__cuda_array_interface__`, then for DLPack.
"""

from __future__ import annotations

import ctypes
import math
import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ferrum_numba.contract import Array
from ferrum_numba.errors import LaunchError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.launch import interop
from ferrum_numba.launch.interop import HOST, not_contiguous

# of the pieces that kernels read and write
ALIGNMENT_BYTES = 16
# names that libraries have for our types; NumPy spells a type that is not its own by its size
_TYPES = {
    "torch.float16": "fp16", "torch.bfloat16": "bf16", "float16": "fp16", "bfloat16": "bf16",
    "<f2": "fp16", "<V2": "bf16",
    "torch.float32": "fp32", "float32": "fp32", "<f4": "fp32",
    "torch.int32": "int32", "<i4": "int32",
}  # fmt: skip
_names: dict[Any, str] = {}


class Seen(NamedTuple):
    """What there is to know of an array.

    address: of its first element
    shape:   its sizes
    dtype:   "fp16", "bf16", "fp32", "int32", or the name of another type
    device:  number of its GPU, HOST, or None where it does not say
    keep:    what must live as long as the address is used
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: int | None
    read_only: bool = False
    keep: Any = None


def place(device: int | None) -> str:
    """Return where memory is, for a message."""
    return "the host" if device == HOST else f"cuda:{device}"


def see(array: Any, stream: int | None = None) -> Seen:
    """Return what there is to know of an array.

    stream: handle of the one that will work on it, which then waits for what the array's library
            has still to do, where that says so; None for nobody to wait

    Raises:
        LaunchError: it is no array, or not contiguous.
    """
    if hasattr(array, "data_ptr"):
        _refuse_without_memory(array)
        if not array.is_contiguous():
            raise not_contiguous("tensor", array.shape, array.stride(), "elements")
        device = array.get_device()
        device = device if device >= 0 else HOST
        return Seen(array.data_ptr(), tuple(array.shape), _name(array.dtype), device)
    if isinstance(array, np.ndarray):
        if not array.flags.c_contiguous:
            raise not_contiguous("array", array.shape, array.strides, "bytes")
        read_only = not array.flags.writeable
        return Seen(array.ctypes.data, array.shape, _name(array.dtype), HOST, read_only)
    shared = interop.shared(array, stream)
    if shared is None:
        raise LaunchError(
            "a layer needs a torch tensor, a CuPy, JAX or NumPy array, or another with DLPack; "
            f"got {type(array).__name__}"
        )
    device = shared.device
    if device is None:
        device = getattr(getattr(array, "device", None), "id", None)
    name = _name(shared.dtype)
    return Seen(shared.address, shared.shape, name, device, shared.read_only, shared.keep)


def refuse(
    name: str, array: Seen, dtype: str, device: int, alignment_bytes: int = ALIGNMENT_BYTES
) -> None:
    """Raise unless an array has a layer's type and is on its device.

    Raises:
        ProblemError: another type.
        LaunchError:  elsewhere, or not aligned.
    """
    if array.dtype != dtype:
        raise ProblemError(f"{name} must be {dtype}; got {array.dtype}")
    if array.device not in (device, None):
        raise LaunchError(
            f"{name} must be on {place(device)} like the weight; it is on {place(array.device)}"
        )
    if array.address % alignment_bytes and device != HOST:
        raise LaunchError(
            f"{name} must begin at a multiple of {alignment_bytes} bytes; "
            f"it begins at {array.address:#x}"
        )


def host_array(address: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return a NumPy array on memory of the host, which must outlive it."""
    size = math.prod(shape)
    memory = (ctypes.c_uint8 * (size * np.dtype(dtype).itemsize)).from_address(address)
    array: Array = np.ctypeslib.as_array(memory).view(dtype)
    return array.reshape(shape)


def copy_to_host(array: Any) -> Array:
    """Return an array of any library as a NumPy array."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "data_ptr"):
        _refuse_without_memory(array)
        values = array.detach().cpu().contiguous()
        dtype = DTYPES.get(_name(values.dtype))
        # NumPy knows no bfloat16 of torch's
        return np.asarray(values.numpy()) if dtype is None else _copied(values, dtype)
    return np.asarray(array.get() if hasattr(array, "get") else array)


def _refuse_without_memory(tensor: Any) -> None:
    if getattr(tensor, "is_meta", False):
        raise LaunchError(
            f"a tensor {list(tensor.shape)} of torch's meta device has no values; "
            'make it on a device, as with device="cuda"'
        )


def _copied(tensor: Any, dtype: npt.DTypeLike) -> Array:
    return host_array(tensor.data_ptr(), tuple(tensor.shape), dtype).copy()


def contiguous(array: Any) -> Any:
    """Return an array, or its row-major copy."""
    if hasattr(array, "data_ptr"):
        return array.contiguous()
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array)
    if _is_cupy(array):
        return array if array.flags.c_contiguous else array.copy(order="C")
    return array


def empty_like(array: Any, shape: tuple[int, ...]) -> Any:
    """Return a new array of the library, type and device of another.

    None of a library whose arrays have their values when they are made.
    """
    if hasattr(array, "new_empty"):
        return array.new_empty(shape)
    if isinstance(array, np.ndarray):
        return np.empty(shape, array.dtype)
    if _is_cupy(array):
        with array.device:
            return type(array)(shape, dtype=array.dtype)
    return None


def namespace(array: Any) -> Any:
    """Return the array API of an array's library, whose `asarray` and `from_dlpack` make others.

    Raises:
        LaunchError: it has none.
    """
    api = getattr(array, "__array_namespace__", None)
    if api is None:
        raise LaunchError(
            f"cannot make an output of {type(array).__name__}; call forward with one of your own"
        )
    return api()


def current_stream(array: Any, device: int) -> int:
    """Return the stream of a GPU that an array's library works on now; the default for others."""
    if hasattr(array, "data_ptr"):
        # the handle itself: torch has objects of several types for its streams
        return int(sys.modules["torch"]._C._cuda_getCurrentRawStream(device))
    if _is_cupy(array):
        return int(sys.modules["cupy"].cuda.get_current_stream(device).ptr)
    return 0


def _is_cupy(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "cupy"


def _name(dtype: Any) -> str:
    name = _names.get(dtype)
    if name is None:
        name = _names[dtype] = _TYPES.get(str(dtype), str(dtype))
    return name
