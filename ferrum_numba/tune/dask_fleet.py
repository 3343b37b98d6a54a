"""A fleet on a cluster: Dask says which machines there are, carries the calls and knows the dead.

    dask scheduler
    CUDA_VISIBLE_DEVICES=0 dask worker ADDRESS --nthreads 1 --resources GPU=1     one a GPU

Programs are compiled where the tuner runs, and all rows go into its store. A call is a task of
Dask's for the worker whose board the problem is on, and needs that worker's GPU.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ferrum_numba import __version__, results
from ferrum_numba.contract import Kernel, Problem, describe
from ferrum_numba.errors import DeviceError
from ferrum_numba.gpu import Gpu
from ferrum_numba.results import Row
from ferrum_numba.results.row import as_text
from ferrum_numba.tune.dask_worker import Host, Session, call, describe_host, leave
from ferrum_numba.tune.exclusive import others_on
from ferrum_numba.tune.fleet import Board, BoardLost, Fleet, one_model, planned
from ferrum_numba.tune.search import SearchTask
from ferrum_numba.tune.space import Progress, silent
from ferrum_numba.tune.worker import RUN_TIMEOUT_S, Candidate, Opener, Outcome
from ferrum_numba.tune.yardstick import Yardstick

if TYPE_CHECKING:
    from distributed import Client

    from ferrum_numba.tune.planned import Plan

RESOURCE = "GPU"
# between two looks at who is there, and at whether a worker still is while it measures
LOOK_S = 1.0
# for a scheduler to answer, and for a worker with a GPU to come where there is none
CONNECT_S = 30.0
LAST_PORT = 65535
# a candidate that ends so many workers is not tried again
MOST_KILLS = 2


class Cluster:
    """A connection to a Dask scheduler; a context manager."""

    def __init__(self, address: str, describe_board: Callable[[], Host] = describe_host) -> None:
        """Connect.

        Args:
            address:        tcp://host:port, as the scheduler prints it
            describe_board: importable callable, called in a worker

        Raises:
            DeviceError: the package is missing, or no scheduler answers there.
        """
        try:
            from distributed import Client
            from distributed.comm import get_address_host_port, normalize_address
        except ModuleNotFoundError as error:
            raise DeviceError(
                f"a Dask cluster needs the package {error.name}, which is not installed; "
                "pip install 'ferrum-numba[dask]'"
            ) from error
        try:
            # a client that was never one takes a minute to say so when it goes
            _, port = get_address_host_port(normalize_address(address))
            if not 0 < port <= LAST_PORT:
                raise ValueError(f"its port must be 1 to {LAST_PORT}, got {port}")
            self._client = Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise DeviceError(f"no Dask scheduler answers at {address}: {error}") from error
        self.address, self._describe = address, describe_board

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def workers(self) -> list[str]:
        """Return the addresses of the workers that have a GPU, or now and then none.

        The client keeps one answer for all that ask, and asks now and then for one without workers.
        """
        found = self._client.scheduler_info(n_workers=-1)["workers"]
        return [name for name, facts in found.items() if facts["resources"].get(RESOURCE)]

    def gpu(self) -> Gpu:
        """Return the facts of the first worker's GPU; wait for one to come.

        Raises:
            DeviceError: none comes, or it sees no GPU.
        """
        deadline = time.monotonic() + CONNECT_S
        while time.monotonic() < deadline:
            for address in self.workers():
                with suppress(BoardLost):
                    return self.host(address).gpu
            time.sleep(LOOK_S)
        raise DeviceError(
            f"no worker of {self.address} has a GPU to give; start one for each: "
            f"dask worker {self.address} --nthreads 1 --resources {RESOURCE}=1"
        )

    def host(self, address: str) -> Host:
        """Return what a worker says of its machine.

        Raises:
            BoardLost:   it is gone.
            DeviceError: it sees no GPU, or has another version of this package.
        """
        host: Host = on_worker(self._client, address, self._describe)
        if host.version != __version__:
            raise DeviceError(
                f"{address} has ferrum-numba {host.version}, and needs {__version__} as here"
            )
        return host

    def tune(
        self,
        task: SearchTask,
        make: Callable[[], Opener] | None = None,
        *,
        yardsticks: Sequence[Yardstick] = (),
        timeout_s: float = RUN_TIMEOUT_S,
        progress: Progress = silent,
        plan: Plan | None = None,
    ) -> list[Row]:
        """Tune on every worker that has a GPU of the task's model, also on those that come later.

        What a worker that dies was at is measured by another; a candidate that ends two workers is
        a row that says so.

        Args:
            make: makes what measures, in a process of the worker's; importable there
            plan: programs to take; without it they are compiled here

        Raises:
            DeviceError: no worker is left for half a minute, or none can measure.
            StoreError:  the store or the result file cannot be read or written.
        """
        if make is None:
            # what opens a GPU is loaded where a GPU is opened
            from ferrum_numba.tune.measurer import GpuMeasurer

            make = partial(GpuMeasurer, task.policy)
        task, binaries = planned(task, plan)
        name = uuid.uuid4().hex
        seen: set[str] = set()
        kills: dict[str, list[str]] = {}
        try:
            with Fleet(task, yardsticks, progress, binaries) as fleet:
                last_worked = time.monotonic()
                while not fleet.finished and time.monotonic() < last_worked + CONNECT_S:
                    for address in set(self.workers()) - seen:
                        seen.add(address)
                        # a worker that cannot take part is named; the others go on
                        with fleet.without(address):
                            host = self.host(address)
                            one_model([task.gpu, host.gpu])
                            session = Session(name, host.gpu, make, timeout_s)
                            remote = Remote(self._client, address, session, kills)
                            fleet.add(_board(task, host, remote))
                    fleet.wait(LOOK_S)
                    if fleet.working:
                        last_worked = time.monotonic()
                return fleet.rows()
        finally:
            for address in seen & there(self._client):
                with suppress(BoardLost):
                    on_worker(self._client, address, leave, name)


class Remote:
    """A measurer on one worker of a cluster.

    kills: addresses of the workers that each candidate ended, shared by the fleet
    """

    def __init__(
        self, client: Client, address: str, session: Session, kills: dict[str, list[str]]
    ) -> None:
        self._client, self._address, self._session = client, address, session
        self._kills = kills

    def run(self, candidate: Candidate, best_us: float | None) -> Outcome:
        """Check and time a candidate; one that ended two workers is not tried again."""
        about = _about([candidate])
        killed = self._kills.get(about, [])
        if len(killed) >= MOST_KILLS:
            return Outcome("failed", f"ended the workers {' and '.join(killed)}")
        outcome: Outcome = self._ask(about, "run", _light(candidate), best_us)
        return outcome

    def round(
        self, candidates: Sequence[Candidate], turn: int, samples: int
    ) -> list[Outcome] | None:
        """Time candidates in turn; None if such a round ended two workers."""
        about = _about(candidates)
        if len(self._kills.get(about, [])) >= MOST_KILLS:
            return None
        outcomes: list[Outcome] | None = self._ask(
            about, "round", [_light(candidate) for candidate in candidates], turn, samples
        )
        return outcomes

    def expect(self, kernels: Sequence[Kernel], problem: Problem) -> None:
        """Begin to make the operands of a problem on the worker's machine."""
        on_worker(self._client, self._address, call, self._session, "expect", kernels, problem)

    def ready(self, problem: Problem) -> None:
        """Wait until they are made."""
        on_worker(self._client, self._address, call, self._session, "ready", problem)

    def _ask(self, about: str, method: str, *arguments: Any) -> Any:
        try:
            return on_worker(self._client, self._address, call, self._session, method, *arguments)
        except BoardLost:
            self._kills.setdefault(about, []).append(self._address)
            raise


