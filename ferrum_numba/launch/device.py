"""One GPU, opened: its facts, its primary context, and the checked call to the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cuda.bindings import driver

from ferrum_numba.errors import ContextError, LaunchError
from ferrum_numba.gpu import Gpu, live

# after these every later call in the process fails with the same error; the numbers are CUresult's:
# uncorrectable ECC and NVLink, illegal address, launch timeout, context destroyed, device assert,
# stack, illegal instruction, misaligned address, address space, program counter, launch failed,
# unknown
_STICKY = frozenset({214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999})


def failure(status: Any, doing: str) -> LaunchError:
    """Return the error of a CUresult: `ContextError` where the context is lost with it."""
    kind = ContextError if int(status) in _STICKY else LaunchError
    return kind(f"{doing} failed with {status.name}")


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of the driver and return its first value, None where it has none.

    Raises:
        LaunchError: it did not return CUDA_SUCCESS.
    """
    values = call_all(function, *args)
    return values[0] if values else None


def call_all(function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call a function of the driver and return all its values.

    Raises:
        LaunchError: it did not return CUDA_SUCCESS.
    """
    status, *values = function(*args)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise failure(status, function.__name__)
    return list(values)


@dataclass(frozen=True)
class Device:
    """A GPU and its primary context, current in the thread that opened it unless told otherwise."""

    index: int
    gpu: Gpu
    context: Any

    @classmethod
    def open(cls, index: int = 0, *, current: bool = True) -> Device:
        """Open a GPU.

        current: make it that of the calling thread

        Raises:
            DeviceError: there is no driver or no such GPU.
        """
        # first, because it asks for a driver without calling one
        gpu = live(index)
        call(driver.cuInit, 0)
        context = call(driver.cuDevicePrimaryCtxRetain, call(driver.cuDeviceGet, index))
        device = cls(index, gpu, context)
        if current:
            device.make_current()
        return device

    def make_current(self) -> None:
        """Make the GPU's primary context current in the calling thread."""
        call(driver.cuCtxSetCurrent, self.context)

    def is_current(self) -> bool:
        """Tell whether launches of the calling thread go to this GPU."""
        return bool(call(driver.cuCtxGetCurrent) == self.context)

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Make the GPU's context current, and afterwards again what was current before."""
        call(driver.cuCtxPushCurrent, self.context)
        try:
            yield
        finally:
            call(driver.cuCtxPopCurrent)

    def new_stream(self) -> int:
        """Return the handle of a new stream that does not wait for the default stream."""
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
        return int(call(driver.cuStreamCreate, flags))

    def synchronize(self) -> None:
        """Wait for all work; a kernel's failure while running is raised here."""
        call(driver.cuCtxSynchronize)
