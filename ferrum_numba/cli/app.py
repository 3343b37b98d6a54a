"""The entry point: the parser of all commands, and what an error or Ctrl-C becomes."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from ferrum_numba import __version__, whole
from ferrum_numba.cli import (
    bench,
    check,
    compare,
    convert,
    decisions,
    doctor,
    explain,
    export,
    inspect,
    listing,
    new,
    plan,
    quantize,
    report,
    tune,
    warm,
    why_miss,
)
from ferrum_numba.cli.names import nearest
from ferrum_numba.cli.output import printing, say
from ferrum_numba.cli.progress import begin
from ferrum_numba.cli.session import Session
from ferrum_numba.cli.stopping import as_interrupt
from ferrum_numba.contract import Kernel, Problem
from ferrum_numba.errors import FerrumError, StoreError
from ferrum_numba.words import counted

# where compiled programs are looked for
FOLDERS = ("FERRUM_NUMBA_CACHE_DIR", "FERRUM_NUMBA_PROGRAMS_DIR")
COMMANDS = {
    "doctor": doctor,
    "list": listing,
    "new": new,
    "check": check,
    "plan": plan,
    "explain": explain,
    "tune": tune,
    "why-miss": why_miss,
    "decisions": decisions,
    "bench": bench,
    "compare": compare,
    "report": report,
    "inspect": inspect,
    "quantize": quantize,
    "convert": convert,
    "export": export,
    "warm": warm,
}
# of the extra `compile`, which an installation that only runs has not
OPTIONAL = ("numba", "llvmlite", "greenlet", "matplotlib")
MISTAKE = 2
# of a disk, a quota, a file
FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
INTERRUPTED = 130


def main(
    kernels: Sequence[Kernel],
    problem_sets: Mapping[str, Sequence[Problem]],
    argv: Sequence[str] | None = None,
    ceilings: Sequence[Kernel] = (),
    recorded: Path | None = None,
    peers: Sequence[Mapping[str, Any]] = (),
    *,
    tools: Sequence[Kernel] = (),
) -> int:
    """Run a command and return its exit status.

    Args:
        kernels:      that every command works on
        problem_sets: problems by the name that `--problem` takes
        argv:         the command line, without the program
        ceilings:     kernels that measure what a GPU can do at most
        recorded:     folder of results that ship with the kernels, <gpu>/<op>.json
        peers:        tables of others' times, as `report.Sources` describes them
        tools:        kernels that a command works on only where they are named

    Returns:
        0: done. 1: a check failed, or something got slower. 2: a mistake, or what is asked for is
        not there. 130: Ctrl-C or SIGTERM.
    """
    try:
        with printing():
            return _main(kernels, problem_sets, argv, ceilings, recorded, peers, tools)
    except StoreError as error:
        say(f"ferrum-numba: {error}")
        return MISTAKE
    except BrokenPipeError:
        # the reader has enough
        return 0


def _main(
    kernels: Sequence[Kernel],
    problem_sets: Mapping[str, Sequence[Problem]],
    argv: Sequence[str] | None,
    ceilings: Sequence[Kernel],
    recorded: Path | None,
    peers: Sequence[Mapping[str, Any]],
    tools: Sequence[Kernel],
) -> int:
    args = parser().parse_args(argv)
    begin()
    session = Session(
        args, tuple(kernels), problem_sets, tuple(ceilings), recorded, peers, tuple(tools)
    )
    try:
        with as_interrupt(), _cache(args.no_cache), warnings_said(), session.open:
            status: int = COMMANDS[args.command].run(session)
            sys.stdout.flush()
    except FerrumError as error:
        # what was printed until then comes first
        with suppress(StoreError, BrokenPipeError):
            sys.stdout.flush()
        say(f"ferrum-numba: {error}")
        return MISTAKE
    except OSError as error:
        # whatever was written, temporary files too
        if error.errno not in FULL:
            raise
        say(f"ferrum-numba: no more files can be written: {error.strerror}")
        return MISTAKE
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL:
            raise
        say(
            f"ferrum-numba: {args.command} needs {package}, which is not installed; "
            "pip install 'ferrum-numba[compile]'"
        )
        return MISTAKE
    except KeyboardInterrupt as error:
        session.stop(error)
    if session.stopped:
        what = counted(session.rows_kept, session.kept)
        what = "nothing half-written is" if session.whole else what
        again = shlex.join(("ferrum-numba", *(sys.argv[1:] if argv is None else argv)))
        on = f"; to go on: {again}" if session.goes_on else ""
        at = f" at {session.stopped_at}" if session.stopped_at else ""
        rest = f", {session.to_come} to come" if session.to_come else ""
        say(f"ferrum-numba: stopped{at}; {what} kept{rest}{on}")
        return INTERRUPTED
    return status


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one sentence, as all others are."""

    def error(self, message: str) -> NoReturn:
        """Exit without the usage, under which the sentence would be lost."""
        found = re.match(r"argument COMMAND: invalid choice: '([^']*)'", message)
        if found:
            message = f"no command is named {found[1]}; {nearest(found[1], COMMANDS)}"
        self.exit(MISTAKE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    found = _Parser(
        prog="ferrum-numba", description="Prove, tune and measure GPU kernels written in Python."
    )
    found.add_argument("--version", action="version", version=f"ferrum-numba {__version__}")
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        command.add_argument("--json", action="store_true", help="machine-readable, on stdout")
        command.set_defaults(kernel=[], kernels=None, store=None, no_cache=False)
        module.add_arguments(command)
    return found


@contextmanager
def warnings_said() -> Iterator[None]:
    """Say a warning in a line as errors are said; where in the code it came up tells nobody."""

    def line(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"ferrum-numba: warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = line
        yield


@contextmanager
def _cache(off: bool) -> Iterator[None]:
    """Compile into an empty cache of this call's own, which worker processes inherit.

    What ships with the package is not used either.
    """
    if not off:
        yield
        return
    from ferrum_numba.tune import exclusive

    before = {name: os.environ.get(name) for name in (*FOLDERS, exclusive.ENVIRONMENT_VARIABLE)}
    # who measures on a GPU is asked in the usual place: others look there too
    os.environ[exclusive.ENVIRONMENT_VARIABLE] = str(exclusive.directory())
    with whole.scratch() as folder:
        os.environ |= dict.fromkeys(FOLDERS, str(folder))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
