"""`ferrum-numba plan`: compile the space for a GPU that need not be there."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba.cli import options
from ferrum_numba.cli.kept import known_ceilings
from ferrum_numba.cli.names import default_of, in_words, unlike
from ferrum_numba.cli.output import make_folder, print_json, print_remarks, say
from ferrum_numba.cli.progress import progress
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tables import cell, print_table
from ferrum_numba.errors import ConfigError, ProblemError
from ferrum_numba.words import counted

if TYPE_CHECKING:
    from ferrum_numba.results import Planned

HELP = "compile the space for a GPU, which need not be there: registers, occupancy, code, bound"
NO_BUILD = 1
# decode, a batch, prefill: what a space looks like, without every M of a set
SOME_ROWS = (1, 16, 256)
COLUMNS = (
    "config", "registers", "spill_bytes", "stack_bytes", "fp64", "smem_bytes", "blocks_per_sm",
    "status", "reason",
)  # fmt: skip
# opcodes that have a column, and those of the tensor cores, which have one first
MOST_OPCODES = 7
TENSOR = frozenset(("HMMA", "IMMA", "QMMA", "HGMMA", "IGMMA", "QGMMA"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to plan, and for which GPU."""
    options.add_kernels(parser)
    options.add_problems(parser)
    options.add_gpu(parser)
    options.add_arch(parser, "compile for this architecture instead of the GPU's, such as sm_80")
    options.add_effort(parser, "configs a kernel and problem, half of them the likeliest")
    parser.add_argument(
        "--out", type=options.given, metavar="DIR",
        help="keep the programs there, for `tune --plan DIR`; all problems of a set then",
    )  # fmt: skip


def run(session: Session) -> int:
    """Print a row for each kernel, problem and config; 1 where one does not compile."""
    sources: list[str] = []
    rows = _into(session) if session.args.out else _bounded(session, _some(session), sources)
    if session.args.json:
        print_json([asdict(row) for row in rows])
    elif session.args.out:
        _print_kept(rows)
    else:
        _print(session, rows, sources)
    return NO_BUILD if any(row.status == "build failed" for row in rows) else 0


def _some(session: Session) -> list[Planned]:
    problems = session.problems(SOME_ROWS)
    session.say_chosen(problems)
    found = planned(session, problems, session.args.limit, counted=True)
    if not found:
        kernels = ", ".join(kernel.name for kernel in session.kernels)
        raise ProblemError(f"nothing to plan: {kernels} has no config for {session.gpu.name}")
    return found


def _bounded(session: Session, rows: Sequence[Planned], sources: list[str]) -> list[Planned]:
    """Return rows with the bound that `explain` and the report give their problems.

    sources: is told what the bounds are of, each once
    """
    from ferrum_numba.roofline.bound import bound_of

    ceilings, found = known_ceilings(session), []
    for row in rows:
        bound = bound_of((row.flops, row.bytes), row.problem, ceilings)
        if bound is not None:
            of = "measured ceilings" if bound.source == "measured" else "the datasheet's"
            sources += [of] if of not in sources else []
        found.append(row if bound is None else replace(row, bound_us=bound.us))
    return found


def _into(session: Session) -> list[Planned]:
    """Plan into a folder, and say what it holds."""
    from ferrum_numba.tune.expected import expected_s
    from ferrum_numba.tune.plan import plan_into
    from ferrum_numba.tune.planned import PROGRAMS, size_bytes

    args, facts = session.args, session.gpu
    if args.arch not in (None, facts.arch):
        raise ConfigError(
            f"a plan is for {facts.name}, which is {facts.arch}; name another GPU by --gpu "
            f"instead of --arch {args.arch}"
        )
    problems = session.problems()
    make_folder(args.out)
    session.kept, session.goes_on = "program", True
    try:
        with progress("plan") as bar:
            rows = plan_into(
                args.out, session.kernels, problems, facts, limit=args.limit, progress=bar
            )
    finally:
        session.rows_kept = len(list((Path(args.out) / PROGRAMS).glob("*.cubin")))
    size_mb = size_bytes(Path(args.out)) / 1e6
    minutes = [expected_s(rows, searcher) / 60 for searcher in ("auto", "model")]
    say(
        f"{args.out} holds the programs of {counted(len(problems), 'problem')}, {size_mb:.1f} MB; "
        f"`ferrum-numba tune --plan {args.out}` is expected to hold {facts.name} for "
        f"{minutes[0]:.1f} minutes, with `--searcher model` for {minutes[1]:.1f}"
    )
    return rows


