"""What runs in a worker of a cluster: a measuring process that it holds from call to call."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from ferrum_numba import __version__, gpu, results
from ferrum_numba.gpu import Gpu
from ferrum_numba.measure import read_clocks
from ferrum_numba.tune.exclusive import compute_processes, exclusive
from ferrum_numba.tune.worker import Opener, Worker

# a tuner that calls no more was killed: the GPU is somebody else's then
IDLE_S = 120.0


@dataclass(frozen=True)
class Host:
    """What a worker's machine says of its board.

    driver, cuda: its driver's version, and the newest CUDA that it supports
    clocks:       MHz, by name
    others:       how many processes compute on it
    version:      of this package there
    """

    gpu: Gpu
    driver: str | None
    cuda: str | None
    clocks: Mapping[str, Any]
    others: int
    version: str = __version__


@dataclass(frozen=True)
class Session:
    """One tuner's work on one board.

    name: unlike any other session's
    make: importable callable, called in the measuring process
    """

    name: str
    gpu: Gpu
    make: Callable[[], Opener]
    timeout_s: float


class _Held:
    """The measuring process of the session that called last."""

    def __init__(self) -> None:
        self.name = ""
        self._worker: Worker | None = None
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._idle: threading.Timer | None = None

    def call(self, session: Session, method: str, arguments: Sequence[Any]) -> Any:
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            try:
                return getattr(self._take(session), method)(*arguments)
            finally:
                self._idle = threading.Timer(IDLE_S, self.leave, (session.name,))
                self._idle.daemon = True
                self._idle.start()

    def leave(self, name: str) -> None:
        with self._lock:
            if self.name == name:
                self._end()

    def _take(self, session: Session) -> Worker:
        if self._worker is None or self.name != session.name:
            self._end()
            # a cluster's worker may be the daemon of its nanny: those may have no children
            multiprocessing.current_process().daemon = False
            self._stack.enter_context(exclusive(session.gpu))
            self._worker = self._stack.enter_context(Worker(session.make, session.timeout_s))
            self.name = session.name
        return self._worker

    def _end(self) -> None:
        self._worker = None
        self._stack.close()


_held = _Held()


def describe_host() -> Host:
    """Return what this machine says of the first GPU that the process sees.

    Raises:
        DeviceError: there is none.
    """
    board = gpu.live()
    cuda, driver = results.versions()["cuda"], results.driver_version()
    others = compute_processes(board.uuid)
    return Host(board, driver, cuda, asdict(read_clocks(board.uuid)), others)


def call(session: Session, method: str, *arguments: Any) -> Any:
    """Call the session's measuring process, started if need be; its faults are outcomes.

    Raises:
        DeviceError: another process measures on the GPU, or the process cannot be started or ended.
    """
    return _held.call(session, method, arguments)


def leave(name: str) -> None:
    """End the measuring process of a session and let go of the GPU."""
    _held.leave(name)
