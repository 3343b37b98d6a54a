"""What comes in from outside, at the door: regular files, of a bounded size, depth and numbers.

Whoever reads a file that somebody else may have written reads it through here: a pipe in its place
would block, a device fill the memory, a nest of 10^5 brackets exhaust the stack, and a number of
10^5 digits take minutes to convert.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# of what people and tools write by hand or a row a line: configs, results, plans, recipes
MOST_BYTES = 256 << 20
# brackets in brackets; what is written here has 7 at most, a model's config about as many
MOST_DEEP = 64
# of a whole number: 64 bits have 20 and a sign
MOST_DIGITS = 20
# of a value in an error
SHOWN = 200
# "Expected `int`, got `str` - at `$.rows[3].us`"
IN_SCHEMA = re.compile(r"(.*?)(?: - at `(?:key` in `)?\$(.*)`)?", re.DOTALL)
KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
}  # fmt: skip


def open_regular(path: str | Path) -> int:
    """Return a descriptor of a regular file, open for reading; links are followed.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a folder; `strerror` says so.
    """
    try:
        # a pipe that nobody writes to does not open otherwise
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"no file has such a name: {error}", str(path)) from error
    # an open folder, too, has a descriptor
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind == stat.S_IFREG:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, f"it is {KINDS.get(kind, 'something')}, no file", str(path))


def read_bytes(path: str | Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return a file's contents.

    Raises:
        OSError: as for `open_regular`, or it is larger than this.
    """
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise OSError(
                errno.EFBIG, f"it has {size:,} bytes, and such a file {most_bytes:,} at most",
                str(path),
            )  # fmt: skip
        return file.read(size)


def read_json(path: str | Path, most_bytes: int = MOST_BYTES) -> Any:
    """Return what a file of JSON holds.

    Raises:
        OSError:    as for `read_bytes`
        ValueError: as for `parse_json`
    """
    return parse_json(read_bytes(path, most_bytes))


def parse_json(content: bytes | str) -> Any:
    """Return what a text of JSON says; NaN and infinity, which Python writes, are numbers.

    Raises:
        ValueError: it is none, or nested too deep, or has a number or a character that is none.
    """
    try:
        found = json.loads(content, parse_int=_whole)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MOST_DEEP} deep") from error
    _refuse_deep(found)
    # half of a character that takes two: no text file can hold it
    if (b"\\ud" if isinstance(content, bytes) else "\\ud") in content.lower():  # type: ignore[operator]
        json.dumps(found, ensure_ascii=False).encode()
    return found


def in_words(error: Exception) -> str:
    """Return what a schema finds wrong, `msgspec`'s words in those of a sentence."""
    found = IN_SCHEMA.fullmatch(str(error))
    assert found is not None, "its last part may be missing"
    what, place = found[1].replace("`", ""), (found[2] or "").lstrip(".")
    what = f"{what[:1].lower()}{what[1:]}"
    return f"{place}: {what}" if place else what


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Name what a schema finds something wrong with.

    Raises:
        ValueError: of the block, with this before its words.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what} is wrong: {in_words(error)}") from error


def shown(value: Any) -> str:
    """Return a value as JSON has it, short enough for a sentence."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def quoted(value: Any) -> str:
    """Return a value as Python writes it, a text in quotes, short enough for a sentence."""
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN else f"{value[:SHOWN]} ...")
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"it has a number of {len(text):,} digits")
    return int(text)


def _refuse_deep(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEEP):
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {MOST_DEEP} deep")
