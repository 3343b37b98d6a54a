"""Files and folders that are whole or not there, whenever the process that writes them ends.

What is written has another name until it is whole, and is locked by its writer. A writer that was
killed holds no lock any more: the next one that writes into the same folder removes what it left.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

# of what is not whole yet: beside its place, hidden
ENDING = ".ferrum-part"
# a folder for the time of a command
SCRATCH = "ferrum-numba-scratch-"
# of Linux's renameat2
_HERE, _RENAME_EXCHANGE = -100, 2
# folders in which this process has looked for what others left
_swept: set[Path] = set()


@contextmanager
def writing(path: str | Path) -> Iterator[IO[bytes]]:
    """Give a file to write, which replaces another at the end; after an error it is gone.

    A link stays, and where it leads is written.

    Raises:
        OSError: the folder cannot be made or written.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent)

    def create(name: Path) -> int:
        # whoever may read the folder's other files may read this one
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    temporary, descriptor = _locked(path, create)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file at once: a reader sees the old one or the new one, never a part.

    Raises:
        OSError: the folder cannot be made or written; nothing of the new file is there.
    """
    with writing(path) as file:
        file.write(content)


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Give a new folder beside a target, in the same file system; at the end it is gone or renamed.

    Raises:
        OSError: it cannot be made.
    """
    _sweep_once(target.parent)
    with _folder(target) as folder:
        yield folder


def put(folder: Path, target: Path) -> None:
    """Give a new folder its name; one that has it already takes the new one's place.

    Raises:
        OSError: it cannot be renamed; then everything is where it was.
    """
    if not target.exists():
        folder.rename(target)
        return
    try:
        _exchange(folder, target)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise
        # of a file system that cannot do it at once
        old = folder / "old"
        try:
            target.rename(old)
            folder.rename(target)
        except BaseException:
            # Ctrl-C too, between the two
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(target / "old", ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    """Exchange the names of two files or folders, at once."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    names = (os.fsencode(one), os.fsencode(other))
    if libc.renameat2(_HERE, names[0], _HERE, names[1], _RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


@contextmanager
def scratch(root: Path | None = None) -> Iterator[Path]:
    """Give a folder for files that go again, in the usual place for them or another.

    What killed processes left there goes first.
    """
    root = root or Path(tempfile.gettempdir())
    sweep(root)
    with _folder(root / SCRATCH, hidden="") as folder:
        yield folder


@contextmanager
def _folder(target: Path, hidden: str = ".") -> Iterator[Path]:
    def create(name: Path) -> int:
        name.mkdir(mode=0o777 if hidden else 0o700)
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC)

    folder, descriptor = _locked(target, create, hidden)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked(path: Path, create: Callable[[Path], int], hidden: str = ".") -> tuple[Path, int]:
    """Return a new name beside a path, and its descriptor, locked."""
    while True:
        # a name may be as long as the system takes: what is added must fit
        name = path.with_name(f"{hidden}{path.name[:180]}{secrets.token_hex(4)}{ENDING}")
        descriptor = create(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # another process may have taken it for a dead one's before it was locked
            if os.path.samestat(os.stat(name), os.fstat(descriptor)):
                return name, descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def sweep(root: Path) -> None:
    """Remove the folders of `scratch` that killed processes left in a place."""
    _sweep(root, f"{SCRATCH}*")


def _sweep_once(folder: Path) -> None:
    if folder not in _swept:
        _swept.add(folder)
        _sweep(folder, f".*{ENDING}")


def _sweep(folder: Path, pattern: str) -> None:
    """Remove what processes left in a folder that were killed; what cannot be removed stays."""
    with suppress(OSError):
        for path in folder.glob(pattern):
            with suppress(OSError):
                _remove_if_free(path)


def _remove_if_free(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(descriptor)
