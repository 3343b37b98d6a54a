"""Many GPUs at once: each takes the next problem from one queue, and all keep one store.

A problem is measured on one board as a whole: its configs are compared there, and nowhere else.
Boards of one model differ by some per cent; a yardstick, the same on each, says by how much.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ferrum_numba import results
from ferrum_numba.compile import build
from ferrum_numba.errors import BuildError, DeviceError
from ferrum_numba.gpu import full_uuid
from ferrum_numba.measure import read_clocks
from ferrum_numba.results import Row
from ferrum_numba.results.identity import board_factors
from ferrum_numba.tune.exclusive import compute_processes, exclusive, others_on
from ferrum_numba.tune.held import Held
from ferrum_numba.tune.memory import Memory, write_file
from ferrum_numba.tune.queue import Queue, Stopped, Tally, longest_first
from ferrum_numba.tune.run import Run
from ferrum_numba.tune.search import SearchTask, begin, programs_of, space_of
from ferrum_numba.tune.space import Binaries, Progress, silent
from ferrum_numba.tune.worker import RUN_TIMEOUT_S, Measurer, Opener, Worker
from ferrum_numba.tune.yardstick import Yardstick, time_yardsticks

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu
    from ferrum_numba.tune.planned import Plan

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


class Fleet:
    """The boards at work on a task; a context manager, which writes the result file at its end.

    A row is committed when it was measured.
    """

    def __init__(
        self,
        task: SearchTask,
        yardsticks: Sequence[Yardstick] = (),
        progress: Progress = silent,
        binaries: Binaries | None = None,
    ) -> None:
        """Compile everything, where no programs are given."""
        self.task, gpu = task, task.gpu
        self._space = space_of(task)
        self._binaries = binaries or programs_of(task, self._space, progress)
        self._yardsticks = [y for y in yardsticks if y.kernel.runs_on(gpu)]
        self._rulers = self._build_rulers()
        self._queue = Queue(longest_first(self._space, gpu), task.due())
        self._tally = Tally(sum(len(configs) for *_, configs in self._space), progress)
        self._threads: list[threading.Thread] = []
        self._memories: list[Memory] = []
        self._held: list[Held] = []
        # why boards dropped out, by board
        self._dropped: dict[str, Exception] = {}

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        write_file(self.task)

    @property
    def finished(self) -> bool:
        """Whether every problem is measured, or the time is up."""
        return self._queue.finished

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
        self._queue.wait(seconds)

    def rows(self) -> list[Row]:
        """Return the rows of all problems, in the order of the task.

        Raises:
            FerrumError: no board is left; the error that ended the last one.
        """
        if not self.finished:
            none_left = DeviceError(f"no board is left to measure {self._queue.left} problems on")
            faults = [e for e in self._dropped.values() if not isinstance(e, BoardLost)]
            raise faults[-1] if faults else none_left
        for board, error in self._dropped.items():
            warnings.warn(f"{board} dropped out: {error}", RuntimeWarning, stacklevel=2)
        for held in self._held:
            self.task.held.take(held)
        found = self._queue.found
        problems = dict.fromkeys(self.task.problems)
        return [row for problem in problems for row in found.get(problem, ())]

    @contextmanager
    def without(self, board: str) -> Iterator[None]:
        """Let the others go on where something keeps a board from its work, and remember it."""
        try:
            yield
        except Stopped:
            pass
        except Exception as error:
            self._dropped[board] = error

    def _stop(self) -> None:
        """End the boards' work after what each is measuring; what takes longer is not kept."""
        self._queue.stop()
        for thread in self._threads:
            thread.join(GRACE_S)
        for memory in self._memories:
            memory.close()

    def _build_rulers(self) -> Binaries:
        found: Binaries = {}
        try:
            for one in self._yardsticks:
                config = one.kernel.default(one.problem, self.task.gpu)
                # those of a tuned architecture ship, so that nothing starts up to compile them
                found[one.kernel.name, config] = build(one.kernel, config, self.task.gpu.arch)
        except BuildError as error:
            # a plan's programs run where nothing compiles
            warnings.warn(f"the boards are not compared: {error}", RuntimeWarning, stacklevel=3)
            self._yardsticks = []
        return found

    def _work(self, board: Board) -> None:
        uuid = full_uuid(board.gpu.uuid)
        try:
            with self.without(uuid), self._memory(board) as memory:
                run = self._run(board, memory)
                while (problem := self._queue.take(uuid)) is not None:
                    later = self._queue.ahead(uuid)
                    self._queue.done(problem, run.problem(problem, self._queue.share(), later))
        finally:
            self._queue.leave(uuid)

    def _memory(self, board: Board) -> closing[Memory]:
        timed = time_yardsticks(self._yardsticks, board.gpu, self._rulers, board.measurer)
        environment = {**board.environment, **({"yardstick": timed} if timed else {})}
        memory = Memory(replace(self.task, gpu=board.gpu, untrusted=board.untrusted), environment)
        self._memories.append(memory)
        return closing(memory)

    def _run(self, board: Board, memory: Memory) -> Run:
        held = Held()
        self._held.append(held)
        task = replace(
            self.task, gpu=board.gpu, untrusted=board.untrusted, held=held,
            factors=board_factors(memory.environment, memory.reference()),
        )  # fmt: skip
        report = self._tally.of(self._queue)
        return begin(task, board.measurer, memory, self._binaries, self._space, report)


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
    plan: Plan | None = None,
) -> list[Row]:
    """Tune on several GPUs of this machine, with a measuring process for each.

    Args:
        boards:     GPUs of one model, told apart by their UUIDs
        yardsticks: what says how the boards compare; the first that is bound by memory counts for
                    problems that are, the first that is bound by the tensor cores for the others
        timeout_s:  for checking and timing one config, before its process is ended
        plan:       programs to take; without it they are compiled

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
        task, binaries = planned(task, plan)
        fleet = Fleet(task, yardsticks, progress, binaries)

        def board_of(gpu: Gpu) -> Board:
            clocks = asdict(read_clocks(gpu.uuid))
            here = results.environment(gpu, task.policy, sys.argv, clocks=clocks)
            return Board(gpu, workers[gpu.uuid], here, others_on(compute_processes(gpu.uuid)))

        workers = {}
        for gpu in boards:
            make = partial(on_board, gpu.uuid, partial(GpuMeasurer, task.policy))
            workers[gpu.uuid] = held.enter_context(Worker(make, timeout_s))
        # the driver's tool takes its time, for one GPU as for all
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(board_of, boards))
        return run_fleet(fleet, found)


def planned(task: SearchTask, plan: Plan | None) -> tuple[SearchTask, Binaries | None]:
    """Return a task with the estimates of a plan, and its programs; both as they are without one.

    Raises:
        StoreError: the plan is not for this GPU.
    """
    if plan is None:
        return task, None
    plan.refuse(task.gpu)
    estimates = task.estimates or plan.estimates
    return replace(task, estimates=estimates), plan.binaries


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
