"""`ferrum-numba explain`: what a config is: launch, shared memory, lanes, code, bound."""

from __future__ import annotations

import argparse
from pathlib import Path

from ferrum_numba.cli import names, options
from ferrum_numba.cli.kept import known_ceilings
from ferrum_numba.cli.output import print_json, writing
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.tables import table_width
from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.errors import ConfigError, ProblemError

HELP = "a config: launch, shared memory, which lane holds what, instructions, what binds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to explain, and for which GPU."""
    options.add_kernels(parser)
    options.add_problems(parser)
    parser.add_argument(
        "--config", type=options.given, metavar="FIELDS",
        help="the default config with fields changed: tile_m=16,cluster=1",
    )  # fmt: skip
    options.add_gpu(parser)
    options.add_arch(parser, "compile for this architecture instead of the GPU's, such as sm_80")
    parser.add_argument("--svg", type=options.given, metavar="FILE", help="draw it as a picture")


def run(session: Session) -> int:
    """Print the explanation, or write its picture too."""
    from ferrum_numba.explain import explain

    args = session.args
    if len(args.kernel) != 1:
        raise ConfigError(
            f"explain is of one kernel, such as `explain decode`; got {len(args.kernel)}: "
            f"known are {', '.join(kernel.name for kernel in session.kernels)}"
        )
    (kernel,) = session.kernels
    problem = _problem(session, kernel)
    found = explain(
        kernel, problem, _config(session, kernel, problem), gpu=session.gpu, arch=args.arch,
        ceilings=known_ceilings(session),
    )  # fmt: skip
    if args.svg:
        from ferrum_numba.whole import write_bytes

        with writing(args.svg):
            write_bytes(Path(args.svg), found.svg().encode())
    session.say_chosen([problem])
    if args.json:
        print_json(found.to_json())
    else:
        print(found.text(table_width()), end="")
    return 0


def _problem(session: Session, kernel: Kernel) -> Problem:
    """Return the first problem that the kernel runs, of those that were named or of the usual."""
    problems = [p for p in session.problems() if isinstance(p, kernel.op.problem)]
    return next(p for p in problems if kernel.refuses(p) is None)


def _config(session: Session, kernel: Kernel, problem: Problem) -> Config | None:
    text = session.args.config
    if not text:
        return None
    if "=" not in text:
        raise ConfigError(f"--config takes fields with values, such as num_warps=8; got {text!r}")
    if not kernel.runs_on(session.gpu):
        raise ProblemError(f"{kernel.name} has no config for {session.gpu.name}")
    return names.changed(kernel.default(problem, session.gpu), text)
