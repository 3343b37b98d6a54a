"""A package whose kernel passes its check already, under the name that the user wants."""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from ferrum_numba.errors import ConfigError, StoreError

# the names that the templates have, and how a name of the user's looks
NAME, CLASS = "my_op", "MyOp"
WANTED = re.compile(r"[a-z][a-z0-9_]{0,63}")
ENDING = ".txt"


def fresh(name: str) -> dict[str, str]:
    """Return the text of every file of a new package, by file name.

    The kernel multiplies columns by factors; all of it is to be replaced by the user's own.
    """
    return {as_named(file, name): as_named(text, name) for file, text in template("own").items()}


def template(kind: str) -> dict[str, str]:
    """Return the files of a template, by name, as they are for a package `my_op`."""
    folder = Path(__file__).parent / kind
    return {file.name.removesuffix(ENDING): file.read_text() for file in sorted(folder.iterdir())}


def as_named(text: str, name: str) -> str:
    """Return a template's text for a package of another name."""
    return text.replace(NAME, name).replace(CLASS, class_name(name))


def class_name(name: str) -> str:
    """Return the class of a kernel's name: `my_op` has MyOp."""
    return "".join(part.capitalize() for part in name.split("_"))


def refuse_name(name: str, taken: Iterable[str], folder: Path) -> None:
    """Refuse a name that a package and a kernel cannot have.

    Args:
        taken:  names of the kernels that are there
        folder: where the package is to be

    Raises:
        ConfigError: it is no name of a module, or others have it.
        StoreError:  a file or folder has it.
    """
    if not WANTED.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(
            "a kernel's name is a word of small letters, digits and _ that no word of Python's "
            f"is, of at most 64 characters, such as my_op; got {name!r}"
        )
    if name in taken:
        raise ConfigError(f"a kernel that ships is named {name}; give yours another name")
    for place in (name, f"{name}.py"):
        if os.path.lexists(folder / place):
            raise StoreError(f"{place} is here already and is left as it is; give another name")
    if find_spec(name) is not None:
        raise ConfigError(
            f"a module named {name} is installed, and would be imported in the place of yours; "
            "give it another name"
        )
