"""The source files that decide a program, and whether they are what they were.

A file is named by its place in the package: `kernels/decode/steps.py` is
`ferrum_numba.kernels.decode.steps`, wherever that is installed. Found by following imports in the
text, so nothing is imported for it.
"""

from __future__ import annotations

import ast
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import ferrum_numba

PACKAGE = "ferrum_numba"
# what makes a program's binary, besides its own source
COMPILER = "compile/compiler.py"
# imported by what decides a program, without deciding anything: errors that are raised, how results
# are compared, what is shown of a kernel, where binaries are kept, and the words for what does not
# compile
NEUTRAL = frozenset(
    ("errors.py", "tolerance.py", "layout.py", "door.py", "whole.py", "compile/__init__.py", *(
        f"compile/{name}.py" for name in
        ("binary", "cache", "fingerprint", "lookup", "recipe", "refusals", "sass", "toolchain",
         "versions")
    ))
)  # fmt: skip
# what a launch is expected to take, for ranking configs, and what is checked
ASIDE = ("/estimate.py", "/corners.py")


def sources_of(module: str) -> dict[str, str]:
    """Return the digests of all files that decide the programs of a kernel's module, by name.

    module: dotted name, such as `ferrum_numba.kernels.decode.kernel`
    """
    found: dict[str, str] = {}
    waiting: list[str | None] = [_name(module), COMPILER]
    while waiting:
        name = waiting.pop()
        if name is None or name in found or name in NEUTRAL or name.endswith(ASIDE):
            continue
        text = _file(name).read_bytes()
        found[name] = hashlib.sha256(text).hexdigest()
        waiting += [_name(imported) for imported in _imports(text)]
    return dict(sorted(found.items()))


def changed(sources: Mapping[str, str]) -> str | None:
    """Return the first file that is not what it was, None if all are.

    One that was edited since this process began is not the code that runs here.
    """
    for name, digest in sources.items():
        if _digest(name) != digest:
            return name
    return None


def edited(sources: Iterable[str]) -> bool:
    """Tell whether a file was edited since this process began."""
    return any(_edited(_file(name).stat()) for name in sources)


@cache
def _digest(name: str) -> str | None:
    """Return a file's digest when it was first asked for, None if it is not the code that runs."""
    try:
        with _file(name).open("rb") as file:
            if _edited(os.fstat(file.fileno())):
                return None
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def _edited(facts: os.stat_result) -> bool:
    # not the time that a copy may keep, but that of the change itself; a time to come is a clock
    # that goes wrong, and says nothing
    return ferrum_numba.BEGAN < facts.st_ctime <= time.time()


def _imports(text: bytes) -> Iterator[str]:
    """Yield the dotted names that a text imports, wherever they stand."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "modules here are imported by their full names"
            assert node.module is not None, "and so have one"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _name(module: str) -> str | None:
    """Return the name of a module's file, None if it is not of this package."""
    package, _, rest = module.partition(".")
    if package != PACKAGE or not rest:
        return None
    path = rest.replace(".", "/")
    names = (f"{path}.py", f"{path}/__init__.py")
    return next((name for name in names if _file(name).is_file()), None)


def _file(name: str) -> Path:
    room, _, rest = name.partition("/")
    return _folder(room) / rest if rest else _folder("") / room


@cache
def _folder(room: str) -> Path:
    """Return the folder of a room of the package, whether there is one or not, or the package's."""
    spec = find_spec(f"{PACKAGE}.{room}" if room else PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    return _folder("") / room
