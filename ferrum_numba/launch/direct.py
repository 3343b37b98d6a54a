"""The functions of the driver that every call needs, called past cuda.bindings.

That makes objects of what they take and return, which here would cost more than the functions do.
Each thread has the memory that answers are written to.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from cuda.bindings import driver

from ferrum_numba.launch.device import failure

_NOT_CAPTURING = driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE.value


@cache
def functions() -> Any:
    """Return the driver's library, whose functions are called with addresses as they are."""
    return ctypes.CDLL("libcuda.so.1")


@cache
def launcher() -> Callable[..., int]:
    """Return the driver's cuLaunchKernelEx.

    What a launch costs the host is nearly all the driver's: see docs/hardware.md#host-launch.
    """
    function: Callable[..., int] = functions().cuLaunchKernelEx
    return function


class _Answers(threading.local):
    """Where the driver writes its answers, in each thread elsewhere."""

    def __init__(self) -> None:
        status, number = ctypes.c_int(), ctypes.c_ulonglong()
        self.places = status, ctypes.byref(status), number, ctypes.byref(number)


class Streams:
    """What the driver knows of streams."""

    def __init__(self) -> None:
        self._answers = _Answers()
        self._is_capturing = functions().cuStreamIsCapturing
        self._get_id = functions().cuStreamGetId
        # handle -> as it is passed
        self._arguments: dict[int, ctypes.c_void_p] = {}

    def id_of(self, stream: int) -> int | None:
        """Return a stream's id, None while it is captured: then to ask would end the capture.

        An id is not a handle: the driver gives that of a destroyed stream to the next one.

        Raises:
            LaunchError: it is no stream.
        """
        status, status_at, number, number_at = self._answers.places
        argument = self._arguments.get(stream)
        if argument is None:
            argument = self._arguments[stream] = ctypes.c_void_p(stream)
        refused = self._is_capturing(argument, status_at)
        if refused:
            raise failure(driver.CUresult(refused), "cuStreamIsCapturing")
        if status.value != _NOT_CAPTURING:
            return None
        refused = self._get_id(argument, number_at)
        if refused:
            raise failure(driver.CUresult(refused), "cuStreamGetId")
        return number.value
