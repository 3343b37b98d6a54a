"""Safetensors files: which tensors there are, and each of them, read when it is asked for.

The `safetensors` library judges a file when it is opened (`header`). Its `get_tensor` maps the
file, and a map ends the process when the file is cut short while it is read; so do views of one.
Here a tensor is read into memory of its own, a quarter of a second a GB, and a file that is cut
short is an error. bfloat16 is NumPy's from `ml_dtypes`, as in the library's own `get_tensor`.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from ferrum_numba import door
from ferrum_numba.contract import Array
from ferrum_numba.errors import CheckpointError
from ferrum_numba.gptq.header import DTYPES as DTYPES
from ferrum_numba.gptq.header import MOST_SIZE, Name, entries_of
from ferrum_numba.gptq.header import Entry as Entry
from ferrum_numba.gptq.on_disk import other_kind

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# of the index of 10^6 tensors: a third
MOST_INDEX_BYTES = 512 << 20
# what a folder may hold instead, and what it is called then
ELSEWHERE = {"*.gguf": "GGUF", "*.bin": "PyTorch's pickles", "*.pt": "PyTorch's pickles"}
# where Hugging Face's cache has what the links of a model's folder lead to
SNAPSHOTS, BLOBS = "snapshots", "blobs"
# of a stack of experts
MOST_EXPERTS = 65_536


class _Index(msgspec.Struct):
    weight_map: dict[Name, str]


class TensorFiles:
    """The tensors of a file, or of all files of a folder, by name; a context manager.

    entries: name -> where it is, in the order of the headers
    """

    def __init__(self, entries: dict[str, Entry], opened: Mapping[Path, int]) -> None:
        self.entries = entries
        # by text, which is quicker looked up than a path is
        self._opened = {str(path): descriptor for path, descriptor in opened.items()}
        self._sizes = {path: os.fstat(to).st_size for path, to in self._opened.items()}
        # at the latest when nobody has this object any more
        self._close = weakref.finalize(self, _close, tuple(opened.values()))

    @classmethod
    def open(cls, path: str | Path) -> TensorFiles:
        """Open a .safetensors file or a folder of them; every header is read once, here.

        Raises:
            CheckpointError: something is missing or damaged; it names the file and the tensor.
        """
        path = Path(path)
        opened: dict[Path, int] = {}
        try:
            index = _index(path)
            for file in _paths(path, index):
                opened[file] = _open(file)
            found = {file: entries_of(file, to) for file, to in opened.items()}
            return cls(_merged(path, found, index), opened)
        except BaseException as error:
            _close(tuple(opened.values()))
            if not isinstance(error, OSError):
                raise
            # of a folder that cannot be listed; what concerns one file was said
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error

    def read(self, name: str, expert: int | None = None) -> Array:
        """Return a tensor, read-only; of a stack, one of its first dimension.

        expert: which one; None for all of a tensor. A vector has no experts, and is read whole.

        Raises:
            CheckpointError: its type is none of NumPy's, there is no such expert, or the file was
                closed or cut short.
        """
        dtype, shape, offset = self._place(name, expert)
        entry = self.entries[name]
        descriptor = self._opened.get(str(entry.path))
        if descriptor is None:
            raise CheckpointError(f"{entry.path} was closed")
        array = np.empty(shape, dtype)
        _fill(array, descriptor, offset, entry.path)
        array.flags.writeable = False
        return array

    def outline(self, name: str, expert: int | None = None) -> Array:
        """Return zeros of a tensor's shape and type that take no memory; nothing is read.

        Raises:
            CheckpointError: its type is none of NumPy's, or there is no such expert.
        """
        dtype, shape, _ = self._place(name, expert)
        return np.broadcast_to(np.zeros((), dtype), shape)

    def check(self) -> None:
        """Raise CheckpointError if a file was cut short since it was opened."""
        for path, descriptor in self._opened.items():
            if os.fstat(descriptor).st_size < self._sizes[path]:
                raise CheckpointError(f"{path} was cut short while it was open")

    def close(self) -> None:
        """Let go of the files; arrays that were read stay valid."""
        self._close()
        self._opened = {}

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _place(self, name: str, expert: int | None) -> tuple[np.dtype[Any], tuple[int, ...], int]:
        """Return the type, the shape and the first byte of what is asked for."""
        entry = self.entries[name]
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{entry.path}: tensor {name} is {entry.dtype}; it needs to be one of "
                f"{', '.join(DTYPES)}"
            )
        if math.prod(size or 1 for size in entry.shape) > MOST_SIZE:
            raise CheckpointError(f"{entry.path}: tensor {name} cannot be {list(entry.shape)}")
        if expert is None or len(entry.shape) < 2:
            return dtype, entry.shape, entry.offset
        stacked, *shape = entry.shape
        if expert >= min(stacked, MOST_EXPERTS):
            raise CheckpointError(
                f"{entry.path}: tensor {name} is {list(entry.shape)}, and has no expert {expert}"
            )
        return dtype, tuple(shape), entry.offset + expert * math.prod(shape) * dtype.itemsize


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _open(path: Path) -> int:
    """Return a descriptor of a file, open for reading.

    Raises:
        CheckpointError: it cannot be read, or is no regular file.
    """
    try:
        return door.open_regular(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _fill(array: Array, descriptor: int, offset: int, path: Path) -> None:
    """Read an array from a file."""
    rest = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    try:
        while rest:
            # a call reads 2 GB at most
            count = os.preadv(descriptor, [rest], offset)
            if count == 0:
                raise CheckpointError(f"{path} was cut short while it was open")
            rest, offset = rest[count:], offset + count
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _index(path: Path) -> dict[str, str] | None:
    """Return tensor -> file of a sharded folder, or None where there is no index."""
    index = path / INDEX
    if not index.exists():
        return None
    try:
        content = door.read_bytes(index, MOST_INDEX_BYTES)
        other = other_kind(content)
        if other is not None:
            raise CheckpointError(f"{index} {other}")
        found = msgspec.json.decode(content, type=_Index).weight_map
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"{index}: weight_map must be an object of tensors and their files; "
            f"{door.in_words(error)}"
        ) from error
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} is no JSON: {door.in_words(error)}") from error
    outside = _outside(path, dict.fromkeys(found.values()))
    if outside is not None:
        tensor = next(tensor for tensor, where in found.items() if where == outside)
        raise CheckpointError(
            f"{index}: tensor {tensor} is said to be in {outside!r}, which is no file here"
        )
    return found


def _outside(folder: Path, names: Iterable[str]) -> str | None:
    """Return the first name that is no file of a folder; its links may not lead elsewhere."""
    home = folder.resolve()
    return next((name for name in names if not in_folder(home, name)), None)


def in_folder(home: Path, name: str) -> bool:
    """Tell whether a folder has something of a name that lies in it, wherever links lead.

    home: without links; of a model in Hugging Face's cache, its links may lead to the model's blobs
    """
    # a name that is too long, or has a NUL, is none
    with suppress(OSError, ValueError):
        homes = [home, *([home.parent.parent / BLOBS] if home.parent.name == SNAPSHOTS else [])]
        found = (home / name).resolve(strict=True)
        return Path(name).name == name and any(found.parent == place for place in homes)
    return False


def _paths(path: Path, index: dict[str, str] | None) -> list[Path]:
    if index is not None:
        return [path / file for file in dict.fromkeys(index.values())]
    if not path.is_dir():
        if path.exists():
            return [path]
        raise CheckpointError(f"{path} is not there; it must be a folder or a .safetensors file")
    single = path / SINGLE
    listed = sorted(Path(entry) for entry in os.scandir(path))
    found = [single] if single in listed else [f for f in listed if f.suffix == ".safetensors"]
    if not found:
        others = (
            f"; {other.name} is {kind}, which is not read"
            for pattern, kind in ELSEWHERE.items()
            for other in listed
            if other.match(pattern)
        )
        raise CheckpointError(f"{path} holds no .safetensors file{next(others, '')}")
    return found


def _merged(
    path: Path, files: dict[Path, dict[str, Entry]], index: dict[str, str] | None
) -> dict[str, Entry]:
    """Return where each tensor is: as the index says, or in the only file that has it."""
    merged: dict[str, Entry] = {}
    if index is not None:
        # a path is slow to make and to look up, and there may be 10^6 tensors
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
