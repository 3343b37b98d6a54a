"""Several GPUs at once: how much faster they tune, and what is lost with one of them.

    python -m ferrum_numba.perf.fleet speed  --problem llama3-8b --m 1,16,256,1024 --limit 4
    python -m ferrum_numba.perf.fleet killed --problem llama3-8b --m 1,16,256,1024 --limit 4

`speed` tunes on the first GPU, then on all, each into an empty store, and compares the times from
the last compiled program to the last row. `killed` starts a Dask scheduler and a worker a GPU, ends
one of them with SIGKILL when a third of the candidates is measured, and looks for what is lost.
Exit status 1: slower than the GPUs allow, or something is lost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ferrum_numba import gpu
from ferrum_numba.cli.names import find_problems, with_rows
from ferrum_numba.cli.tune import TUNING
from ferrum_numba.errors import FerrumError
from ferrum_numba.gpu import Gpu, full_uuid
from ferrum_numba.kernels import KERNELS
from ferrum_numba.kernels.ceilings import CEILINGS
from ferrum_numba.measure import Policy
from ferrum_numba.perf.problems import PROBLEM_SETS
from ferrum_numba.results import Row
from ferrum_numba.results.store import NAME, Store
from ferrum_numba.tune.dask_fleet import Cluster
from ferrum_numba.tune.exclusive import compute_processes
from ferrum_numba.tune.fleet import tune_fleet
from ferrum_numba.tune.search import SearchTask
from ferrum_numba.tune.yardstick import yardsticks_of

DESIGNS = ("decode", "decode_wgmma", "prefill")
# of the time that so many GPUs would take if nothing were lost
SLACK = 1.15


@dataclass
class Clock:
    """A progress that knows when the compiling ended, and how many candidates are done.

    ended_at: how many were done when a worker was ended
    """

    began: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0
    ended_at: int = 0

    def __call__(self, done: int, total: int, text: str) -> None:
        """Take a progress."""
        if text == "compile":
            self.began = time.monotonic()
        else:
            self.done, self.total = done, total

    @property
    def seconds(self) -> float:
        """Since the last program was compiled."""
        return time.monotonic() - self.began


def speed(task: SearchTask, boards: Sequence[Gpu]) -> bool:
    """Print what one GPU and all of them take; return whether they are as fast as they should."""
    times = []
    for some in (boards[:1], boards):
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            mine = replace(task, store_path=Path(folder) / task.store_path.name)
            rows = tune_fleet(
                mine, some, yardsticks=yardsticks_of(CEILINGS, task.gpu), progress=clock
            )
        times.append(clock.seconds)
        factors = {row.board: row.board_factor for row in rows}
        print(f"{len(some)} GPUs: {len(rows)} rows in {clock.seconds:.1f} s; factors {factors}")
    ratio = times[0] / times[1]
    print(f"{ratio:.2f} times as fast; {len(boards) / SLACK:.2f} are asked for")
    return ratio >= len(boards) / SLACK


def killed(task: SearchTask, boards: Sequence[Gpu], **fakes: Any) -> bool:
    """Tune on a cluster of this machine, end a worker on the way, and look for what is lost.

    fakes: `describe_board` of the Cluster and `make` of its tune, in a test
    """
    describe = {n: fakes.pop(n) for n in ("describe_board",) if n in fakes}
    clock = Clock()
    with cluster(boards) as (address, workers), Cluster(address, **describe) as client:
        before: list[Row] = []
        about = (workers[0], clock, task, before)
        threading.Thread(target=_end, args=about, daemon=True).start()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            rows = client.tune(
                task, yardsticks=yardsticks_of(CEILINGS, task.gpu), progress=clock, **fakes
            )
        gone = workers[0].poll() is not None
        left = compute_processes(boards[0].uuid)
    kept = {(row.key, row.board) for row in _stored(task)}
    lost = [row for row in (*before, *rows) if (row.key, row.board) not in kept]
    print(
        f"{len(rows)} rows in {clock.seconds:.1f} s; {len(before)} were there when the worker was "
        f"ended after {clock.ended_at} of {clock.total} candidates; "
        f"{len(lost)} are not in the store"
    )
    for one in said:
        print(one.message)
    print(f"the worker was ended: {gone}; processes that still compute on its GPU: {left}")
    statuses = sorted({row.status for row in rows})
    problems = {str(row.problem) for row in rows}
    print(f"{len(problems)} of {len(task.problems)} problems; statuses: {', '.join(statuses)}")
    return gone and not lost and not left and len(problems) == len(task.problems)


@contextmanager
def cluster(boards: Sequence[Gpu]) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Run a scheduler and a worker for each GPU; yield the address and the workers."""
    dask = [sys.executable, "-m", "dask"]
    with ExitStack() as running, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"

        def start(*words: str, **environment: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [*dask, *words, "--scheduler-file", str(file)], cwd=folder,
                env={**os.environ, **environment}, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            running.callback(process.wait)
            running.callback(process.kill)
            return process

        start("scheduler", "--port", "0", "--dashboard-address", ":0")
        address = _address(file)
        words = ("worker", "--no-nanny", "--nthreads", "1", "--resources", "GPU=1")
        workers = [start(*words, CUDA_VISIBLE_DEVICES=full_uuid(b.uuid)) for b in boards]
        yield address, workers


def _address(file: Path, seconds: float = 60.0) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        # it is written in steps
        with suppress(OSError, ValueError, KeyError):
            return str(json.loads(file.read_text())["address"])
        time.sleep(0.1)
    raise FerrumError("the Dask scheduler did not start")


def _end(
    worker: subprocess.Popen[bytes], clock: Clock, task: SearchTask, before: list[Row]
) -> None:
    """End a worker when a third of the candidates is measured; note what was stored until then."""
    while not clock.total or clock.done < clock.total / 3:
        time.sleep(0.05)
    before += _stored(task)
    clock.ended_at = clock.done
    worker.kill()
    worker.wait()


def _stored(task: SearchTask) -> list[Row]:
    with Store(task.store_path.parent / NAME) as store:
        return store.rows(task.kernels[0].op.name)


def main(words: Sequence[str] | None = None) -> int:
    """Run one of the two."""
    parser = argparse.ArgumentParser(prog="fleet", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("speed", "killed"))
    parser.add_argument("--gpus", default="all")
    parser.add_argument("--problem", default="llama3-8b")
    parser.add_argument("--m", default="1,16,256,1024")
    parser.add_argument("--limit", type=int, default=4)
    args = parser.parse_args(words)
    kernels = [kernel for kernel in KERNELS if kernel.name in DESIGNS]
    found = find_problems(args.problem, PROBLEM_SETS, [kernel.op for kernel in kernels])
    problems = with_rows(found, [int(m) for m in args.m.split(",")])
    boards = gpu.chosen(args.gpus)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{kernels[0].op.name}.json"
        task = SearchTask(kernels, problems, boards[0], Policy(**TUNING), path, args.limit)
        good = speed(task, boards) if args.what == "speed" else killed(task, boards)
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FerrumError as error:
        print(f"fleet: {error}", file=sys.stderr)
        sys.exit(2)
