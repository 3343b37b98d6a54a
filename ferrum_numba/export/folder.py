"""The folder of an export: written beside its place and moved there when it is whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from ferrum_numba import door, whole
from ferrum_numba.errors import StoreError
from ferrum_numba.results.file import load_json

# of both files, which change together
SCHEMA = 1
MANIFEST, DISPATCH = "manifest.json", "dispatch.json"
MADE_BY = "ferrum-numba"


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes the target's place at the end; after an error it is gone.

    Raises:
        StoreError: the target holds something that is no export, or cannot be written.
    """
    # a link stays, and where it leads is written
    target = target.resolve()
    refuse_target(target)
    try:
        with whole.folder_beside(target) as folder:
            yield folder
            whole.put(folder, target)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error


def refuse_target(target: Path) -> None:
    """Raise StoreError unless an export can take a folder's place: new, empty or an export."""
    try:
        if not target.exists():
            return
        if not target.is_dir():
            raise StoreError(f"{target} is a file; an export is a folder")
        found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
        own = _files_of(target / MANIFEST)
    except OSError as error:
        raise StoreError(f"{target} cannot be read: {error.strerror or error}") from error
    others = sorted(found - own)
    if others:
        raise StoreError(
            f"{target} is there already and is no earlier export: it holds {others[0]}"
        )


def _files_of(path: Path) -> set[str]:
    """Return the files of the export whose manifest this is, none if it is no export's."""
    try:
        manifest = door.read_json(path)
        if not manifest["made_by"].startswith(MADE_BY):
            return set()
        records = [record for entry in manifest["entries"] for record in _records(entry)]
        return {MANIFEST, DISPATCH, *(record["file"] for record in records)}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return set()


def _records(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what an entry says of its files."""
    return [entry, *([entry["ptx"]] if "ptx" in entry else []), *entry.get("vectors", ())]


def put(folder: Path, name: str, data: bytes) -> dict[str, Any]:
    """Write a file of an export and return how it is named and known."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return {"file": name, "bytes": len(data), "sha256": sha256(data).hexdigest()}


def load(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the manifest and the dispatch of an export whose files are all what they were.

    Raises:
        StoreError: another schema, or a file that is missing or damaged.
    """
    folder = Path(folder)
    manifest = load_json(folder / MANIFEST, SCHEMA)
    dispatch = load_json(folder / DISPATCH, SCHEMA)
    try:
        for entry in manifest["entries"]:
            for record in _records(entry):
                _refuse_damaged(folder / _inside(record["file"]), record)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{folder / MANIFEST} is damaged: {error}") from error
    return manifest, dispatch


def _inside(name: str) -> str:
    """Return the name of a file of an export; ValueError of one elsewhere."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{door.quoted(name)} is in another folder")
    return name


def _refuse_damaged(path: Path, record: Mapping[str, Any]) -> None:
    try:
        data = door.read_bytes(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    if sha256(data).hexdigest() != record["sha256"]:
        raise StoreError(
            f"{path} is damaged: the manifest knows {record['bytes']} bytes of sha256 "
            f"{record['sha256']}; got {len(data)} bytes of another"
        )
