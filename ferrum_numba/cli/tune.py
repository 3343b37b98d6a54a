"""`ferrum-numba tune`: check and time the whole space, decide, store; resumable."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli import options, replaying, searching
from ferrum_numba.cli.fleets import tuner
from ferrum_numba.cli.names import in_words
from ferrum_numba.cli.output import as_json, make_folder, print_json, say, say_rows
from ferrum_numba.cli.progress import progress
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tables import print_table
from ferrum_numba.contract import Kernel, Op, Problem

if TYPE_CHECKING:
    from ferrum_numba.results import ResultFile, Row, Winner
    from ferrum_numba.tune.planned import Plan
    from ferrum_numba.tune.space import Progress

HELP = "check and time every config on the GPU, decide, store; goes on where it was stopped"
WRONG = 1
# fields of the policy: replays so long that what lies between two of them does not count
TUNING: dict[str, Any] = {"samples": 25, "min_graph_us": 1600.0}
TROUBLE = ("wrong", "failed", "timeout", "build failed")
# `of bound` is bound_us / us; all else that is known of a row is in its file
COLUMNS = ("problem", "program", "us", "of bound", "verdict")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to tune, how long, and where to keep it."""
    options.add_kernels(parser)
    options.add_problems(parser)
    options.add_store(parser)
    options.add_timeout(parser)
    options.add_search(parser)
    options.add_repeat(parser)
    options.add_fleet(parser)
    options.add_effort(parser, "configs a kernel and problem, half of them the likeliest")


def run(session: Session) -> int:
    """Tune; 1 where a candidate is wrong."""
    if session.args.replay:
        return replaying.run(session)
    session.goes_on = True
    plan = searching.plan_of(session)
    problems = searching.problems_of(session, plan)
    if session.args.t4:
        make_folder(session.args.t4)
    files = [file for _, file in tuned(session, problems, plan)]
    if session.args.t4:
        replaying.write_t4(session, files)
    if session.args.json:
        print_json([{"environment": f.environment, "rows": as_json(f.rows)} for f in files])
    else:
        for file in files:
            show(session, file)
    return WRONG if any(row.status == "wrong" for f in files for row in f.rows) else 0


def tuned(
    session: Session,
    problems: Sequence[Problem],
    plan: Plan | None = None,
    watch: Callable[[Any, Op], Any] | None = None,
) -> list[tuple[Op, ResultFile]]:
    """Tune each Op's kernels and return what its store then holds of these problems.

    watch: makes of an Op's progress one that sees every row come; both as `progress.Progress`
    """
    from ferrum_numba import results
    from ferrum_numba.measure import Policy
    from ferrum_numba.tune.held import Held
    from ferrum_numba.tune.repeat import repeats

    facts, tune = tuner(session)
    make_folder(session.store / facts.key)
    found = []
    held = Held()
    how = searching.how_to_search(session, facts, held)
    for op, kernels in by_op(plan.kernels if plan else session.kernels):
        wanted = [problem for problem in problems if isinstance(problem, op.problem)]
        path = session.store_path(facts.key, op.name)
        if not wanted:
            continue
        once = partial(
            tune, kernels, wanted, facts, policy=Policy(**TUNING), store_path=path,
            limit=session.args.limit, timeout_s=session.args.timeout, plan=plan, **how,
        )  # fmt: skip
        try:
            with progress(op.name) as shown:
                bar = watch(shown, op) if watch else shown
                rows = once(progress=bar)
                runs = [rows, *repeated(once, getattr(session.args, "repeat", 1) - 1, bar)]
        finally:
            session.rows_kept += len(results.load(path).rows) if path.exists() else 0
        searching.say_how_it_went(session, wanted, rows, held)
        if not path.exists():
            continue
        say_rows(len(rows), path)
        if len(runs) > 1:
            say(str(repeats(runs)))
        found.append((op, results.ResultFile(results.load(path).environment, rows)))
    return found


def repeated(once: Callable[..., list[Row]], count: int, bar: Progress) -> Iterator[list[Row]]:
    """Yield the rows of further finals of a tune, whose heats are known by now."""
    for _ in range(count):
        yield once(progress=bar, again=True)


def by_op(kernels: Sequence[Kernel]) -> list[tuple[Op, list[Kernel]]]:
    """Return every Op with its kernels."""
    ops = {kernel.op.name: kernel.op for kernel in kernels}
    return [(op, [k for k in kernels if k.op.name == name]) for name, op in ops.items()]


def show(session: Session, file: ResultFile) -> None:
    """Print the winner of every problem, and what could not be decided."""
    from ferrum_numba.results import winners

    rows = [in_short(row) for row in session.readable(map(_decided, winners(file.rows)))]
    environment = file.environment
    print_table(
        rows,
        COLUMNS,
        f"{environment['gpu']}, driver {environment['driver']}; of a config, what differs from the "
        "kernel's default for the problem",
        folded=("program", "verdict"),
    )
    report_trouble(file.rows)


def report_trouble(rows: Iterable[Row]) -> None:
    """Print a line for every candidate that went wrong."""
    for row in rows:
        if row.status in TROUBLE:
            about = f"{row.kernel} {in_words(row.problem)}, {in_words(row.config)}"
            print(f"{row.status}: {about}: {row.reason}")


def _decided(winner: Winner) -> dict[str, Any]:
    counts = ((len(winner.ties), "tied"), (len(winner.undecided), "undecided"))
    verdict = ", ".join(f"{count} {word}" for count, word in counts if count) or "fastest"
    return {**winner.row.to_json(), "verdict": verdict}


def in_short(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a readable row with its kernel and config as one, and its part of the bound."""
    program = f"{row['kernel']} {row['config']}".strip()
    timed = f"{row['fraction']:.0%}" if row["status"] == "measured" else row["status"]
    return {**row, "program": program, "of bound": timed}
