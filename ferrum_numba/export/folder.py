"""The folder of an export: written beside its place and moved there when it is whole."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from ferrum_numba.errors import StoreError
from ferrum_numba.results.file import load_json

# of both files, which change together
SCHEMA = 1
MANIFEST, DISPATCH = "manifest.json", "dispatch.json"
# all that an export may hold; whatever has more is somebody's own
FOLDERS = ("cubin", "ptx", "vectors")
CONTENTS = frozenset({MANIFEST, DISPATCH, *FOLDERS})


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes the target's place at the end; after an error it is gone.

    Raises:
        StoreError: the target holds something that is no export, or cannot be written.
    """
    target = target.absolute()
    refuse_target(target)
    # a name of its own in the same file system
    token = secrets.token_hex(4)
    folder = target.with_name(f".{target.name}.{token}")
    old = folder.with_name(f"{folder.name}.old")
    try:
        folder.mkdir()
        yield folder
        if target.exists():
            target.rename(old)
        folder.rename(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise StoreError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def refuse_target(target: Path) -> None:
    """Raise StoreError unless an export can take a folder's place: new, empty or an export."""
    if not target.exists():
        return
    if not target.is_dir():
        raise StoreError(f"{target} is a file; an export is a folder")
    found = {path.name for path in target.iterdir()}
    others = sorted(found - CONTENTS)
    if found and (others or MANIFEST not in found):
        holds = f"it holds {others[0]}" if others else f"it has no {MANIFEST}"
        raise StoreError(f"{target} is there already and is no earlier export: {holds}")


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
    for entry in manifest["entries"]:
        optional = [entry["ptx"]] if "ptx" in entry else []
        for record in [entry, *optional, *entry.get("vectors", ())]:
            _refuse_damaged(folder / record["file"], record)
    return manifest, dispatch


def _refuse_damaged(path: Path, record: Mapping[str, Any]) -> None:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    if sha256(data).hexdigest() != record["sha256"]:
        raise StoreError(
            f"{path} is damaged: the manifest knows {record['bytes']} bytes of sha256 "
            f"{record['sha256']}; got {len(data)} bytes of another"
        )
