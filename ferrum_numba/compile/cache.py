"""Cubins on disk, one file each, under a key that names everything that decided them.

A file is three parts: a line with the digest of all that follows, a line of JSON with the key and
the binary's facts, and the cubin followed by the PTX. It is named after the digest of its key. A
file that is damaged, or whose key is another, counts as absent and is written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from ferrum_numba import door, whole
from ferrum_numba.compile.binary import Binary

MAGIC = "ferrum-numba cache 2"
# of an entry: the largest program has half a megabyte
MOST_BYTES = 64 << 20
# a digest: no name leads to another folder
NAME = re.compile(r"[0-9a-f]{64}")
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
    if not NAME.fullmatch(name):
        return None
    try:
        data = door.read_bytes(path(folder, name), MOST_BYTES)
    except OSError:
        return None
    first, _, body = data.partition(b"\n")
    if first.decode(errors="replace") != _first_line(body):
        return None
    header, _, payload = body.partition(b"\n")
    # a digest says that the file is whole, not who wrote it
    try:
        return _decode(door.parse_json(header), payload, name)
    except (ValueError, TypeError):
        return None


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


def _decode(found: Any, payload: bytes, name: str) -> Binary | None:
    """Return the binary of a header and what follows it, None where they do not fit each other.

    Raises:
        ValueError: a fact of another type; or the PTX is no text.
    """
    # whoever compiles without a cache need not have it
    import msgspec

    class Header(msgspec.Struct):
        key: str
        cubin_bytes: int
        facts: dict[str, Any]

    header = msgspec.convert(found, Header)
    size = header.cubin_bytes
    if digest(header.key) != name or not 0 <= size <= len(payload):
        return None
    parameters = msgspec.convert(header.facts.get("parameters"), list[tuple[str, str]])
    facts = {
        **header.facts, "cubin": payload[:size], "ptx": payload[size:].decode(),
        "parameters": [{"name": name, "kind": kind} for name, kind in parameters],
    }  # fmt: skip
    binary = msgspec.convert(facts, Binary)
    counts = (binary.registers, binary.spill_bytes, binary.stack_bytes, binary.static_smem_bytes)
    if min(*counts, binary.smem_bytes, *binary.cluster) < 0 or not 0 < binary.num_threads <= 1024:
        return None
    return binary


def write(path: Path, data: bytes) -> None:
    """Replace a file in one step, so that no reader ever sees half of it."""
    whole.write_bytes(path, data)
