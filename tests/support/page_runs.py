"""Runs the Python of a page, block by block, as a reader who goes down the page would."""

import sys
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path


@contextmanager
def importable(folder):
    """Let the modules of a folder be imported, and forget them afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder):
                del sys.modules[name]


def placed(block, folder):
    """Write a block into a folder: its own file, or one named after its line; return the path."""
    path = folder / (block.file or f"{block.page.stem}_{block.line}.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)
    invalidate_caches()
    return path


def run(blocks, folder):
    """Run blocks in a folder; return the names that each file leaves, and `""` for all others.

    Blocks that are no file share their names. One that is a module of a package is imported. A
    mistake is told at the block's line in the page.
    """
    found = {"": {"__name__": "page"}}
    for block in blocks:
        path = placed(block, folder)
        if block.file and "/" in block.file:
            module = block.file.removesuffix(".py").replace("/", ".")
            found[block.file] = vars(import_module(module))
            continue
        names = found.setdefault(block.file or "", {"__name__": path.stem})
        # numba and the interpreter read a kernel's source where it says that it is
        exec(compile(block.text, path, "exec"), names)
    return found
