"""Which compilers turn a kernel into a cubin: part of every cache key and of every result."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
from numba.cuda.cudadrv.libs import get_cudalib, get_libdevice

from ferrum_numba import ptx
from ferrum_numba.compile import sass
from ferrum_numba.errors import BuildError

PACKAGES = ("numba", "numba-cuda", "llvmlite", "numpy", "cuda-core", "cuda-bindings")


@cache
def toolchain() -> dict[str, str]:
    """Return the versions and files of everything between a Python function and its cubin.

    Raises:
        BuildError: libNVVM or nvJitLink is missing
    """
    try:
        files = {
            "nvvm": get_cudalib("nvvm"),
            "libdevice": get_libdevice(),
            "nvjitlink": load_nvidia_dynamic_lib("nvJitLink").abs_path,
        }
    except DynamicLibNotFoundError as error:
        raise BuildError(
            f"a compiler library is missing: {error}; "
            "pip install 'ferrum-numba[cu13]' or a CUDA 13 toolkit brings it"
        ) from error
    files["nvdisasm"] = sass.nvdisasm()
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        **{name: _identity(path) for name, path in files.items()},
        "source": _SOURCE,
    }


def _identity(path: str | None) -> str:
    """Return a text that changes when a library file is replaced; reading it takes too long."""
    if path is None:
        return "none"
    facts = Path(path).stat()
    return f"{path} {facts.st_size} {facts.st_mtime_ns}"


def _source_digest() -> str:
    """Return the digest of our own code between a Python function and its cubin."""
    paths = [*Path(__file__).parent.glob("*.py"), Path(ptx.__file__).parent / "instruction.py"]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# when this is imported, not when asked: an edit made later is not the code that runs
_SOURCE = _source_digest()
