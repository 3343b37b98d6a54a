"""The header of a safetensors file: which tensors there are, checked before anything is believed.

Layout: 8 bytes N, little-endian; N bytes of JSON; data, to which the JSON's offsets refer.

The `safetensors` library judges a file: header, offsets, types, shapes, and that the tensors cover
the file. What it passes is decoded once more, into typed entries whose sizes no arithmetic here
chokes on: it takes a tensor of 2^62 x 0 elements, and one of 65 dimensions, which NumPy does not.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import msgspec
import numpy as np
from msgspec import Meta
from safetensors import SafetensorError, safe_open

from ferrum_numba import door
from ferrum_numba.errors import CheckpointError
from ferrum_numba.gptq.on_disk import other_kind

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
        "U32": np.uint32, "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16,
        "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    }.items()
}  # fmt: skip
# the library's limit too
MOST_HEADER_BYTES = 100_000_000
# of a tensor: NumPy has 64, a model 5
MOST_DIMENSIONS = 32
# of a dimension, an offset: more than any file has
MOST_SIZE = 2**48
# of the name of a tensor
MOST_NAME = 8192
# of a file that is not what it seems, what tells
MAGIC_BYTES = 32

Name = Annotated[str, Meta(max_length=MOST_NAME)]
Size = Annotated[int, Meta(ge=0, le=MOST_SIZE)]


class _Said(msgspec.Struct, gc=False):
    """What a header says of a tensor; that it says all of it, the library has seen."""

    dtype: str = ""
    shape: Annotated[tuple[Size, ...], Meta(max_length=MOST_DIMENSIONS)] = ()
    data_offsets: tuple[Size, Size] = (0, 0)


class _Loose(msgspec.Struct):
    """The same of a tensor in a file that is refused, to say what is wrong with it."""

    dtype: str
    shape: Annotated[tuple[int, ...], Meta(max_length=MOST_DIMENSIONS)]
    data_offsets: tuple[int, int]


# of the file, not of a tensor: any words
METADATA = "__metadata__"
_HEADER = msgspec.json.Decoder(dict[Name, _Said])
_TENSORS = msgspec.json.Decoder(dict[Name, msgspec.Raw])


# of 10^6, none is looked at by the garbage collector
class Entry(msgspec.Struct, frozen=True, gc=False):
    """Where a tensor is: its file, type in safetensors' words, shape and first byte."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def entries_of(path: Path, descriptor: int) -> dict[str, Entry]:
    """Return the tensors of a file that is open, in the order of its header.

    Raises:
        CheckpointError: the file is damaged; it names the file and the tensor.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        other = other_kind(os.pread(descriptor, MAGIC_BYTES, 0))
        if other is not None:
            raise CheckpointError(f"{path} {other}") from error
        words = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(f"{path} is damaged: {_fault(descriptor) or words}") from error
    content, start = _content(descriptor)
    try:
        found = _decoded(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {door.in_words(error)}") from error
    # a model has few types and shapes: of 10^6 tensors, most are in memory once
    alike: dict[Any, Any] = {}
    return {
        name: Entry(
            path, alike.setdefault(said.dtype, said.dtype),
            alike.setdefault(said.shape, said.shape), start + said.data_offsets[0],
        )
        for name, said in found.items()
    }  # fmt: skip


def _content(descriptor: int) -> tuple[bytes, int]:
    """Return a header's JSON, and the byte at which the data start."""
    size = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    # what no file can hold is not asked of memory
    return os.pread(descriptor, min(size, MOST_HEADER_BYTES), 8), 8 + size


def _decoded(content: bytes) -> dict[str, _Said]:
    """Return what a header says.

    Raises:
        ValueError: a name or a size is larger than any file has; it names the tensor.
    """
    try:
        found = _HEADER.decode(content)
        found.pop(METADATA, None)
    except msgspec.ValidationError:
        # one by one, to name the tensor; or it was the metadata that looks like none
        found = {}
        for name, raw in _TENSORS.decode(content).items():
            if name != METADATA:
                with door.naming(f"tensor {name}"):
                    found[name] = msgspec.json.decode(raw, type=_Said)
    return found


def _fault(descriptor: int) -> str | None:
    """Return which tensor of a refused file is wrong, and how; None where none is."""
    content, start = _content(descriptor)
    room = os.fstat(descriptor).st_size - start
    # nothing in such a file can be relied on, not even that the header is an object
    with suppress(ValueError, RecursionError):
        for name, raw in _TENSORS.decode(content).items():
            if name != METADATA:
                fault = _fault_of(msgspec.json.decode(raw, type=_Loose), room)
                if fault is not None:
                    return f"tensor {name} {fault}"
    return None


def _fault_of(said: _Loose, room: int) -> str | None:
    begin, end = said.data_offsets
    about = f"is {said.dtype} {door.shown(said.shape)}"
    if not all(0 <= size <= MOST_SIZE for size in said.shape):
        return f"{about}, and no dimension of a file's is below 0 or above {MOST_SIZE}"
    if not 0 <= begin <= end:
        return f"lies at bytes {begin} to {end}"
    if end > room:
        return f"ends at byte {end} of the data, which are {room} bytes: the file is cut short"
    if said.dtype not in DTYPES:
        return None
    # a few thousand bits at most
    needed = math.prod(said.shape) * DTYPES[said.dtype].itemsize
    if end - begin != needed:
        return f"{about}, {needed} bytes; got {end - begin}"
    return None
