"""Whether a change of how kernels are written changed what they are: their PTX, before and after.

    python -m ferrum_numba.perf.ptx_guard write before     at the one commit
    python -m ferrum_numba.perf.ptx_guard write after      at the other
    python -m ferrum_numba.perf.ptx_guard compare before after

`write` compiles the programs that every kernel runs by default, for sm_80, sm_90a and sm_120a, from
few rows to many and for every kind of weight, and writes one file each; no GPU and no driver are
needed. `compare` names the files of `after` that differ, with the first line that does, and exits
with 1 if any does; with `--sass` it says besides what became of the machine code, which is the same
where only the text of an instruction was written otherwise.

Symbols are numbered in the order in which they stand (see `compile.build`), so moved or renamed
Python gives the same bytes as long as the compiler makes the same code of it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, replace
from functools import partial
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ferrum_numba.compile.compiler import compile_ptx, entry_name
from ferrum_numba.compile.link import link
from ferrum_numba.compile.sass import disassembly, instruction_mix, nvdisasm
from ferrum_numba.contract import Config, Kernel, Problem
from ferrum_numba.gpu import Gpu, find
from ferrum_numba.kernels import KERNELS, MOE, TOOLS
from ferrum_numba.kernels.ceilings import CEILINGS
from ferrum_numba.kernels.w4a16 import OP, W4A16Problem

GPUS = ("a100", "h200", "rtx5090")
SHAPES = ((4096, 4096), (8192, 28672))
ROWS = (1, 16, 32, 64, 96, 128, 512, 4096)
# of one weight, with few rows and with more
KINDS: tuple[dict[str, Any], ...] = (
    {"group_size": -1},
    {"group_size": 64, "zero_points": "gptq"},
    {"group_size": 32, "dtype": "bf16"},
    {"zero_points": "gptq_v2", "dtype": "bf16", "bias": True},
)
KIND_ROWS = (1, 16, 64, 256)
# file name, kernel, config, architecture
Named = tuple[str, Kernel, Config, str]


def problems() -> Iterator[W4A16Problem]:
    """Return the GEMMs whose default programs are compared."""
    for K, N in SHAPES:
        for M in ROWS:
            yield W4A16Problem(M, N, K)
    for kind in KINDS:
        for M in KIND_ROWS:
            yield replace(W4A16Problem(M, 4096, 4096), **kind)


def programs(names: Sequence[str] = (), space: bool = False) -> Iterator[Named]:
    """Return (file name, kernel, config, architecture), every program once.

    names: of the kernels wanted; all of them by default
    space: every config that fits a problem instead of the default
    """
    kernels: tuple[Kernel, ...] = (*KERNELS, *TOOLS, *MOE, *CEILINGS)
    for gpu in map(find, GPUS):
        for kernel in kernels:
            if (names and kernel.name not in names) or not kernel.runs_on(gpu):
                continue
            seen = set()
            for problem in problems() if kernel.op is OP else kernel.op.tests:
                if kernel.refuses(problem):
                    continue
                for i, config in enumerate(_configs(kernel, problem, gpu, space)):
                    if config not in seen:
                        seen.add(config)
                        sizes = "-".join(str(value) for value in astuple(problem))
                        name = f"{entry_name(kernel.name)}-{gpu.arch}-{sizes}-{i}.ptx"
                        yield name, kernel, config, gpu.arch


def _configs(kernel: Kernel, problem: Problem, gpu: Gpu, space: bool) -> list[Config]:
    if not space:
        return [kernel.default(problem, gpu)]
    return list(kernel.fitting(problem, gpu))


def write(folder: Path, names: Sequence[str] = (), space: bool = False) -> int:
    """Write the PTX of every program to a folder, and return how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = list(programs(names, space))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for name in pool.map(partial(_write, folder), todo):
            print(name, flush=True)
    return len(todo)


def _write(folder: Path, program: Named) -> str:
    name, kernel, config, arch = program
    ptx = compile_ptx(kernel.build(config, arch), arch, entry_name(kernel.name))
    (folder / name).write_text(ptx)
    return name


def differences(before: Path, after: Path, sass: bool = False) -> list[str]:
    """Return a sentence for every file of `after` that `before` lacks or that differs there."""
    pairs = [(before / path.name, path) for path in sorted(after.glob("*.ptx"))]
    differing = [pair for pair in pairs if not pair[0].exists() or _differ(*pair)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return list(pool.map(partial(_difference, sass), differing))


def _differ(before: Path, after: Path) -> bool:
    return before.read_bytes() != after.read_bytes()


def _difference(sass: bool, paths: tuple[Path, Path]) -> str:
    before, after = paths
    if not before.exists():
        return f"{after.name}: not in {before.parent}"
    texts = before.read_text(), after.read_text()
    if sass:
        return f"{after.name}: {_machine_code(*texts)}"
    lines = enumerate(zip_longest(*(text.splitlines() for text in texts), fillvalue=""), 1)
    number, pair = next((i, pair) for i, pair in lines if pair[0] != pair[1])
    return f"{after.name}: line {number} was {pair[0].strip()!r}, is {pair[1].strip()!r}"


def _machine_code(before: str, after: str) -> str:
    """Return what became of the machine code that two texts of PTX are linked to."""
    linked, code = [], []
    for ptx in (before, after):
        target, entry = re.search(r"\.target (\w+)", ptx), re.search(r"\.entry (\w+)", ptx)
        assert target is not None, "PTX has a target"
        assert entry is not None, "a kernel's PTX has an entry"
        linked.append(link(ptx, entry[1], target[1]))
        code.append(disassembly(linked[-1].cubin))
    if code[0] is not None and code[0] == code[1]:
        return "same machine code"
    mixes = [instruction_mix(one.cubin) or {} for one in linked]
    changed = {
        op: mixes[1].get(op, 0) - mixes[0].get(op, 0) for op in sorted(mixes[0].keys() | mixes[1])
    }
    mix = ", ".join(f"{op} {count:+d}" for op, count in changed.items() if count)
    registers = f"{linked[0].registers} registers, now {linked[1].registers}"
    sizes = f"{sum(mixes[0].values())} instructions, now {sum(mixes[1].values())}"
    return f"{registers}; {sizes}: {mix or 'in another order, or other registers'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m ferrum_numba.perf.ptx_guard")
    commands = parser.add_subparsers(dest="command", required=True)
    writes = commands.add_parser("write")
    writes.add_argument("folder", type=Path)
    writes.add_argument("kernels", nargs="*", metavar="KERNEL", help="only these; all by default")
    writes.add_argument("--space", action="store_true", help="every config, not the default")
    compare = commands.add_parser("compare")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    compare.add_argument("--sass", action="store_true", help="compare the machine code too")
    args = parser.parse_args(arguments)
    if args.command == "write":
        count = write(args.folder, args.kernels, args.space)
        print(f"{count} programs in {args.folder}")
        return 0
    if args.sass and nvdisasm() is None:
        parser.error("--sass needs nvdisasm: pip install '.[sass]'")
    found = differences(args.before, args.after, args.sass)
    count = len(list(args.after.glob("*.ptx")))
    print(*found, f"{len(found)} of {count} programs differ", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
