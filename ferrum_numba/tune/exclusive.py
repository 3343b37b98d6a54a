"""One measuring process a GPU: two at once measure each other."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ferrum_numba.compile import cache
from ferrum_numba.errors import DeviceError, StoreError
from ferrum_numba.gpu import full_uuid

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

# where a command that compiles into a folder of its own still finds the others' locks
ENVIRONMENT_VARIABLE = "FERRUM_NUMBA_LOCK_DIR"
_NVML_INSUFFICIENT_SIZE = 7


def directory() -> Path:
    """Return the folder of the locks: `FERRUM_NUMBA_LOCK_DIR`, or that of the compiled programs."""
    return Path(os.environ.get(ENVIRONMENT_VARIABLE) or cache.directory())


@contextmanager
def exclusive(gpu: Gpu) -> Iterator[None]:
    """Hold the lock on measuring on a GPU.

    Raises:
        DeviceError: another process holds it.
        StoreError:  the folder of the lock cannot be made or written.
    """
    path = directory() / f"measuring-{gpu.uuid}.lock"
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DeviceError(
            f"another process is measuring on {gpu.name}; wait for it to end (it holds {path})"
        ) from error
    except OSError as error:
        raise StoreError(
            f"{path.parent} cannot be written: {error.strerror}; "
            f"set {cache.ENVIRONMENT_VARIABLE} to a folder that can"
        ) from error
    with lock:
        yield


def compute_processes(uuid: str) -> int:
    """Return how many processes compute on a GPU; 0 where NVML cannot tell."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0
    if nvml.nvmlInit_v2():
        return 0
    handle, count = ctypes.c_void_p(), ctypes.c_uint(0)
    try:
        if nvml.nvmlDeviceGetHandleByUUID(full_uuid(uuid).encode(), ctypes.byref(handle)):
            return 0
        # asked with no room for answers, it tells how many there are
        status = nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), None)
    finally:
        nvml.nvmlShutdown()
    return count.value if status in (0, _NVML_INSUFFICIENT_SIZE) else 0


def others_on(processes: int) -> str:
    """Return why a time taken beside so many other processes may not be believed."""
    return f"{processes} other processes computed on the GPU" if processes else ""
