"""`ferrum-numba bench`: time the tuned config of each kernel, without a search."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum_numba import gpu, whole
from ferrum_numba.cli import options
from ferrum_numba.cli.ceilings import SUSTAINED_S, measured_ceilings, show_ceilings
from ferrum_numba.cli.counters import counted, find_ncu, show_counters
from ferrum_numba.cli.output import as_json, make_folder, print_json, say_rows, writing
from ferrum_numba.cli.progress import progress
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tables import print_table
from ferrum_numba.cli.tune import WRONG, by_op, in_short, report_trouble
from ferrum_numba.contract import Config, Inputs, Kernel, Launch, Problem, Program
from ferrum_numba.errors import StoreError

if TYPE_CHECKING:
    from ferrum_numba.gpu import Gpu
    from ferrum_numba.results import ResultFile

HELP = "time the tuned config of each kernel (its default where it was not tuned), without a search"
# `of bound` is bound_us / us; all else that is known of a row is in the file
COLUMNS = ("problem", "program", "regime", "us", "gbps", "tflops", "of bound")
# as `measure.REGIMES`, which would load the CUDA packages
REGIMES = ("cold", "warm", "eager")


class Chosen(Kernel):
    """A kernel whose space is one config a problem: what was decided for it."""

    def __init__(self, kernel: Kernel, chosen: Mapping[Problem, Config]) -> None:
        self.kernel, self.chosen = kernel, chosen
        self.name, self.op, self.config = kernel.name, kernel.op, kernel.config
        self.summary = kernel.summary

    @property
    def made_by(self) -> Kernel:
        """The kernel itself."""
        return self.kernel

    def configs(self, gpu: Gpu) -> Sequence[Config]:
        """Return what was chosen, for whatever problem."""
        return list(dict.fromkeys(self.chosen.values()))

    def refuses(self, problem: Problem) -> str | None:
        """Return why the kernel cannot run the problem."""
        return self.kernel.refuses(problem)

    def misfit(self, config: Config, problem: Problem, gpu: Gpu) -> str | None:
        """Refuse what was chosen for another problem."""
        if config != self.chosen.get(problem):
            return "it was not chosen for this problem"
        return self.kernel.misfit(config, problem, gpu)

    def build(self, config: Config, arch: str) -> Program:
        """Return the kernel's program."""
        return self.kernel.build(config, arch)

    def prepare(self, problem: Problem, inputs: Inputs) -> dict[str, Any]:
        """Return the kernel's operands."""
        return self.kernel.prepare(problem, inputs)

    def launch(self, config: Config, problem: Problem, gpu: Gpu) -> Launch:
        """Return the kernel's launch."""
        return self.kernel.launch(config, problem, gpu)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to time, and how."""
    options.add_kernels(parser)
    options.add_problems(parser)
    options.add_store(parser)
    parser.add_argument(
        "--regime", action="append", choices=REGIMES, metavar="|".join(REGIMES),
        help="may be given again; cold by default",
    )  # fmt: skip
    parser.add_argument("--ceilings", action="store_true", help="what this GPU can do at most")
    parser.add_argument(
        "--sustained", type=options.some_seconds, default=SUSTAINED_S, metavar="S",
        help="of each ceiling, seconds at its limit, as a hot board is another board; 0: none",
    )  # fmt: skip
    parser.add_argument(
        "--counters", action="store_true",
        help="bytes, hits, issue slots and stalls besides, by Nsight Compute (ncu)",
    )  # fmt: skip
    parser.add_argument("--out", type=options.given, metavar="FILE", help="write a result file too")
    options.add_timeout(parser)
    parser.add_argument("--no-cache", action="store_true", help="compile everything anew")


def run(session: Session) -> int:
    """Time and print; 1 where a kernel is wrong."""
    args = session.args
    problems = [] if args.ceilings else session.problems()
    if args.out:
        _make_place(Path(args.out))
    if args.counters:
        find_ncu()
    if args.ceilings:
        file = ceilings(session, args.sustained)
    else:
        file = timed(session, _chosen(session, gpu.live(), problems), problems, args.regime)
    if args.counters:
        file.rows = counted(session, file.rows)
    if args.out:
        from ferrum_numba import results

        with writing(args.out):
            results.save(args.out, file)
        session.rows_kept = len(file.rows)
        say_rows(len(file.rows), args.out)
    if args.json:
        print_json({"environment": file.environment, "rows": as_json(file.rows)})
    else:
        environment = file.environment
        title = f"{environment['gpu']}, driver {environment['driver']}"
        if args.ceilings:
            show_ceilings(session, file.rows, title)
        else:
            rows = [in_short(row) for row in session.readable(as_json(file.rows))]
            print_table(rows, COLUMNS, title, folded=("program",))
        show_counters(file.rows)
        report_trouble(file.rows)
    return WRONG if any(row.status == "wrong" for row in file.rows) else 0


def _make_place(path: Path) -> None:
    if path.is_dir():
        raise StoreError(f"{path} cannot be written: it is a folder")
    make_folder(path.parent)


def ceilings(session: Session, sustained_s: float = 0.0) -> ResultFile:
    """Time the ceiling kernels' whole spaces: a ceiling is the best of them."""
    return measured_ceilings(session, timed, sustained_s)


def timed(
    session: Session,
    kernels: Sequence[Kernel],
    problems: Sequence[Problem],
    regimes: Sequence[str] | None = None,
) -> ResultFile:
    """Time kernels afresh in each regime; nothing of the store is used or changed."""
    from ferrum_numba import results

    files: list[ResultFile] = []
    with whole.scratch() as folder:
        for regime in dict.fromkeys(regimes or REGIMES[:1]):
            for op, of_op in by_op(kernels):
                wanted = [problem for problem in problems if isinstance(problem, op.problem)]
                if wanted:
                    path = folder / f"{op.name}-{regime}.json"
                    _time(session, of_op, wanted, regime, path)
                    files.append(results.load(path))
    return reduce(results.merge, files)


def _time(
    session: Session,
    kernels: Sequence[Kernel],
    problems: Sequence[Problem],
    regime: str,
    path: Path,
) -> None:
    from ferrum_numba.measure import Policy
    from ferrum_numba.tune import tune

    with progress(f"{kernels[0].op.name}, {regime}") as bar:
        tune(
            kernels, problems, gpu.live(), policy=Policy(), store_path=path, regime=regime,
            timeout_s=session.args.timeout, progress=bar,
        )  # fmt: skip


def _chosen(session: Session, facts: Gpu, problems: Sequence[Problem]) -> list[Kernel]:
    from ferrum_numba.results import choose, decide

    decisions = decide(row for file in session.measured(facts.key) for row in file.rows)
    found: list[Kernel] = []
    for kernel in session.runnable():
        if not kernel.runs_on(facts):
            continue
        chosen = {
            problem: choose(decisions, problem, [kernel], facts).config
            for problem in problems
            if isinstance(problem, kernel.op.problem) and kernel.refuses(problem) is None
        }
        found.append(Chosen(kernel, chosen))
    return found