def _print_kept(rows: Sequence[Planned]) -> None:
    """Print what of each kernel would be measured, and why the others are not."""
    counts = Counter((row.kernel, row.status) for row in rows)
    statuses = sorted({status for _, status in counts})
    table = [
        {"kernel": name, **{status: counts[name, status] for status in statuses}}
        for name in dict.fromkeys(row.kernel for row in rows)
    ]
    print_table(table, ("kernel", *statuses), "candidates")
    for row in rows:
        if row.status == "build failed":
            print(f"build failed: {row.kernel} {in_words(row.config)}: {row.reason}")


def _print(session: Session, rows: Sequence[Planned], sources: Iterable[str]) -> None:
    """Print a table for each kernel and problem, the programs' code, and what does not fit."""
    built = [row for row in rows if was_built(row)]
    if built:
        of = f"; bounds are of {' and '.join(sources)}" if sources else ""
        print(f"{session.gpu.name}, {session.gpu.source}{of}\n")
    shown = session.readable(map(asdict, built))
    for (kernel, problem), some in _grouped(shown, "kernel", "problem").items():
        bound = f"at least {cell(some[0]['bound_us'])} µs, modelled"
        # that all is well takes no column
        columns = [c for c in COLUMNS if c != "status" or {row[c] for row in some} != {"ok"}]
        print_table(some, columns, f"{kernel} on {problem}: {bound}")
    for kernel in dict.fromkeys(row.kernel for row in built):
        _print_instructions(session, [row for row in built if row.kernel == kernel])
    print_remarks((row.kernel, row.remarks) for row in built)
    apart = Counter((row.kernel, row.reason) for row in rows if not was_built(row))
    for (kernel, reason), count in apart.most_common():
        print(f"{count} of {kernel} do not fit: {reason}")
    for one in session.kernels:
        if not one.runs_on(session.gpu):
            print(f"{one.name} has no config for {session.gpu.name}")
    print(_verdict(built))


def _verdict(built: Sequence[Planned]) -> str:
    """Return how many candidates are worth measuring, of those that compiled."""
    good = sum(row.status == "ok" for row in built)
    failed = sum(row.status == "build failed" for row in built)
    if failed == len(built):
        return f"none of {counted(failed, 'candidate')} compiled" if built else "none was compiled"
    rest = f"; {failed} did not compile" if failed else ""
    return f"{good} of {len(built) - failed} compiled candidates are worth measuring{rest}"


def _print_instructions(session: Session, rows: Sequence[Planned]) -> None:
    """Print a line for each program of a kernel, where its instructions were counted."""
    usual = default_of(session.kernel(rows[0].kernel), rows[0].problem, session.gpu)
    mixes = {unlike(row.config, usual): row.sass for row in rows if row.sass}
    total: Counter[str] = Counter()
    for mix in mixes.values():
        total.update(mix)
    # the tensor cores' first, then what there is most of
    opcodes = sorted(total, key=lambda name: (name not in TENSOR, -total[name]))[:MOST_OPCODES]
    lines = [
        {"config": config, "all": sum(mix.values()), **{name: mix.get(name, 0) for name in opcodes}}
        for config, mix in mixes.items()
    ]
    if lines:
        print_table(
            lines, ("config", "all", *opcodes), f"{rows[0].kernel}: instructions in the code"
        )


def _grouped(
    rows: Sequence[dict[str, Any]], *names: str
) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def was_built(row: Planned) -> bool:
    """Tell whether a candidate went to the compiler; others were refused by their kernel."""
    return row.registers is not None or row.status == "build failed"


def planned(
    session: Session, problems: Sequence[Any], limit: int | None, *, counted: bool = False
) -> list[Planned]:
    """Return the plan's rows, with the instructions of each program where they are counted."""
    from ferrum_numba.tune import plan

    arch = session.args.arch
    with progress("plan") as bar:
        return plan(
            session.kernels, problems, session.gpu, arch, limit=limit, progress=bar,
            counted=counted,
        )  # fmt: skip
