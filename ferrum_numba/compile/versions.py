"""What of the toolchain can be known without importing it: versions, and whether files changed."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("numba", "numba-cuda", "llvmlite", "numpy", "cuda-core", "cuda-bindings")
# our own code between a Python function and its cubin
SOURCES = (
    "compile/compiler.py",
    "compile/fingerprint.py",
    "compile/frontend.py",
    "compile/link.py",
    "ptx/instruction.py",
)
# in a toolchain's facts: libraries, as `identity` tells them
LIBRARIES = ("nvvm", "libdevice", "nvjitlink")


def versions() -> dict[str, str]:
    """Return the versions of everything between a Python function and its cubin but libraries.

    Raises:
        PackageNotFoundError: a package is not installed
    """
    packages = {package: version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **packages, "source": _SOURCE}


def toolkit() -> str | None:
    """Return the CUDA that the linker of cubins is of, None where there is no compiler."""
    with suppress(PackageNotFoundError):
        return ".".join(version("nvidia-nvjitlink").split(".")[:2])
    return None


def identity(path: str) -> str:
    """Return a text that changes when a library file is replaced; reading it takes too long."""
    facts = Path(path).stat()
    return f"{path} {facts.st_size} {facts.st_mtime_ns}"


def unchanged(toolchain: Mapping[str, str]) -> bool:
    """Tell whether a toolchain is the one here; where there is none, whatever it was will do."""
    try:
        version("numba-cuda")
    except PackageNotFoundError:
        return True
    # what a recipe of somebody else's says may be anything
    with suppress(PackageNotFoundError, OSError, KeyError, ValueError, AttributeError):
        same = {**toolchain, **versions()} == toolchain
        return same and all(identity(_path(toolchain[n])) == toolchain[n] for n in LIBRARIES)
    return False


def _path(identity: str) -> str:
    return identity.rsplit(" ", 2)[0]


def _source_digest() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((Path(__file__).parents[1] / name).read_bytes())
    return digest.hexdigest()


# when this is imported, not when asked: an edit made later is not the code that runs
_SOURCE = _source_digest()
