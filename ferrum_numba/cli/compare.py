"""`ferrum-numba compare`: whether something got slower, of files, designs or revisions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ferrum_numba import gpu
from ferrum_numba.cli import counters, names, options
from ferrum_numba.cli.arrows import draw
from ferrum_numba.cli.output import print_json, say, writing
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.verdicts import show, told
from ferrum_numba.contract import Config, Kernel, Op, Problem
from ferrum_numba.errors import ConfigError, ProblemError, StoreError
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.compare.designs import Design
    from ferrum_numba.compare.live import Trial
    from ferrum_numba.gpu import Gpu
    from ferrum_numba.results import Row
    from ferrum_numba.results.pairs import Pair

HELP = "old against new, problem by problem: two result files, designs, configs or revisions"
SLOWER = 1
Kind = Literal["file", "design", "revision"]
Compare = Callable[[Session, "Gpu", str], "Iterable[Trial]"]
DEFAULT = "default"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two, and what to compare them on."""
    forms = "FILE | KERNEL[:default|:field=value,…] | REVISION ('.': the tree as it is)"
    for name in ("old", "new"):
        parser.add_argument(name, metavar=name.upper(), type=options.given, help=forms)
    options.add_problems(parser)
    parser.add_argument("--kernels", type=options.given, metavar="MODULE", help="adds your own")
    parser.add_argument(
        "--kernel", type=options.given, metavar="NAME", dest="only",
        help="of files and revisions: this one alone",
    )  # fmt: skip
    parser.add_argument(
        "--each-kernel", action="store_true", help="of files: every kernel, not the winners alone"
    )
    options.add_store(parser)
    parser.add_argument(
        "--counters", action="store_true",
        help="of kernels: what Nsight Compute (ncu) counts of both, too; files have it or not",
    )  # fmt: skip
    parser.add_argument(
        "--roofline", type=options.given, metavar="FILE.svg",
        help="draw arrows from the old to the new under the ceilings",
    )  # fmt: skip
    parser.add_argument("--out", type=options.given, metavar="FILE", help="write the rows, too")
    options.add_timeout(parser)


def run(session: Session) -> int:
    """Print a line a problem; 1 where something got slower."""
    args = session.args
    kind = _kind_of_both(session)
    if args.counters and kind != "design":
        raise ConfigError(f"--counters is for kernels, and {args.old} is a {kind}")
    if kind == "file":
        pairs, lines = _files(session)
    else:
        pairs, lines = _live(session, _designs if kind == "design" else _revisions)
    if args.roofline:
        draw(session, pairs)
    slower = [pair for pair in pairs if pair.verdict.name == "SLOWER"]
    if args.json:
        print_json({"old": args.old, "new": args.new, "slower": len(slower), "pairs": lines})
    else:
        show(pairs, lines, {kernel.op.name: kernel.op.problem for kernel in _kernels(session)})
    return SLOWER if slower else 0


def _kind_of_both(session: Session) -> Kind:
    old, new = (_kind(session, text) for text in (session.args.old, session.args.new))
    if old != new:
        args = session.args
        raise ConfigError(
            f"two of a kind are compared: {args.old} is a {old}, and {args.new} a {new}"
        )
    return old


def _kind(session: Session, text: str) -> Kind:
    if text.endswith(".json") or Path(text).is_file():
        return "file"
    known = {kernel.name for kernel in _kernels(session)}
    if text.partition(":")[0] in known:
        return "design"
    from ferrum_numba.compare.revisions import find_revision

    if find_revision(text) is not None:
        return "revision"
    raise ConfigError(
        f"{text} is no result file, no kernel and no revision; {names.nearest(text, known)}"
    )


def _kernels(session: Session) -> tuple[Kernel, ...]:
    """Return all kernels that may be named: tools and ceilings too."""
    return (*session.kernels, *session.tools, *session.ceilings)


def _files(session: Session) -> tuple[list[Pair], list[dict[str, Any]]]:
    from ferrum_numba.compare import deltas, of_row
    from ferrum_numba.results.pairs import load_measured, pair_files

    args = session.args
    for name in ("problem", "m", "out"):
        if getattr(args, name):
            raise ConfigError(f"--{name} has no meaning for files: they have what was measured")
    old, new = (load_measured(path) for path in (args.old, args.new))
    if args.only:
        for path, file in ((args.old, old), (args.new, new)):
            known = {row.kernel for row in file.rows}
            if args.only not in known:
                nearest = names.nearest(args.only, known)
                raise StoreError(f"{path}: has no kernel {args.only}; {nearest}")
            file.rows = [row for row in file.rows if row.kernel == args.only]
    found = pair_files(old, new, "kernel" if args.each_kernel else "problem")
    for count, path in ((found.only_old, args.old), (found.only_new, args.new)):
        if count:
            say(f"{counted(count, 'problem')} of {path} alone: not compared")
    lines = []
    for pair in found.pairs:
        both = pair.old is not None and pair.new is not None
        change = deltas(*(of_row(row) for row in (pair.old, pair.new) if row)) if both else {}
        lines.append(told(pair, change | _counted(pair)))
    return found.pairs, lines


def _counted(pair: Pair) -> dict[str, Any]:
    from ferrum_numba.compare import counter_deltas

    change = counter_deltas(pair.old, pair.new) if pair.old and pair.new else {}
    return {"counters": change} if change else {}


