"""`ferrum-numba new`: a package of one's own, with a kernel that passes its check already."""

from __future__ import annotations

import argparse
from pathlib import Path

from ferrum_numba import starter, whole
from ferrum_numba.cli import names, options
from ferrum_numba.cli.output import print_json, writing
from ferrum_numba.cli.session import Session

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
    name, there = session.args.name, (*session.handed_in, *session.tools)
    starter.refuse_name(name, {kernel.name for kernel in there}, Path.cwd())
    if session.args.like:
        (kernel,) = names.select_kernels(there, [session.args.like])
        files = starter.like(kernel, name)
    else:
        files = starter.fresh(name)
    session.whole = True
    target = Path.cwd() / name
    with writing(name), whole.folder_beside(target) as folder:
        for file, text in files.items():
            (folder / file).write_text(text)
        # a folder that somebody made in the meantime, and that holds something, stays
        folder.rename(target)
    _print(session, name, [f"{name}/{file}" for file in files])
    return 0


def _print(session: Session, name: str, files: list[str]) -> None:
    own = f"{name} --kernels {name}.kernels"
    # a copied design has the problems of its Op
    sizes = "" if session.args.like else " --problem M=4096,N=4096"
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
