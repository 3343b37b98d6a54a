"""`tune --replay FILE`: search in what was recorded, and `--t4 DIR`: hand it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba import door, whole
from ferrum_numba import gpu as gpus
from ferrum_numba.cli.output import print_json, say
from ferrum_numba.cli.session import TUNED_GPU, Session
from ferrum_numba.cli.tables import print_table
from ferrum_numba.errors import ConfigError, StoreError
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu
    from ferrum_numba.results import ResultFile, Row
    from ferrum_numba.tune.replay import Found, Landscape

# measurements of a kernel on a problem; 0 for no limit
BUDGETS = (1, 2, 4, 8, 16, 0)
# options of `tune` that are about a GPU's time, or where it is kept
MEASURING = ("plan", "budget", "stop_within", "gpus", "dask", "limit", "store")
COLUMNS = ("kernel", "searcher", "budget", "measured", "GPU s", "mean", "worst", "within 1 %")


def run(session: Session) -> int:
    """Print what each way of searching finds of the recorded optimum, and search as asked for."""
    from ferrum_numba.tune.replay import DEFAULT, judge, landscapes

    _refuse_others(session)
    rows, facts = _recorded(session)
    every = _asked_for(session, landscapes(rows, session.kernels, facts))
    if not every:
        named = ", ".join(kernel.name for kernel in session.kernels)
        where = " for these problems" if session.args.problem or session.args.m else ""
        raise StoreError(f"{session.args.replay} has no landscape of {named}{where}")
    names = [DEFAULT, "exhaustive", "model"]
    if session.args.searcher == "optuna":
        names.append("optuna")
    found = judge(every, names, BUDGETS, facts)
    searched = _searched(session, rows, every, facts)
    if session.args.json:
        print_json({"strategies": [asdict(one) for one in found], "search": searched})
        return 0
    title = f"{len(every)} landscapes of {facts.name}: how much slower than the best recorded"
    print_table([_shown(one) for one in found], COLUMNS, title)
    problems, asked = searched["problems"], searched["measured"]
    print(
        f"searched as asked for ({session.args.searcher}): {counted(problems, 'problem')}, "
        f"{counted(asked, 'measurement')}; the winner is {searched['mean']:.2%} slower than "
        f"the best recorded, at worst {searched['worst']:.2%}"
    )
    return 0


def write_t4(session: Session, files: Sequence[ResultFile]) -> None:
    """Write results in the T4 format, and say where."""
    from ferrum_numba.tune import t4

    paths = [p for file in files for p in t4.write(session.args.t4, file.rows, file.environment)]
    are = "is" if len(paths) == 1 else "are"
    say(f"{counted(len(paths), 'file')} in the T4 format {are} in {session.args.t4}")


def _refuse_others(session: Session) -> None:
    """Refuse options that say how to measure: nothing is.

    Raises:
        ConfigError: names the option.
    """
    args = session.args
    for name in MEASURING:
        if getattr(args, name) is not None:
            option = name.replace("_", "-")
            raise ConfigError(f"--replay searches in what was recorded, and takes no --{option}")
    if args.repeat > 1:
        raise ConfigError("--replay gives the same every time, and takes no --repeat")


def _asked_for(session: Session, every: Sequence[Landscape]) -> list[Landscape]:
    """Return the landscapes of the problems that the user named, or all."""
    from ferrum_numba.results.row import size_of

    if session.args.problem:
        wanted = set(session.problems())
        return [one for one in every if one.problem in wanted]
    sizes = session.args.m
    return [one for one in every if not sizes or size_of(one.about) in sizes]


def _recorded(session: Session) -> tuple[list[Row], Gpu]:
    """Return the rows of the file to replay, and its GPU."""
    from ferrum_numba import results
    from ferrum_numba.tune import t4

    path = Path(session.args.replay)
    try:
        looks_t4 = t4.is_t4(door.read_json(path))
    except (OSError, ValueError):
        looks_t4 = False
    if looks_t4:
        if session.args.t4:
            raise ConfigError(f"{path} is in the T4 format already; --t4 hands on result files")
        problems = session.problems() if session.args.problem else ()
        rows, facts = t4.read(path, session.kernels, problems)
    else:
        file = results.load(path)
        rows, facts = file.rows, file.environment["gpu_facts"]
        if session.args.t4:
            write_t4(session, [file])
    if not facts:
        return rows, gpus.find(TUNED_GPU)
    return rows, gpus.Gpu(**facts)


def _searched(
    session: Session, rows: Sequence[Row], every: Sequence[Landscape], facts: Gpu
) -> dict[str, Any]:
    """Run the search itself on the record, and return how its winners stand."""
    from ferrum_numba.results import winners
    from ferrum_numba.results.row import problem_key
    from ferrum_numba.tune.replay import ReplayMeasurer, replay_search

    measurer = ReplayMeasurer(rows)
    with whole.scratch() as folder:
        won = winners(
            replay_search(
                every, rows, facts, measurer, folder / "replay.json",
                searcher=session.args.searcher,
            )
        )  # fmt: skip
    best: dict[object, float] = {}
    for one in every:
        key = problem_key(one.about)
        best[key] = min(best.get(key, one.best_us), one.best_us)
    recorded = {row.key: row.us for row in rows}
    losses = [recorded[w.row.key] / best[problem_key(w.row.problem)] - 1 for w in won]
    return {
        "problems": len(won),
        "measured": len(measurer.asked),
        "mean": sum(losses) / len(losses) if losses else 0.0,
        "worst": max(losses, default=0.0),
    }


def _shown(one: Found) -> dict[str, Any]:
    return {
        "kernel": one.kernel,
        "searcher": one.searcher,
        "budget": one.budget or "all",
        "measured": f"{one.measured:.1f}",
        "GPU s": f"{one.gpu_s:.2f}",
        "mean": f"{one.mean:.1%}",
        "worst": f"{one.worst:.1%}",
        "within 1 %": f"{one.within_1:.0%}",
    }
