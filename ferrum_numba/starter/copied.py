"""A design's own files, copied into a package of the user's under another name.

What several designs share (`kernels/shared/`, the Op) stays where it is and is imported from there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ferrum_numba import __version__
from ferrum_numba.contract import Kernel
from ferrum_numba.starter.fresh import as_named, template


def like(kernel: Kernel, name: str) -> dict[str, str]:
    """Return the text of every file of a package that begins as a design, by file name.

    It has the modules of the design's own folder that its kernel imports, a list and a test.
    """
    module, of = type(kernel).__module__, type(kernel).__name__
    package, _, own = module.rpartition(".")
    files = {}
    for copied in _modules(module, package):
        text = _text(copied)
        if copied == module:
            text = _renamed(text, of, name)
        # a whole dotted name: kernels.decode is no part of kernels.decode_wgmma
        text = re.sub(rf"\b{re.escape(package)}(?=\.|\s)", name, text)
        origin = f"# Began as {copied} of ferrum-numba {__version__} (MIT).\n"
        files[f"{copied.rpartition('.')[2]}.py"] = origin + text
    for file, text in template("like").items():
        text = text.replace("my_op.design import MyOp", f"my_op.{own} import {of}")
        files[as_named(file, name)] = as_named(text.replace("MyOp()", f"{of}()"), name)
    words = f'"""{name}, which began as ferrum-numba\'s {kernel.name}."""\n'
    return {"__init__.py": words, **files}


def _modules(first: str, package: str) -> list[str]:
    """Return the modules of a package that one of them imports, itself among them."""
    found: list[str] = []
    waiting = [first]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.append(module)
            waiting += [n for n in _imports(_text(module)) if _is_module_of(package, n)]
    return found


def _imports(text: str) -> Iterator[str]:
    """Yield the dotted names that a text imports from, wherever they stand."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_module_of(package: str, name: str) -> bool:
    above, _, last = name.rpartition(".")
    return above == package and (_folder(package) / f"{last}.py").is_file()


def _text(module: str) -> str:
    package, _, last = module.rpartition(".")
    return (_folder(package) / f"{last}.py").read_text()


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None, "a kernel that is here was imported from a package"
    assert spec.origin is not None, "which has an __init__.py"
    return Path(spec.origin).parent


def _renamed(text: str, of: str, name: str) -> str:
    """Return a module's text with another `name` in one of its classes."""
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.name == of:
            for line in node.body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "name":
                    indent = " " * line.col_offset
                    lines[line.lineno - 1] = f'{indent}name = "{name}"\n'
    return "".join(lines)
