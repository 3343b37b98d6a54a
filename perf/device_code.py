"""Which functions below kernels/ a design's device code is made of, read off the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ferrum_numba.contract import Kernel

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
PREFIX = "ferrum_numba.kernels."
# a file below kernels/, and a name at its top level
Place = tuple[str, str]


def functions_of(kernel: Kernel) -> dict[str, set[str]]:
    """Return the files of a design's device code, and the functions of each that it uses."""
    own = type(kernel).__module__.removeprefix(PREFIX).replace(".", "/") + ".py"
    # a kernel's module imports the program in the method that builds it
    waiting = [place for place in _imports(_tree(own)).values() if place[0].endswith("program.py")]
    found: dict[str, set[str]] = {}
    while waiting:
        file, name = waiting.pop()
        if name not in found.setdefault(file, set()):
            found[file].add(name)
            waiting += _uses(file, name)
    return {file: names for file, names in sorted(found.items()) if names}


def _uses(file: str, name: str) -> Iterator[Place]:
    """Yield what a function refers to: of its own file, and of those that it imports."""
    tree = _tree(file)
    imported = _imports(tree)
    tops = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tops[name]) if name in tops else ():
        if isinstance(node, ast.Name) and node.id in tops:
            yield file, node.id
        elif isinstance(node, ast.Name) and imported.get(node.id, ("", ""))[1]:
            yield imported[node.id]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            # of a module that is imported as a whole
            where, whole = imported.get(node.value.id, ("", "no"))
            if where and not whole:
                yield where, node.attr


def _imports(tree: ast.Module) -> dict[str, Place]:
    """Return what a file imports of kernels/, by name; a module has no name of its own there."""
    found: dict[str, Place] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(PREFIX):
            folder = f"{node.module}.".removeprefix(PREFIX).replace(".", "/").rstrip("/")
            for alias in node.names:
                module = f"{folder}/{alias.name}.py"
                is_module = (KERNELS / module).is_file()
                place = (module, "") if is_module else (f"{folder}.py", alias.name)
                found[alias.asname or alias.name] = place
    return found


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((KERNELS / file).read_text())
