"""Operands made ahead: another process makes those of the next problems while the GPU measures.

They are handed over as files that are mapped, not copied, and removed when their problem is done.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from ferrum_numba import whole
from ferrum_numba.compile.orphan import end_with_parent
from ferrum_numba.contract import Kernel, Problem
from ferrum_numba.errors import FerrumError
from ferrum_numba.launch import HostOperands
from ferrum_numba.launch.operands import digest

Array = npt.NDArray[Any]
# processes, and threads of each: one cannot always keep ahead of the GPU, and more than half of the
# processors would be missed where a measurement waits for the host
WORKERS = min(4, max(2, (os.cpu_count() or 1) // 4))
THREADS = 2
# in memory, where there is so much room for files
MEMORY, ROOM_BYTES = Path("/dev/shm"), 16 << 30
# what waits for its turn; with so much of it no more is begun
MOST_BYTES = 4 << 30
# of the inputs, as of those that are made where they are measured
SEED = 0


@dataclass(frozen=True)
class Stored:
    """An array in a file, as its bytes."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def keep(cls, path: Path, array: Array) -> Stored:
        """Write an array."""
        np.ascontiguousarray(array).reshape(-1).view(np.uint8).tofile(path)
        return cls(str(path), array.shape, array.dtype)

    def load(self) -> Array:
        """Map the file; it may be removed then."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", shape=self.shape)


@dataclass(frozen=True)
class Prepared:
    """Operands of a kernel on a problem, in files."""

    arrays: dict[str, Stored]
    want: Stored
    digests: dict[str, str]

    def load(self) -> HostOperands:
        """Map the operands.

        Raises:
            OSError: a file is gone.
        """
        arrays = {name: stored.load() for name, stored in self.arrays.items()}
        return HostOperands(arrays, self.want.load(), self.digests)


class Preparer:
    """Processes that make operands of problems that will be asked for, in the order of asking."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._pool: ProcessPoolExecutor | None = None
        self._folder: Path | None = None
        # of the folder, which goes when it is closed
        self._open = ExitStack()
        self._made: dict[Problem, tuple[Path, Future[dict[str, Prepared]]]] = {}
        self._count = 0

    def expect(self, kernels: Sequence[Kernel], problem: Problem) -> None:
        """Begin to make the operands of a problem; nothing where that is done or under way.

        Nothing either where much waits already: asked again when less does, it begins.
        """
        if problem in self._made or self._size_bytes() > MOST_BYTES:
            return
        pool, folder = self._start()
        self._count += 1
        path = folder / str(self._count)
        self._made[problem] = path, pool.submit(prepare, tuple(kernels), problem, path)

    def take(self, kernel: Kernel, problem: Problem, timeout_s: float) -> Prepared | None:
        """Wait for the operands of a kernel; those of problems before this one are removed.

        None where nobody expected them, or they failed: what fails here fails again where it is
        needed, and is told of there.
        """
        if problem not in self._made:
            return None
        for other in list(self._made):
            if other == problem:
                break
            path, made = self._made.pop(other)
            made.cancel()
            shutil.rmtree(path, ignore_errors=True)
        try:
            return self._made[problem][1].result(timeout_s).get(kernel.name)
        except Exception:
            return None

    def wait(self, problem: Problem, timeout_s: float) -> None:
        """Wait until the operands of a problem are made, or failed."""
        if problem in self._made:
            wait([self._made[problem][1]], timeout_s)

    def close(self) -> None:
        """End the processes and remove what they made."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._open.close()
        self._pool = self._folder = None
        self._made.clear()

    def _size_bytes(self) -> int:
        """Return the size of what waits, also of what is written just now; the first is in use."""
        size_bytes = 0
        for folder, _ in list(self._made.values())[1:]:
            with suppress(OSError):
                size_bytes += sum(file.stat().st_size for file in folder.iterdir())
        return size_bytes

    def _start(self) -> tuple[ProcessPoolExecutor, Path]:
        if self._pool is None or self._folder is None:
            self._folder = self._open.enter_context(whole.scratch(_room()))
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(WORKERS, context, initializer=_stand_back)
        return self._pool, self._folder


def prepare(kernels: Sequence[Kernel], problem: Problem, folder: Path) -> dict[str, Prepared]:
    """Make the operands of kernels on a problem; arrays of equal contents are one file.

    A kernel that refuses the problem, or fails to prepare it, has none.
    """
    folder.mkdir(parents=True)
    op = kernels[0].op
    inputs = op.make_inputs(problem, np.random.default_rng(SEED))
    want = Stored.keep(folder / "want", op.reference(problem, inputs))
    files: dict[str, Stored] = {}
    found = {}
    for kernel in kernels:
        if kernel.refuses(problem):
            continue
        with suppress(FerrumError, ValueError):
            arrays = kernel.prepare(problem, inputs)
            digests = {name: digest(np.ascontiguousarray(a)) for name, a in arrays.items()}
            for name, array in arrays.items():
                if digests[name] not in files:
                    files[digests[name]] = Stored.keep(folder / str(len(files)), array)
            stored = {
                name: replace(files[digests[name]], shape=a.shape, dtype=a.dtype)
                for name, a in arrays.items()
            }
            found[kernel.name] = Prepared(stored, want, digests)
    return found


def _stand_back() -> None:
    """Leave the processors to whoever measures; end with it, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    os.nice(10)
    threadpool_limits(THREADS)


def _room() -> Path:
    """Return a folder in memory if it has room, else the usual one for files that go again."""
    try:
        roomy = shutil.disk_usage(MEMORY).free >= ROOM_BYTES
    except OSError:
        roomy = False
    return MEMORY if roomy else Path(tempfile.gettempdir())
