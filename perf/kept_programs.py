"""Programs compiled on one machine and run on another: what tools that check a lot are begun with.

DIR/programs.json        which kernel and config has which program
DIR/programs/NAME.cubin  each program once
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path

from ferrum_numba.cli.progress import progress
from ferrum_numba.compile import Binary, build
from ferrum_numba.compile import cache as programs
from ferrum_numba.contract import Config, Kernel
from ferrum_numba.errors import FerrumError
from ferrum_numba.results.file import load_json, write_json
from ferrum_numba.tune.planned import PROGRAMS, build_into

SCHEMA, LIST = 1, "programs.json"


def compile_into(folder: Path, pairs: Iterable[tuple[Kernel, Config]], arch: str) -> int:
    """Compile what these need into a folder; return how many programs that are.

    Raises:
        FerrumError: one does not compile, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(dict.fromkeys(pairs))
    with progress("programs") as bar:
        built, names = build_into(folder / PROGRAMS, wanted, arch, bar)
    for (name, config), outcome in built.items():
        if not isinstance(outcome, Binary):
            raise FerrumError(f"{name} {config} does not compile: {outcome}")
    listed = {_about(kernel, config): names[kernel.name, config] for kernel, config in wanted}
    write_json(folder / LIST, {"schema": SCHEMA, "programs": listed}, "rows", [])
    return len(set(listed.values()))


@cache
def program(folder: str, kernel: Kernel, config: Config, arch: str) -> Binary:
    """Return a program: of a folder, or compiled where that is empty text.

    Raises:
        FerrumError: the folder has it not, or it is damaged.
    """
    if not folder:
        return build(kernel, config, arch)
    name = _listed(folder).get(_about(kernel, config))
    if name is None:
        raise FerrumError(f"{folder} has no program of {kernel.name} {config}")
    found = programs.read(Path(folder) / PROGRAMS, name)
    if found is None:
        raise FerrumError(f"{folder}/{PROGRAMS}/{name}.cubin is missing or damaged")
    return found


@cache
def _listed(folder: str) -> dict[str, str]:
    path = Path(folder) / LIST
    if not path.is_file():
        raise FerrumError(f"{folder} is no folder of programs: no {LIST}")
    found: dict[str, str] = load_json(path, SCHEMA)["programs"]
    return found


def _about(kernel: Kernel, config: Config) -> str:
    return json.dumps([kernel.name, asdict(config)], sort_keys=True)
