"""What `tune` runs on: the GPU at hand, several of this machine, or a cluster's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba import gpu
from ferrum_numba.cli.session import Session
from ferrum_numba.contract import Kernel, Problem
from ferrum_numba.gpu import Gpu

if TYPE_CHECKING:
    from ferrum_numba.results import Row
    from ferrum_numba.tune.dask_fleet import Cluster
    from ferrum_numba.tune.search import SearchTask

# as `tune.tune`
Tuner = Callable[..., "list[Row]"]


def tuner(session: Session) -> tuple[Gpu, Tuner]:
    """Return the GPU that is tuned for, and what tunes: a function called as `tune.tune`.

    Raises:
        DeviceError: a GPU or a cluster that is not there, or GPUs of several models.
    """
    from ferrum_numba import tune

    args = session.args
    if getattr(args, "dask", None):
        from ferrum_numba.tune.dask_fleet import Cluster

        cluster = session.open.enter_context(Cluster(args.dask))
        facts = cluster.gpu()
        return facts, partial(_on_cluster, session, cluster)
    if getattr(args, "gpus", None):
        from ferrum_numba.tune.fleet import one_model

        boards = gpu.chosen(args.gpus)
        one_model(boards)
        return boards[0], partial(_on_boards, session, boards)
    return gpu.live(), tune.tune


def _on_boards(session: Session, boards: Sequence[Gpu], *about: Any, **how: Any) -> list[Row]:
    from ferrum_numba.tune.fleet import tune_fleet
    from ferrum_numba.tune.yardstick import yardsticks_of

    task, rest = _task(*about, **how)
    return tune_fleet(task, boards, yardsticks=yardsticks_of(session.ceilings, task.gpu), **rest)


def _on_cluster(session: Session, cluster: Cluster, *about: Any, **how: Any) -> list[Row]:
    from ferrum_numba.tune.yardstick import yardsticks_of

    task, rest = _task(*about, **how)
    return cluster.tune(task, yardsticks=yardsticks_of(session.ceilings, task.gpu), **rest)


def _task(
    kernels: Sequence[Kernel], problems: Sequence[Problem], facts: Gpu, *, store_path: str | Path,
    **how: Any,
) -> tuple[SearchTask, dict[str, Any]]:  # fmt: skip
    """Return a task, and what is no part of it but of how a fleet is run."""
    from ferrum_numba.tune import SearchTask

    apart = ("timeout_s", "progress", "plan")
    rest: dict[str, Any] = {name: how.pop(name) for name in apart if name in how}
    return SearchTask(kernels, problems, facts, store_path=Path(store_path), **how), rest