def there(client: Client) -> set[str]:
    """Return the addresses of all workers."""
    return set(client.nthreads())


def on_worker(client: Client, address: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a worker, which has its GPU for itself meanwhile.

    Raises:
        BoardLost: the worker is gone.
    """
    from distributed import KilledWorker

    future = client.submit(
        function, *arguments, workers=[address], allow_other_workers=False,
        resources={RESOURCE: 1}, pure=False,
    )  # fmt: skip
    try:
        while True:
            try:
                return future.result(timeout=LOOK_S)
            except TimeoutError:
                # or the function's own
                if future.status == "error":
                    raise
            if address not in there(client):
                raise BoardLost(f"the worker {address} was lost")
    except KilledWorker as error:
        raise BoardLost(f"the worker {address} was lost") from error
    finally:
        # what a lost worker was asked waits for it for ever
        future.cancel()


def _board(task: SearchTask, host: Host, remote: Remote) -> Board:
    here = results.environment(host.gpu, task.policy, sys.argv, clocks=host.clocks)
    # the programs were compiled with what is here, and run under the driver that is there
    there = {"driver": host.driver, "versions": {**here["versions"], "cuda": host.cuda}}
    return Board(host.gpu, remote, {**here, **there}, others_on(host.others))


def _light(candidate: Candidate) -> Candidate:
    """Return a candidate without what running it does not need, to be sent."""
    return replace(candidate, binary=replace(candidate.binary, ptx=""))


def _about(candidates: Sequence[Candidate]) -> str:
    named = [(c.kernel.name, describe(c.config), describe(c.problem)) for c in candidates]
    # the order of a round differs from that of the next
    return as_text(sorted(map(as_text, named)))
