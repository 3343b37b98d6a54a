"""Arrays of torch, CuPy and NumPy, seen alike; none of their libraries is imported here."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from ferrum_numba.contract import Array
from ferrum_numba.errors import LaunchError, ProblemError
from ferrum_numba.kernels.dtypes import DTYPES
from ferrum_numba.launch import pointer
from ferrum_numba.launch.interop import not_contiguous

HOST = -1
# of the pieces that kernels read and write
ALIGNMENT_BYTES = 16
# names that libraries have for our types; NumPy spells a type that is not its own by its size
_TYPES = {
    "torch.float16": "fp16", "torch.bfloat16": "bf16", "float16": "fp16", "bfloat16": "bf16",
    "<f2": "fp16", "<V2": "bf16",
}  # fmt: skip
_names: dict[Any, str] = {}


class Seen(NamedTuple):
    """What there is to know of an array.

    address: of its first element
    shape:   its sizes
    dtype:   "fp16", "bf16", or the name of another type
    device:  number of its GPU, HOST, or None where it does not say
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: int | None
    read_only: bool = False


def place(device: int | None) -> str:
    """Return where memory is, for a message."""
    return "the host" if device == HOST else f"cuda:{device}"


def see(array: Any) -> Seen:
    """Return what there is to know of an array.

    Raises:
        LaunchError: it is no array, or not contiguous.
    """
    if hasattr(array, "data_ptr"):
        device = array.get_device()
        if device < 0:
            return Seen(_host_pointer(array), tuple(array.shape), _name(array.dtype), HOST)
        return Seen(pointer(array), tuple(array.shape), _name(array.dtype), device)
    if isinstance(array, np.ndarray):
        if not array.flags.c_contiguous:
            raise not_contiguous("array", array.shape, array.strides, "bytes")
        read_only = not array.flags.writeable
        return Seen(array.ctypes.data, array.shape, _name(array.dtype), HOST, read_only)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise LaunchError(
            f"a layer needs a torch tensor, a CuPy or a NumPy array; got {type(array).__name__}"
        )
    device = getattr(getattr(array, "device", None), "id", None)
    address, read_only = interface["data"]
    if 0 not in interface["shape"]:
        address = pointer(array)
    return Seen(address, tuple(interface["shape"]), _name(interface["typestr"]), device, read_only)


def refuse(name: str, array: Seen, dtype: str, device: int) -> None:
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
    if array.address % ALIGNMENT_BYTES and device != HOST:
        raise LaunchError(
            f"{name} must begin at a multiple of {ALIGNMENT_BYTES} bytes; "
            f"it begins at {array.address:#x}"
        )


def host_array(array: Any) -> Array:
    """Return a NumPy array on an array's memory of the host; of torch's, a view."""
    if isinstance(array, np.ndarray):
        return array
    torch = sys.modules["torch"]
    # NumPy knows no bfloat16 of torch's, so the bits change hands
    bits: Array = array.detach().view(torch.int16).numpy()
    return bits.view(DTYPES[_name(array.dtype)])


def copy_to_host(array: Any) -> Array:
    """Return an array of any library as a NumPy array."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "data_ptr"):
        values = array.detach().cpu()
        return host_array(values) if _name(values.dtype) in DTYPES else np.asarray(values.numpy())
    return np.asarray(array.get() if hasattr(array, "get") else array)


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

    Raises:
        LaunchError: only torch, CuPy and NumPy are known here.
    """
    if hasattr(array, "new_empty"):
        return array.new_empty(shape)
    if isinstance(array, np.ndarray):
        return np.empty(shape, array.dtype)
    if _is_cupy(array):
        with array.device:
            return type(array)(shape, dtype=array.dtype)
    raise LaunchError(
        f"cannot make an output of {type(array).__name__}; call forward with one of your own"
    )


def current_stream(array: Any) -> int:
    """Return the stream that an array's library works on now; the default one for others."""
    if hasattr(array, "data_ptr"):
        return int(sys.modules["torch"].cuda.current_stream(array.device).cuda_stream)
    if _is_cupy(array):
        return int(sys.modules["cupy"].cuda.get_current_stream().ptr)
    return 0


def _is_cupy(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "cupy"


def _name(dtype: Any) -> str:
    name = _names.get(dtype)
    if name is None:
        name = _names[dtype] = _TYPES.get(str(dtype), str(dtype))
    return name


def _host_pointer(tensor: Any) -> int:
    if not tensor.is_contiguous():
        raise not_contiguous("tensor", tensor.shape, tensor.stride(), "elements")
    return int(tensor.data_ptr())
