"""Which compilers turn a kernel into a cubin: part of every cache key and of every result."""

from __future__ import annotations

from functools import cache
from importlib.metadata import requires, version

from cuda.bindings import nvjitlink
from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
from numba.cuda.cudadrv.libs import get_cudalib, get_libdevice

from ferrum_numba.compile.versions import identity, versions
from ferrum_numba.errors import ToolchainError

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
    return {**versions(), **{name: identity(path) for name, path in files.items()}}


def cuda_version() -> tuple[int, int]:
    """Return the version of CUDA whose linker makes cubins here; an older driver may refuse them.

    Raises:
        ToolchainError: nvJitLink is missing
    """
    toolchain()
    major, minor = nvjitlink.version()
    return major, minor


def broken(error: Exception) -> ToolchainError:
    """Return what is wrong here, from what compiling a kernel of one line raised."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    if "'numpy'" in words:
        what = f"numba-cuda {version('numba-cuda')} does not go with NumPy {version('numpy')}"
        return ToolchainError(f"{what} ({words})", f"pip install '{_required('numpy')}'")
    return ToolchainError(words, "pip install --force-reinstall 'numba-cuda[cu13]'")


def _required(package: str) -> str:
    """Return which versions of a package this one asks for, such as `numpy<2.5`."""
    wanted = (line.partition(";")[0].strip() for line in requires("ferrum-numba") or ())
    # an extra may want fewer versions than the package itself
    return max((w for w in wanted if w.startswith(package)), key=len, default=package)
