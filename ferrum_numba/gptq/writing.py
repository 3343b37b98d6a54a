"""A checkpoint's folder, written: all of it or nothing, a tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ferrum_numba import door, whole
from ferrum_numba.contract import Array
from ferrum_numba.errors import CheckpointError
from ferrum_numba.gptq.files import DTYPES, INDEX, in_folder

# beside the weights, what a loader needs: configs, tokenizer, chat template, a model's own code
COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
# a tensor's type, shape of up to five dimensions and offsets, as a header has them
ENTRY_BYTES = 192
# what the library reads as a whole starts there
HEADER_ALIGNMENT = 8
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorWriter:
    """A .safetensors file that is written a tensor at a time; a context manager.

    The library's own `save_file` takes all tensors of a file at once. The header comes first and
    names all of them, so that there is left as much room as it can need, and filled with spaces.
    """

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        """Create the file; `names` are all tensors that will be written, and may be more."""
        room = sum(len(json.dumps(name)) + ENTRY_BYTES for name in names) + ENTRY_BYTES
        self._room = room + -room % HEADER_ALIGNMENT
        # what Hugging Face's loader asks for
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._end = 0
        self._file = path.open("xb")
        self._file.seek(8 + self._room)

    def add(self, name: str, array: Array) -> None:
        """Write a tensor of any of safetensors' types that NumPy has."""
        assert name not in self._header, "a tensor is written once"
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        offsets = [self._end, self._end + data.nbytes]
        self._header[name] = {
            "dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets,
        }  # fmt: skip
        self._end = offsets[1]
        self._file.write(data.data)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            if error is None:
                header = json.dumps(self._header, separators=(",", ":")).encode()
                assert len(header) <= self._room, "the room was for all tensors"
                self._file.seek(0)
                self._file.write(self._room.to_bytes(8, "little"))
                self._file.write(header.ljust(self._room))
                # of a file without data too
                self._file.truncate(8 + self._room + self._end)


def aligned(names: Iterable[str], itemsize: Mapping[str, int]) -> list[str]:
    """Return names of tensors in an order in which each begins at a multiple of its elements."""
    return sorted(names, key=lambda name: -itemsize[name])


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which gets its name at the end; after an error it is gone.

    Raises:
        CheckpointError: the target is there, or cannot be written.
    """
    if target.exists():
        raise CheckpointError(f"{target} is there already; the target must be a new folder")
    folder = target
    try:
        with whole.folder_beside(target) as folder:
            yield folder
            folder.rename(target)
    except CheckpointError as error:
        # who reads what was written knows no other name of it
        raise CheckpointError(str(error).replace(str(folder), str(target))) from error
    except OSError as error:
        # of a file that is no part of what is written, it is the source
        place = Path(error.filename or folder)
        side = f"{target} cannot be written"
        if not place.is_relative_to(target.parent) or place == folder.parent:
            side = side if error.filename is None else f"{place} cannot be read"
        raise CheckpointError(f"{side}: {error.strerror or error}") from error


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    """Write which file has which tensor, where there are several."""
    if len(set(weight_map.values())) > 1:
        write_json(folder / INDEX, {"metadata": {}, "weight_map": weight_map})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as others' tools do."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def copy_rest(source: Path, folder: Path, left_out: Iterable[str] = ()) -> None:
    """Copy what else a loader needs, but no index of files that are others now.

    Raises:
        CheckpointError: a file cannot be read, or is a link that leads out of the source.
    """
    home = source.resolve()
    for path in sorted(source.iterdir()):
        wanted = path.suffix in COPIED and not path.name.endswith(".index.json")
        if (
            not wanted
            or not path.is_file()
            or path.name in left_out
            or (folder / path.name).exists()
        ):
            continue
        # who hands on what was written would hand on what the link leads to
        if not in_folder(home, path.name):
            raise CheckpointError(f"{path} leads out of its folder; it is not copied")
        try:
            content = door.read_bytes(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        (folder / path.name).write_bytes(content)
