"""Safetensors files, mapped: which tensors there are, and views of them.

The `safetensors` library judges a file when it is opened: header, offsets, types, shapes, and that
the tensors cover the file. Its `get_tensor` copies what it returns, so a view of the map is taken
here instead: a weight that is packed for a kernel then is in memory once, in the page cache, until
the packed copy is made. bfloat16 is NumPy's from `ml_dtypes`, as in the library's own `get_tensor`.
A file that is cut short while an array is read from it ends the process: no map survives that.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ferrum_numba.contract import Array
from ferrum_numba.errors import CheckpointError
from ferrum_numba.gptq.on_disk import other_kind, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
        "U32": np.uint32, "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16,
        "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    }.items()
}  # fmt: skip


# of a file that is not what it seems, what tells
MAGIC_BYTES = 32
# what a folder may hold instead, and what it is called then
ELSEWHERE = {"*.gguf": "GGUF", "*.bin": "PyTorch's pickles", "*.pt": "PyTorch's pickles"}


class Entry(NamedTuple):
    """Where a tensor is: its file, type in safetensors' words, shape and first byte."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class TensorFiles:
    """The tensors of a file, or of all files of a folder, by name.

    entries: name -> where it is, in the order of the headers
    """

    def __init__(self, entries: dict[str, Entry], maps: Mapping[str, Array]) -> None:
        self.entries = entries
        self._maps = maps

    @classmethod
    def open(cls, path: str | Path) -> TensorFiles:
        """Open a .safetensors file or a folder of them; every header is read once, here.

        Raises:
            CheckpointError: something is missing or damaged; it names the file and the tensor.
        """
        path = Path(path)
        index = _index(path)
        files = {file: _entries(file) for file in _paths(path, index)}
        maps = {str(file): np.memmap(file, np.uint8, "r") for file in files}
        return cls(_merged(path, files, index), maps)

    def read(self, name: str) -> Array:
        """Return a tensor as a read-only view of its file, which stays mapped while it lives.

        Raises:
            CheckpointError: its type is none of NumPy's, or the file was closed or cut short.
        """
        self._check(str(self.entries[name].path))
        return self.view(name)

    def check(self) -> None:
        """Raise CheckpointError if a file was cut short since it was opened."""
        for file in self._maps:
            self._check(file)

    def view(self, name: str) -> Array:
        """Return a tensor as `read` does, without a look at its file, which costs a system call."""
        entry = self.entries[name]
        # text is quicker looked up than a path is, and a model has 10^5 tensors
        found = self._maps.get(str(entry.path))
        if found is None:
            raise CheckpointError(f"{entry.path} was closed")
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{entry.path}: tensor {name} is {entry.dtype}; it needs to be one of "
                f"{', '.join(DTYPES)}"
            )
        view: Array = np.ndarray(entry.shape, dtype, found, entry.offset)
        # a header of odd length misaligns what follows
        return view if view.flags.aligned else view.copy()

    def close(self) -> None:
        """Let go of the files; arrays that were read stay valid."""
        self._maps = {}

    def _check(self, file: str) -> None:
        # a removed file lives on in its map, what was cut off does not
        with suppress(FileNotFoundError):
            if file in self._maps and os.stat(file).st_size < self._maps[file].nbytes:
                raise CheckpointError(f"{file} was cut short while it was open")


def _index(path: Path) -> dict[str, str] | None:
    """Return tensor -> file of a sharded folder, or None where there is no index."""
    index = path / INDEX
    if not index.exists():
        return None
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise CheckpointError(f"{index}: weight_map must be an object of tensors and their files")
    for file in dict.fromkeys(found.values()):
        # a shard lies beside its index: no name leads elsewhere
        if Path(file).name != file or not (path / file).is_file():
            tensor = next(tensor for tensor, where in found.items() if where == file)
            raise CheckpointError(
                f"{index}: tensor {tensor} is said to be in {file!r}, which is no file here"
            )
    return found


def _paths(path: Path, index: dict[str, str] | None) -> list[Path]:
    if index is not None:
        return [path / file for file in dict.fromkeys(index.values())]
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"{path} is not there; it must be a folder or a .safetensors file")
    single = path / SINGLE
    found = [single] if single.is_file() else sorted(path.glob("*.safetensors"))
    if not found:
        others = (
            f"; {other.name} is {kind}, which is not read"
            for pattern, kind in ELSEWHERE.items()
            for other in sorted(path.glob(pattern))
        )
        raise CheckpointError(f"{path} holds no .safetensors file{next(others, '')}")
    return found


def _merged(
    path: Path, files: dict[Path, dict[str, Entry]], index: dict[str, str] | None
) -> dict[str, Entry]:
    """Return where each tensor is: as the index says, or in the only file that has it."""
    merged: dict[str, Entry] = {}
    if index is not None:
        # a path is slow to make and to look up, and there may be 10^5 tensors
        by_name = {file.name: entries for file, entries in files.items()}
        for tensor, file in index.items():
            entry = by_name[file].get(tensor)
            if entry is None:
                raise CheckpointError(f"{path / INDEX}: tensor {tensor} is not in {file}")
            merged[tensor] = entry
        return merged
    for entries in files.values():
        for tensor, entry in entries.items():
            if tensor in merged:
                raise CheckpointError(
                    f"{entry.path}: tensor {tensor} is in {merged[tensor].path} too"
                )
            merged[tensor] = entry
    return merged


def _entries(path: Path) -> dict[str, Entry]:
    """Return the tensors of one file, after the library has found nothing wrong with it."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        with path.open("rb") as file:
            other = other_kind(file.read(MAGIC_BYTES))
        if other is not None:
            raise CheckpointError(f"{path} {other}") from error
        words = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(f"{path} is damaged: {_fault(path) or words}") from error
    header, start = _header(path)
    return {
        name: Entry(path, found["dtype"], tuple(found["shape"]), start + found["data_offsets"][0])
        for name, found in header.items()
    }


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return what a header says of every tensor, and the byte at which their data start.

    Layout: 8 bytes N, little-endian; N bytes of JSON; data, to which the JSON's offsets refer.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        # what no file can hold is not asked of memory
        header = json.loads(file.read(min(size, path.stat().st_size)))
    header.pop("__metadata__", None)
    return header, 8 + size


def _fault(path: Path) -> str | None:
    """Return which tensor of a refused file is wrong, and how; None where none is."""
    try:
        header, start = _header(path)
        room = path.stat().st_size - start
        faults = (_fault_of(found, room) for found in header.values())
        wrong = [(name, fault) for name, fault in zip(header, faults, strict=True) if fault]
    # nothing in such a file can be relied on, not even that the header is an object
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return f"tensor {wrong[0][0]} {wrong[0][1]}" if wrong else None


def _fault_of(found: dict[str, Any], room: int) -> str | None:
    begin, end = found["data_offsets"]
    if end > room:
        return f"ends at byte {end} of the data, which are {room} bytes: the file is cut short"
    if not 0 <= begin <= end:
        return f"lies at bytes {begin} to {end}"
    if found["dtype"] not in DTYPES:
        return None
    needed = math.prod(found["shape"]) * DTYPES[found["dtype"]].itemsize
    if end - begin != needed:
        return f"is {found['dtype']} {found['shape']}, {needed} bytes; got {end - begin}"
    return None
