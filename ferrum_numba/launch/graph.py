"""Calls captured once and replayed without the host's launch cost."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from cuda.bindings import driver

from ferrum_numba.launch.device import Device, call, failure
from ferrum_numba.launch.interop import stream_handle

Call = Callable[[int], Any]


class Graph:
    """A CUDA graph of calls that run one after the other; it keeps them and their buffers alive."""

    def __init__(self, executable: Any, calls: tuple[Call, ...]) -> None:
        self._executable = executable
        self._calls = calls
        weakref.finalize(self, driver.cuGraphExecDestroy, executable).atexit = False

    @classmethod
    def capture(cls, device: Device, calls: Sequence[Call], stream: Any = None) -> Graph:
        """Capture calls on a stream; each is called once, with its handle.

        A call that must warm up (load a module, allocate) has done so before.

        stream: not the default stream; by default one that is made for this capture
        """
        own = stream is None
        stream = device.new_stream() if own else stream_handle(stream)
        # relaxed: a peer's library may allocate, or ask an event, while it is captured
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        call(driver.cuStreamBeginCapture, stream, mode)
        try:
            for each in calls:
                each(stream)
        finally:
            # also after a failure: a stream left in capture refuses all later work
            status, graph = driver.cuStreamEndCapture(stream)
            if own:
                driver.cuStreamDestroy(stream)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise failure(status, "the capture of a graph")
        executable = call(driver.cuGraphInstantiate, graph, 0)
        call(driver.cuGraphDestroy, graph)
        return cls(executable, tuple(calls))

    def launch(self, stream: Any) -> None:
        """Replay the calls on a stream."""
        call(driver.cuGraphLaunch, self._executable, stream_handle(stream))