def _with_counters(session: Session, trials: Sequence[Trial]) -> list[Trial]:
    """Return trials whose rows have what ncu counts of them."""
    rows = [row for trial in trials for row in (trial.pair.old, trial.pair.new) if row is not None]
    found = dict(zip(map(id, rows), counters.counted(session, rows), strict=True))
    return [
        replace(trial, pair=replace(
            trial.pair, old=found.get(id(trial.pair.old)), new=found.get(id(trial.pair.new)),
        ))
        for trial in trials
    ]  # fmt: skip


def _live(session: Session, compare: Compare) -> tuple[list[Pair], list[dict[str, Any]]]:
    """Compare on the GPU; what was decided is kept where Ctrl-C ends it."""
    from ferrum_numba import results
    from ferrum_numba.compare import deltas
    from ferrum_numba.measure import Policy

    if session.args.counters:
        counters.find_ncu()
    facts = gpu.live()
    environment = results.environment(facts, Policy(), sys.argv)
    trials: list[Trial] = []
    session.keep(compare(session, facts, environment["date"]), trials.append)
    if session.args.counters:
        trials = _with_counters(session, trials)
    if session.args.out:
        _write(session, environment, trials)
    pairs = [trial.pair for trial in trials]
    return pairs, [told(one.pair, deltas(*one.built) | _counted(one.pair)) for one in trials]


def _designs(session: Session, facts: Gpu, run: str) -> Iterable[Trial]:
    args = session.args
    if args.only or args.each_kernel:
        raise ConfigError("--kernel and --each-kernel have no meaning where kernels are compared")
    from ferrum_numba.compare.designs import compare_designs
    from ferrum_numba.measure import Policy

    old, new = (_design(session, text, facts) for text in (args.old, args.new))
    if old.kernel.op is not new.kernel.op:
        raise ConfigError(
            f"{old.kernel.name} computes {old.kernel.op.name}, and {new.kernel.name} "
            f"{new.kernel.op.name}: what computes one Op is compared"
        )
    problems = _problems(session, [old.kernel, new.kernel])
    return compare_designs(old, new, problems, facts, Policy(), run, args.timeout)


def _design(session: Session, text: str, facts: Gpu) -> Design:
    """Return the kernel of `marlin:num_warps=8`, with what it runs a problem with."""
    from ferrum_numba.compare.designs import Design
    from ferrum_numba.results import choose, decide

    name, _, change = text.partition(":")
    (kernel,) = names.select_kernels(session.kernels, [name], (*session.tools, *session.ceilings))
    files = [] if change == DEFAULT else session.measured(facts.key)
    decisions = decide(row for file in files for row in file.rows)

    def config_of(problem: Problem) -> Config:
        config = choose(decisions, problem, [kernel], facts).config
        if change in ("", DEFAULT):
            return config
        return kernel.specialise(names.changed(config, change), problem)

    return Design(kernel, config_of)


def _problems(session: Session, kernels: Sequence[Kernel]) -> list[Problem]:
    """Return the problems that none of these kernels refuses; says which are left out."""
    kind = kernels[0].op.problem
    if not session.args.problem and not any(
        isinstance(problem, kind) for some in session.problem_sets.values() for problem in some
    ):
        found: list[Problem] = list(kernels[0].op.tests)
    else:
        found = [problem for problem in session.problems() if isinstance(problem, kind)]
    refused: list[str] = []
    left = []
    for problem in found:
        reasons = [reason for kernel in kernels if (reason := kernel.refuses(problem))]
        refused += reasons
        left += [] if reasons else [problem]
    if not left:
        raise ProblemError(
            "; ".join(dict.fromkeys(refused)) or f"no problem is one of {kernels[0].op.name}"
        )
    if len(left) < len(found):
        say(f"{counted(len(found) - len(left), 'problem')} left out: {refused[0]}")
    return left


def _revisions(session: Session, facts: Gpu, run: str) -> Iterable[Trial]:
    args = session.args
    if args.each_kernel:
        raise ConfigError("--each-kernel is for files; name a kernel with --kernel")
    from ferrum_numba.compare.revisions import compare_revisions, find_revision
    from ferrum_numba.measure import Policy

    revisions = [str(find_revision(text)) for text in (args.old, args.new)]
    named = names.select_kernels(session.kernels, [args.only], session.tools) if args.only else ()
    kernels = list(named or session.kernels)
    ops: dict[Any, Op] = {kernel.op.problem: kernel.op for kernel in kernels}
    problems = [
        (op, problem)
        for problem in (_problems(session, kernels) if named else session.problems())
        for kind, op in ops.items()
        if isinstance(problem, kind)
    ]
    return compare_revisions(revisions, problems, facts, Policy(), run, args.only or "")


def _write(session: Session, environment: dict[str, Any], trials: Sequence[Trial]) -> None:
    """Write the rows of both; of one kernel with one config the new one's."""
    from ferrum_numba import results

    rows: list[Row] = [row for t in trials for row in (t.pair.old, t.pair.new) if row is not None]
    path = session.args.out
    with writing(path):
        results.save(path, results.ResultFile(environment, results.merge_rows([], rows)))
    session.rows_kept = len(rows)
