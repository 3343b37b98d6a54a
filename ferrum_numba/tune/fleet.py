"""Many GPUs at once: each takes the next problem from one queue, and all keep one store.

A problem is measured on one board as a whole: its configs are compared there, and nowhere else.
Boards of one model differ by some per cent; a yardstick, the same on each, says by how much.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ferrum_numba import results
from ferrum_numba.contract import Kernel, Problem
from ferrum_numba.errors import DeviceError
from ferrum_numba.gpu import full_uuid
from ferrum_numba.measure import read_clocks
from ferrum_numba.results import Row
from ferrum_numba.tune.exclusive import compute_processes, exclusive, others_on
from ferrum_numba.tune.memory import Memory, write_file
from ferrum_numba.tune.model import bound_us
from ferrum_numba.tune.search import SearchTask, programs_of, search
from ferrum_numba.tune.space import Progress, build_space, concerns, feasible, silent
from ferrum_numba.tune.worker import RUN_TIMEOUT_S, Measurer, Opener, Worker
from ferrum_numba.tune.yardstick import Yardstick, board_factor, time_yardsticks

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu

# within this a candidate that is being measured when Ctrl-C comes may still come to its end
GRACE_S = 5.0


@dataclass(frozen=True)
class Board:
    """A GPU that takes part.

    measurer:    measures on it
    environment: of its machine, as `results.environment` returns it
    untrusted:   why no time taken on it may be believed, if there is a reason
    """

    gpu: Gpu
    measurer: Measurer
    environment: Mapping[str, Any]
    untrusted: str = ""


class BoardLost(Exception):
    """The board is gone, with its process or its machine; what was not measured is another's."""


class _Stopped(Exception):
    """The fleet was told to stop."""


