"""A process that measures, so that a kernel that hangs or poisons its context costs one row.

The parent holds a `Worker`; the process it starts holds a `Measurer` and does what it is told, one
call at a time. A call that does not come back in time, or kills the process, is a row with its
reason; the next call gets a new process.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ferrum_numba.compile.orphan import end_with_parent
from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.errors import DeviceError, FerrumError

if TYPE_CHECKING:
    from ferrum_numba.compile import Binary
    from ferrum_numba.tune.prepared import Prepared, Preparer

RUN_TIMEOUT_S = 30.0
# making inputs, packing them and computing the reference of a large problem is the host's work
OPEN_TIMEOUT_S = 600.0
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Candidate:
    """One thing to measure."""

    kernel: Kernel
    config: Config
    problem: Problem
    binary: Binary
    regime: str = "cold"


@dataclass(frozen=True)
class Outcome:
    """What came of measuring a candidate.

    status:  as in a result row
    us:      time of a call, one a replay
    rotated: whether the calls went through copies of the weights larger than L2
    extra:   what else was seen (clock_mhz, power_w, temperature_c), as JSON
    rounds, contest, round_mhz, throttled: of a final, as in a result row
    """

    status: str
    reason: str = ""
    us: tuple[float, ...] = ()
    rel_error: float | None = None
    max_error: float | None = None
    rotated: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    rounds: tuple[tuple[float, ...], ...] = ()
    contest: str = ""
    round_mhz: tuple[float | None, ...] = ()
    throttled: tuple[int, ...] = ()


class Measurer(Protocol):
    """What measures; in a process of its own, or a fake in a test."""

    def run(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """Check a candidate against the reference, then time it.

        best_us: the best time of the problem so far; what is far slower is dropped early
        """
        ...

    def round(
        self, candidates: Sequence[Candidate], turn: int, samples: int
    ) -> list[Outcome] | None:
        """Time each candidate once, one after the other; None if that failed.

        Errors are not measured again.

        Args:
            turn:    number of the round in its final, from 0; in odd ones the last comes first
            samples: replays that are timed of each

        Returns:
            an outcome for each candidate, in their order, whatever the order of timing
        """
        ...


@runtime_checkable
class Ahead(Protocol):
    """A measurer that can make ready for a problem while it measures another."""

    def expect(self, kernels: Sequence[Kernel], problem: Problem) -> None:
        """Begin to make what measuring a problem needs; asked for again, it changes nothing."""
        ...

    def ready(self, problem: Problem) -> None:
        """Wait until what was begun for a problem is made."""
        ...


class Opener(Measurer, Protocol):
    """A measurer as the process holds it: told beforehand which operands to make."""

    def open(self, kernel: Kernel, problem: Problem, prepared: Prepared | None = None) -> None:
        """Make the inputs, the reference and the kernel's operands, and keep them.

        prepared: the operands, where they were made ahead
        """
        ...


class _Lost(Exception):
    """The process did not answer, or answered that it failed."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Worker:
    """A measurer in a process of its own, started again when it hangs or dies."""

    def __init__(self, make: Callable[[], Opener], run_timeout_s: float = RUN_TIMEOUT_S) -> None:
        """Set what the process runs; it starts with the first call.

        Args:
            make: importable callable, called in the process
        """
        self._make = make
        self._run_timeout_s = run_timeout_s
        self._process: Any = None
        self._connection: Any = None
        self._opened: set[tuple[str, Problem]] = set()
        # programs that the process has
        self._sent: set[str] = set()
        # problems that cost a process: not tried again for every config
        self._hopeless: dict[tuple[str, Problem], tuple[str, str]] = {}
        self._preparer: Preparer | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.close()
        finally:
            if self._preparer is not None:
                self._preparer.close()

    def expect(self, kernels: Sequence[Kernel], problem: Problem) -> None:
        """Begin to make the operands of a problem, in processes without a GPU."""
        # where nothing is measured, as in a test, nothing of it is loaded
        from ferrum_numba.tune.prepared import Preparer

        self._preparer = self._preparer or Preparer()
        self._preparer.expect(kernels, problem)

    def ready(self, problem: Problem) -> None:
        """Wait for the operands of a problem, which are opened with its first candidate."""
        if self._preparer is not None:
            self._preparer.wait(problem, OPEN_TIMEOUT_S)

    def run(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """Check and time a candidate; a hang or a crash is an outcome too."""
        try:
            self._open(candidate.kernel, candidate.problem)
            self._sent.add(candidate.binary.fingerprint)
            light = replace(candidate, binary=replace(candidate.binary, ptx=""))
            outcome: Outcome = self._call(self._run_timeout_s, "run", light, best_us)
        except _Lost as lost:
            return Outcome(lost.status, str(lost))
        return outcome

    def round(
        self, candidates: Sequence[Candidate], turn: int, samples: int
    ) -> list[Outcome] | None:
        """Time each candidate once, in turn; None if the process did not survive it."""
        try:
            for candidate in candidates:
                self._open(candidate.kernel, candidate.problem)
            timeout_s = self._run_timeout_s * len(candidates)
            light = [self._light(candidate) for candidate in candidates]
            outcomes: list[Outcome] = self._call(timeout_s, "round", light, turn, samples)
        except _Lost:
            return None
        return outcomes

    def close(self) -> None:
        """End the process.

        Raises:
            DeviceError: it cannot be ended: the driver does not let go.
        """
        if self._process is None:
            return
        process, self._process = self._process, None
        self._opened.clear()
        self._sent.clear()
        self._connection.close()
        process.kill()
        process.join(10.0)
        if process.exitcode is None:
            raise DeviceError(
                f"the measuring process {process.pid} cannot be ended; the driver holds it"
            )

    def _light(self, candidate: Candidate) -> Candidate:
        """Return a candidate without what its process has of it: rounds are many and short."""
        binary = candidate.binary
        cubin = b"" if binary.fingerprint in self._sent else binary.cubin
        self._sent.add(binary.fingerprint)
        return replace(candidate, binary=replace(binary, ptx="", cubin=cubin))

    def _open(self, kernel: Kernel, problem: Problem) -> None:
        about = (kernel.name, problem)
        if about in self._hopeless:
            raise _Lost(*self._hopeless[about])
        # the process keeps the operands of one problem
        if any(other != problem for _, other in self._opened):
            self._opened.clear()
        if about in self._opened:
            return
        prepared = None
        if self._preparer is not None:
            prepared = self._preparer.take(kernel, problem, OPEN_TIMEOUT_S)
        ready = () if prepared is None else (prepared,)
        try:
            self._call(OPEN_TIMEOUT_S, "open", kernel, problem, *ready)
        except _Lost as lost:
            self._hopeless[about] = (lost.status, str(lost))
            raise
        self._opened.add(about)

    def _call(self, timeout_s: float, method: str, *arguments: Any) -> Any:
        if self._process is None:
            self._start()
        try:
            self._connection.send((method, arguments))
            good, reply = self._receive(timeout_s)
        except _Lost:
            self.close()
            raise
        except (EOFError, OSError) as error:
            raise self._died(error) from error
        if not good:
            # an error may have poisoned the CUDA context: only a new process is clean
            self.close()
            raise _Lost("failed", reply)
        return reply

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._make), daemon=True)
        self._process.start()
        theirs.close()
        try:
            good, reply = self._receive(START_TIMEOUT_S)
        except EOFError as error:
            raise DeviceError(str(self._died(error))) from error
        if not good:
            self.close()
            raise DeviceError(f"the measuring process did not start: {reply}")

    def _receive(self, timeout_s: float) -> tuple[bool, Any]:
        if not self._connection.poll(timeout_s):
            raise _Lost("timeout", f"no answer within {timeout_s:g} s")
        reply: tuple[bool, Any] = self._connection.recv()
        return reply

    def _died(self, error: Exception) -> _Lost:
        self._process.join(10.0)
        code = self._process.exitcode
        self.close()
        return _Lost("failed", f"the measuring process died with exit code {code} ({error!r})")


def _serve(connection: Connection, make: Callable[[], Opener]) -> None:
    """Answer calls until the parent is gone; runs in the process."""
    # Ctrl-C is the parent's to handle: it saves, then ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    try:
        measurer = make()
    except FerrumError as error:
        connection.send((False, str(error)))
        return
    connection.send((True, None))
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            reply = (True, getattr(measurer, method)(*arguments))
        except Exception as error:
            # whatever a candidate does wrong is its own row, with the words of the error
            reply = (False, f"{type(error).__name__}: {error}")
        connection.send(reply)
