"""`ferrum-numba new`: a package of one's own, with a kernel that passes its check already."""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

from ferrum_numba import starter, whole
from ferrum_numba.cli import names, options
from ferrum_numba.cli.output import print_json, writing
from ferrum_numba.cli.session import Session
from ferrum_numba.contract import Kernel

HELP = "a package of your own here: a reference, a kernel, a list and a test that pass already"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its name, and what it begins as."""
    parser.add_argument("name", metavar="NAME", help="of the package and of its kernel: my_op")
    parser.add_argument(
        "--like", type=options.given, metavar="KERNEL",
        help="begin as a copy of this design, such as decode",
    )  # fmt: skip


def run(session: Session) -> int:
    """Write the package and print its files and what to do next."""
    named, name, there = "", session.args.name, (*session.handed_in, *session.tools)
    starter.refuse_name(name, {kernel.name for kernel in there}, Path.cwd())
    if session.args.like:
        (kernel,) = names.select_kernels(there, [session.args.like])
        files, named = starter.like(kernel, name), _usual(session, kernel)
    else:
        files = starter.fresh(name)
    session.whole = True
    target = Path.cwd() / name
    with writing(name), whole.folder_beside(target) as folder:
        for file, text in files.items():
            (folder / file).write_text(text)
        # a folder that somebody made in the meantime, and that holds something, stays
        folder.rename(target)
    _print(session, name, [f"{name}/{file}" for file in files], named)
    return 0


def _usual(session: Session, kernel: Kernel) -> str:
    """Return, for `--problem`, the first of the problem sets that a design runs, or its largest."""
    several = chain.from_iterable(session.problem_sets.values())
    own = [p for p in several if isinstance(p, kernel.op.problem) and kernel.refuses(p) is None]
    tests = [p for p in kernel.op.tests if kernel.refuses(p) is None]
    return names.option(own[0] if own else max(tests, key=lambda p: kernel.op.work(p).bytes))


def _print(session: Session, name: str, files: list[str], named: str) -> None:
    own = f"{name} --kernels {name}.kernels"
    # a copied design has the problems of its Op
    sizes = f" --problem {named or 'M=4096,N=4096'}"
    then = [
        f"ferrum-numba check {own}",
        f"ferrum-numba plan {own} --gpu h200{sizes}",
        f"ferrum-numba explain {own}{sizes}",
        f"python -m pytest {name}",
    ]
    if session.args.json:
        print_json({"files": files, "next": then})
    else:
        print("\n".join([*files, "", "then:", *(f"    {line}" for line in then)]))