class Fleet:
    """The boards at work on a task; a context manager, which writes the result file at its end.

    Rows of a finished problem are those of `search`; each row was committed when it was measured.
    """

    def __init__(
        self, task: SearchTask, yardsticks: Sequence[Yardstick] = (), progress: Progress = silent
    ) -> None:
        """Compile everything, longest problems first in the queue."""
        self.task, self.progress = task, progress
        arch, gpu = task.gpu.arch, task.gpu
        self.yardsticks = [y for y in yardsticks if y.kernel.runs_on(gpu)]
        self._binaries = programs_of(task, progress)
        rulers = [(y.kernel, y.kernel.default(y.problem, gpu)) for y in self.yardsticks]
        self._rulers = build_space(rulers, arch, executor=task.executor) if rulers else {}
        self._problems = [p for p in dict.fromkeys(task.problems) if _concerned(task, p)]
        counts = {problem: _count(task, problem) for problem in self._problems}
        self._waiting = deque(sorted(counts, key=lambda p: _cost(task, p, counts[p]), reverse=True))
        self._total, self._done = sum(counts.values()), 0
        self._rows: dict[Problem, list[Row]] = {}
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._memories: list[Memory] = []
        self._stopping = False
        # why boards dropped out, by board
        self.dropped: dict[str, Exception] = {}

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        write_file(self.task)

    @property
    def finished(self) -> bool:
        """Whether every problem is measured."""
        return len(self._rows) == len(self._problems)

    @property
    def working(self) -> bool:
        """Whether any board is at work."""
        return any(thread.is_alive() for thread in self._threads)

    def add(self, board: Board) -> None:
        """Let a board begin."""
        thread = threading.Thread(target=self._work, args=(board,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until a problem or a board's work ends, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def rows(self) -> list[Row]:
        """Return the rows of all problems, in the order of the task.

        Raises:
            FerrumError: no board is left; the error that ended the last one.
        """
        if not self.finished:
            left = len(self._problems) - len(self._rows)
            none_left = DeviceError(f"no board is left to measure {left} problems on")
            faults = [e for e in self.dropped.values() if not isinstance(e, BoardLost)]
            raise faults[-1] if faults else none_left
        for board, error in self.dropped.items():
            warnings.warn(f"{board} dropped out: {error}", RuntimeWarning, stacklevel=2)
        return [row for problem in self._problems for row in self._rows[problem]]

    def stop(self) -> None:
        """End the boards' work after what each is measuring; what takes longer is not kept."""
        self._stopping = True
        for thread in self._threads:
            thread.join(GRACE_S)
        for memory in self._memories:
            memory.close()

    @contextmanager
    def without(self, board: str) -> Iterator[None]:
        """Let the others go on where something keeps a board from its work, and remember it."""
        try:
            yield
        except _Stopped:
            raise
        except Exception as error:
            self.dropped[board] = error

    def _work(self, board: Board) -> None:
        problem: Problem = None
        try:
            with self.without(full_uuid(board.gpu.uuid)), self._memory(board) as memory:
                while (problem := self._next()) is not None:
                    rows = self._measured(board, memory, problem)
                    with self._changed:
                        self._rows[problem] = rows
                        self._changed.notify_all()
        except _Stopped:
            pass
        finally:
            with self._changed:
                if problem is not None and problem not in self._rows:
                    self._waiting.appendleft(problem)
                self._changed.notify_all()

    def _next(self) -> Problem:
        with self._changed:
            # what another board is at comes back if that board is lost
            while not (self._waiting or self.finished or self._stopping):
                self._changed.wait(1.0)
            if self._stopping or not self._waiting:
                return None
            return self._waiting.popleft()

    def _memory(self, board: Board) -> closing[Memory]:
        timed = time_yardsticks(self.yardsticks, board.gpu, self._rulers, board.measurer)
        environment = {**board.environment, **({"yardstick": timed} if timed else {})}
        memory = Memory(replace(self.task, gpu=board.gpu, untrusted=board.untrusted), environment)
        self._memories.append(memory)
        return closing(memory)

    def _measured(self, board: Board, memory: Memory, problem: Problem) -> list[Row]:
        work = next(kernel.op.work(problem) for kernel in _concerned(self.task, problem))
        factor = board_factor(work, board.gpu, memory.environment, memory.reference())
        task = replace(
            self.task, problems=(problem,), gpu=board.gpu, untrusted=board.untrusted,
            board_factor=factor,
        )  # fmt: skip
        last = 0

        def report(done: int, _: int, text: str) -> None:
            nonlocal last
            if self._stopping:
                raise _Stopped
            with self._changed:
                self._done += done - last
                last = done
                self.progress(self._done, self._total, text)

        try:
            return search(task, board.measurer, report, memory=memory, binaries=self._binaries)
        except BaseException:
            with self._changed:
                self._done -= last
            raise


def run_fleet(fleet: Fleet, boards: Sequence[Board]) -> list[Row]:
    """Measure on these boards until all is done; write the result file, also when stopped.

    Raises:
        DeviceError: no board is left.
        StoreError:  the store or the result file cannot be written.
    """
    with fleet:
        for board in boards:
            fleet.add(board)
        while fleet.working and not fleet.finished:
            fleet.wait(1.0)
        return fleet.rows()


def tune_fleet(
    task: SearchTask,
    boards: Sequence[Gpu],
    *,
    yardsticks: Sequence[Yardstick] = (),
    timeout_s: float = RUN_TIMEOUT_S,
    progress: Progress = silent,
) -> list[Row]:
    """Tune on several GPUs of this machine, with a measuring process for each.

    Args:
        boards:     GPUs of one model, told apart by their UUIDs
        yardsticks: what says how the boards compare; the first that is bound by memory counts for
                    problems that are, the first that is bound by the tensor cores for the others
        timeout_s:  for checking and timing one config, before its process is ended

    Raises:
        DeviceError: the boards are of several models, another process measures on one of them, or
                     none is left.
        StoreError:  the store or the result file cannot be read or written.
    """
    # what opens a GPU is loaded where a GPU is opened
    from ferrum_numba.tune.measurer import GpuMeasurer

    one_model(boards)
    with ExitStack() as held:
        for gpu in boards:
            held.enter_context(exclusive(gpu))
        fleet = Fleet(task, yardsticks, progress)
        found = []
        for gpu in boards:
            make = partial(on_board, gpu.uuid, partial(GpuMeasurer, task.policy))
            worker = held.enter_context(Worker(make, timeout_s))
            clocks = asdict(read_clocks(gpu.uuid))
            here = results.environment(gpu, task.policy, sys.argv, clocks=clocks)
            found.append(Board(gpu, worker, here, others_on(compute_processes(gpu.uuid))))
        return run_fleet(fleet, found)


def on_board(uuid: str, make: Callable[[], Opener]) -> Opener:
    """Return a measurer that sees one GPU alone; called in a process that has opened none yet."""
    os.environ["CUDA_VISIBLE_DEVICES"] = full_uuid(uuid)
    return make()


def one_model(boards: Sequence[Gpu]) -> None:
    """Refuse boards of several models: what one decides is of no use to the other.

    Raises:
        DeviceError: names the models.
    """
    models = {(gpu.key, gpu.arch, gpu.num_sms): gpu.name for gpu in boards}
    if len(models) > 1:
        raise DeviceError(
            f"one tune is for one model of GPU, got {' and '.join(models.values())}; "
            "name those of one model"
        )


def _concerned(task: SearchTask, problem: Problem) -> list[Kernel]:
    return [kernel for kernel in task.kernels if concerns(kernel, problem)]


def _count(task: SearchTask, problem: Problem) -> int:
    """Return how many candidates a problem has."""
    kernels = _concerned(task, problem)
    return sum(len(feasible(kernel, problem, task.gpu, task.limit)[0]) for kernel in kernels)


def _cost(task: SearchTask, problem: Problem, count: int) -> float:
    """Return what a problem's measuring grows with."""
    works = (kernel.op.work(problem) for kernel in _concerned(task, problem))
    return count * max(bound_us(work, task.gpu) for work in works)
