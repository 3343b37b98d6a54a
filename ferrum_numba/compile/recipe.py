"""Which binary a config of a kernel has, known without a compiler: by the source it was made of.

Beside the binaries lies a file for each config that was compiled:

    {"kernel": ..., "config": {...}, "arch": ..., "binary": NAME, "sources": {FILE: SHA256, ...}}

It holds as long as every file is what it was. Whoever compiled it knows the binary by all that
decided it (see `fingerprint`), which takes the compiler's front end; this takes reading the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ferrum_numba import door
from ferrum_numba.compile import cache
from ferrum_numba.compile.binary import Binary
from ferrum_numba.compile.sources import changed, edited, sources_of
from ferrum_numba.compile.versions import unchanged
from ferrum_numba.contract import Config, Kernel, describe
from ferrum_numba.gpu import driver_cuda

# whose source is all in this package, so that following its imports finds all of it
OURS = "ferrum_numba.kernels."
# of a recipe: a hundred files of a hundred bytes each
MOST_BYTES = 1 << 20
FILE = re.compile(r"(?:[A-Za-z0-9_]+/)*[A-Za-z0-9_]+\.py")
ABSENT, DAMAGED = "it is not there", "it is damaged"


def recipe_of(kernel: Kernel, config: Config, arch: str) -> dict[str, Any] | None:
    """Return what a config's recipe is known by, None for a kernel whose source is elsewhere."""
    kind = type(kernel)
    # what it is made of, of a kernel that can be sent to another process by it: in words, which are
    # other words each time for what has none, and then no recipe is found
    made = repr(kernel.__reduce__()[1]) if kind.__reduce__ is not object.__reduce__ else ""
    if not kind.__module__.startswith(OURS) or (vars(kernel) and not made):
        return None
    named = f"{kind.__module__}.{kind.__qualname__}"
    found = {"kernel": named, "config": describe(config), "arch": arch}
    return {**found, "made": made} if made else found


def find(folder: Path, recipe: Mapping[str, Any]) -> Binary | str:
    """Return the binary that a folder has for a recipe, or in words why it has none."""
    try:
        text = door.read_bytes(path(folder, recipe), MOST_BYTES)
    except OSError:
        return ABSENT
    try:
        found = _checked(door.parse_json(text), recipe)
    except (ValueError, TypeError, KeyError, AttributeError):
        return DAMAGED
    file, toolchain = changed(found["sources"]), found.get("toolchain")
    if file is not None:
        return f"it was made before {file} was changed"
    if toolchain is not None and not unchanged(toolchain):
        return "it was made by another compiler"
    newest, needed = driver_cuda(), found.get("cuda")
    if newest is not None and needed is not None and newest[0] < needed:
        return f"it needs a driver of CUDA {needed}, this one is of CUDA {newest[0]}"
    return cache.read(folder, found["binary"]) or DAMAGED


def _checked(found: Any, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file has, if it is the recipe that is wanted.

    Raises:
        ValueError: it is none, or that of another config.
        TypeError, KeyError, AttributeError: likewise.
    """
    if {name: found[name] for name in recipe} != recipe or not found["sources"]:
        raise ValueError("it is of another config")
    texts = [("sources", FILE), ("toolchain", None)]
    for part, pattern in texts:
        for name, value in (found.get(part) or {}).items():
            # what is named is read: it must lie in the package
            if pattern is not None and not pattern.fullmatch(name):
                raise ValueError(f"{name} is no file of this package")
            if not isinstance(value, str | None):
                raise TypeError(f"{part} has texts")
    if not isinstance(found["binary"], str) or not isinstance(found.get("cuda"), int | None):
        raise TypeError("binary is a text, cuda a number")
    checked: dict[str, Any] = found
    return checked


def remember(recipe: Mapping[str, Any], name: str, toolchain: Mapping[str, str]) -> None:
    """Note in the user's cache which of its binaries was just compiled for a recipe.

    name:      of the binary, the digest of its key
    toolchain: that compiled it

    Nothing is noted of source that was edited since this process began, which is not what it
    compiled; a folder that cannot be written to is no error.
    """
    sources = sources_of(recipe["kernel"].rpartition(".")[0])
    if not edited(sources):
        with suppress(OSError):
            keep(cache.directory(), recipe, name, sources, toolchain=toolchain)


def keep(
    folder: Path, recipe: Mapping[str, Any], name: str, sources: Mapping[str, str], **needs: Any
) -> Path:
    """Write a recipe into a folder, at once, and return its file.

    needs: `toolchain`, where what another one compiled is not wanted; `cuda`, the major version
           that a driver must have
    """
    file = path(folder, recipe)
    body = {**recipe, "binary": name, **needs, "sources": sources}
    cache.write(file, (json.dumps(body, indent=1) + "\n").encode())
    return file


def path(folder: Path, recipe: Mapping[str, Any]) -> Path:
    """Return the file of a recipe."""
    return folder / f"{cache.digest(cache.key(dict(recipe)))}.json"
