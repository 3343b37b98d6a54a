"""Cubins on disk, one file each, under a key that names everything that decided them.

A file is three parts: a line with the digest of all that follows, a line of JSON with the key and
the binary's facts, and the cubin followed by the PTX. It is named after the digest of its key. A
file that is damaged, or whose key is another, counts as absent and is written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from ferrum_numba.compile.binary import Binary
from ferrum_numba.contract import Parameter

MAGIC = "ferrum-numba cache 2"
ENVIRONMENT_VARIABLE = "FERRUM_NUMBA_CACHE_DIR"


def directory() -> Path:
    """Return the cache's folder, `FERRUM_NUMBA_CACHE_DIR` or the user's cache."""
    return Path(os.environ.get(ENVIRONMENT_VARIABLE) or user_cache_dir("ferrum-numba"))


def key(inputs: dict[str, Any]) -> str:
    """Return the text that stands for everything that decided a binary."""
    return json.dumps(inputs, sort_keys=True)


def digest(text: str) -> str:
    """Return a text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()


def load(key: str) -> Binary | None:
    """Return the binary stored under a key, None if there is none or it is damaged."""
    return read(directory(), digest(key))


def read(folder: Path, name: str) -> Binary | None:
    """Return a folder's binary by the digest of its key, None if it is not there or damaged."""
    try:
        data = path(folder, name).read_bytes()
    except OSError:
        return None
    first, _, body = data.partition(b"\n")
    if first.decode(errors="replace") != _first_line(body):
        return None
    header, _, payload = body.partition(b"\n")
    stored = json.loads(header)
    if digest(stored["key"]) != name:
        return None
    return _decode(
        stored["facts"], payload[: stored["cubin_bytes"]], payload[stored["cubin_bytes"] :]
    )


def store(key: str, binary: Binary) -> None:
    """Write a binary under a key, at once; a folder that cannot be written to is no error."""
    with suppress(OSError):
        keep(directory(), key, binary)


def keep(folder: Path, key: str, binary: Binary) -> None:
    """Write a binary into a folder under a key, at once."""
    facts = {
        f.name: getattr(binary, f.name) for f in fields(binary) if f.name not in ("cubin", "ptx")
    }
    facts["parameters"] = [[p.name, p.kind] for p in binary.parameters]
    header = {"key": key, "cubin_bytes": len(binary.cubin), "facts": facts}
    body = json.dumps(header).encode() + b"\n" + binary.cubin + binary.ptx.encode()
    write(path(folder, digest(key)), f"{_first_line(body)}\n".encode() + body)


def path(folder: Path, name: str) -> Path:
    """Return the file of a binary, by the digest of its key."""
    return folder / f"{name}.cubin"


def _first_line(body: bytes) -> str:
    return f"{MAGIC} {hashlib.sha256(body).hexdigest()}"


def _decode(facts: dict[str, Any], cubin: bytes, ptx: bytes) -> Binary:
    facts["remarks"] = tuple(facts["remarks"])
    facts["cluster"] = tuple(facts["cluster"])
    facts["parameters"] = tuple(Parameter(*p) for p in facts["parameters"])
    return Binary(cubin=cubin, ptx=ptx.decode(), **facts)


def write(path: Path, data: bytes) -> None:
    """Replace a file in one step, so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
