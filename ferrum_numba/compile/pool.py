"""Many builds at once, one process each: Numba's compiler lock leaves threads idle.

A worker takes one job at a time over a pipe, so that a worker that dies or hangs costs the job it
had and nothing else; `ProcessPoolExecutor` would lose every job in flight and cannot end one.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from ferrum_numba.compile.binary import Binary
from ferrum_numba.compile.lookup import build
from ferrum_numba.compile.orphan import end_with_parent
from ferrum_numba.contract import Config, Kernel
from ferrum_numba.errors import BuildError, ToolchainError

# a forked child would inherit a driver that does not survive a fork
CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Job:
    """One config of a kernel to build for an architecture."""

    kernel: Kernel
    config: Config
    arch: str


Outcome = Binary | BuildError


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    job: Job
    timeout_s: float
    deadline: float = 0.0


def build_many(
    jobs: Sequence[Job],
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    timeout_s: float = 120.0,
    executor: Executor | None = None,
) -> Iterator[tuple[Job, Outcome]]:
    """Build jobs and yield each with its outcome as it finishes.

    A job that fails, kills its worker or takes longer than `timeout_s` yields a BuildError; the
    others go on. With one worker or one job everything runs in this process, without a timeout.

    workers:  processes, by default one a CPU
    progress: called with (done, total) after each job
    executor: runs the jobs in place of this machine's processes, each in its own time: whatever a
              cluster's library gives, where the package is installed too

    Raises:
        ToolchainError: no kernel compiles here, so the others would not go on either
    """
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if executor is not None:
        finished = _on_executor(jobs, executor)
    else:
        finished = _in_processes(jobs, workers, timeout_s) if workers > 1 else _in_process(jobs)
    # whatever stops the run, Ctrl-C too, ends the workers
    with closing(finished):
        for done, (job, outcome) in enumerate(finished, start=1):
            if isinstance(outcome, ToolchainError):
                raise outcome
            if progress is not None:
                progress(done, len(jobs))
            yield job, outcome


def _in_process(jobs: Sequence[Job]) -> Generator[tuple[Job, Outcome], None, None]:
    for job in jobs:
        yield job, _attempt(job)


def _on_executor(
    jobs: Sequence[Job], executor: Executor
) -> Generator[tuple[Job, Outcome], None, None]:
    waiting = {executor.submit(_attempt, job): job for job in jobs}
    try:
        for future in as_completed(waiting):
            job = waiting.pop(future)
            error = future.exception()
            lost = f"{_name(job)} was lost with its worker: {type(error).__name__}: {error}"
            yield job, future.result() if error is None else BuildError(lost)
    finally:
        for future in waiting:
            future.cancel()


def _attempt(job: Job) -> Outcome:
    """Build a job; whatever goes wrong with one candidate must not end the run of the others."""
    try:
        return build(job.kernel, job.config, job.arch)
    except BuildError as error:
        return error
    except Exception as error:
        return BuildError(f"{_name(job)} failed with {type(error).__name__}: {error}")


def _in_processes(
    jobs: Sequence[Job], workers: int, timeout_s: float
) -> Generator[tuple[Job, Outcome], None, None]:
    waiting = deque(jobs)
    finished: deque[tuple[Job, Outcome]] = deque()
    busy: list[_Worker] = []
    idle: list[_Worker] = []
    try:
        while waiting or busy or finished:
            # workers get their next job before the caller gets the last result, which may take it
            # long to look at
            while waiting and len(busy) < workers:
                job = waiting.popleft()
                if isinstance(data := _pickled(job), BuildError):
                    finished.append((job, data))
                else:
                    busy.append(_give(idle, job, data, timeout_s))
            if finished:
                yield finished.popleft()
                continue
            finished += _collect(busy, idle)
    finally:
        for worker in busy + idle:
            _end(worker)


def _pickled(job: Job) -> bytes | BuildError:
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        return BuildError(f"{_name(job)} cannot be sent to a worker process: {error}")


def _give(idle: list[_Worker], job: Job, data: bytes, timeout_s: float) -> _Worker:
    """Send a job to an idle worker, or to a new one."""
    worker = idle.pop() if idle else _start(job, timeout_s)
    worker.job = job
    worker.deadline = time.monotonic() + timeout_s
    # one that died while idle is found when its answer is collected
    with suppress(OSError):
        worker.pipe.send_bytes(data)
    return worker


def _start(job: Job, timeout_s: float) -> _Worker:
    pipe, far_end = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_serve, args=(far_end,), daemon=True)
    process.start()
    # the worker holds the only other copy: when it dies, the pipe reports its end
    far_end.close()
    return _Worker(process, pipe, job, timeout_s)


def _collect(busy: list[_Worker], idle: list[_Worker]) -> list[tuple[Job, Outcome]]:
    """Wait until a worker answers, dies or is late, and return what is finished."""
    next_deadline = min(worker.deadline for worker in busy)
    wait([worker.pipe for worker in busy], max(0.0, next_deadline - time.monotonic()))
    finished: list[tuple[Job, Outcome]] = []
    for worker in list(busy):
        if (outcome := _outcome(worker)) is not None:
            finished.append((worker.job, outcome))
            busy.remove(worker)
            if not worker.pipe.closed:
                idle.append(worker)
    return finished


def _outcome(worker: _Worker) -> Outcome | None:
    """Return a worker's outcome, None while it is at work; end it if it died or is too late."""
    try:
        if worker.pipe.poll():
            outcome: Outcome = worker.pipe.recv()
            return outcome
    except (EOFError, OSError):
        worker.process.join()
        status = worker.process.exitcode
        _end(worker)
        return BuildError(f"{_name(worker.job)}: the process building it died with status {status}")
    if time.monotonic() < worker.deadline:
        return None
    _end(worker)
    return BuildError(f"{_name(worker.job)}: not built within {worker.timeout_s:g} s, given up")


def _end(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.kill()
    worker.process.join()


def _serve(pipe: Connection) -> None:
    """Build what comes through the pipe until its other end is closed; runs in a worker process."""
    # Ctrl-C goes to the whole group; the parent decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    # the parent may be gone when the answer is ready, or before it took the last one
    with suppress(EOFError, ConnectionError):
        while True:
            pipe.send(_attempt_pickled(pipe.recv_bytes()))


def _attempt_pickled(data: bytes) -> Outcome:
    try:
        job = pickle.loads(data)
    except (ImportError, AttributeError) as error:
        return BuildError(f"a worker process cannot import the kernel: {error}")
    return _attempt(job)


def _name(job: Job) -> str:
    return f"{job.kernel.name} {job.config} for {job.arch}"
