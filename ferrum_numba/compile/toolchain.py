"""Which compilers turn a kernel into a cubin: part of every cache key and of every result."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import requires, version
from pathlib import Path

from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
from numba.cuda.cudadrv.libs import get_cudalib, get_libdevice

from ferrum_numba import ptx
from ferrum_numba.errors import ToolchainError

PACKAGES = ("numba", "numba-cuda", "llvmlite", "numpy", "cuda-core", "cuda-bindings")

LIBRARIES_COMMAND = "pip install 'numba-cuda[cu13]'"


@cache
def toolchain() -> dict[str, str]:
    """Return the versions and files of everything between a Python function and its cubin.

    Raises:
        ToolchainError: libNVVM or nvJitLink is missing
    """
    try:
        files = {
            "nvvm": get_cudalib("nvvm"),
            "libdevice": get_libdevice(),
            "nvjitlink": load_nvidia_dynamic_lib("nvJitLink").abs_path,
        }
    except DynamicLibNotFoundError as error:
        what = "CUDA's compiler libraries (libNVVM, nvJitLink, NVRTC) are not installed"
        raise ToolchainError(what, LIBRARIES_COMMAND) from error
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        **{name: _identity(path) for name, path in files.items()},
        "source": _SOURCE,
    }


def broken(error: Exception) -> ToolchainError:
    """Return what is wrong here, from what compiling a kernel of one line raised."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    if "'numpy'" in words:
        what = f"numba-cuda {version('numba-cuda')} does not go with NumPy {version('numpy')}"
        return ToolchainError(f"{what} ({words})", f"pip install '{_required('numpy')}'")
    return ToolchainError(words, "pip install --force-reinstall 'numba-cuda[cu13]'")


def _required(package: str) -> str:
    """Return which versions of a package this one asks for, such as `numpy<2.5`."""
    return next((r for r in requires("ferrum-numba") or () if r.startswith(package)), package)


def _identity(path: str) -> str:
    """Return a text that changes when a library file is replaced; reading it takes too long."""
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
