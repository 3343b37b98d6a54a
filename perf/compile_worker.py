"""Builds one program at a time for `compile_time`, in a process of its own.

It may be given the package of another version (through PYTHONPATH), so it is run as a file and
knows only what every version since 0.1 has. It reads a program's number on a line of its standard
input and answers with a line of JSON; seconds are CPU seconds of all threads of this process.
"""

import contextlib
import importlib
import json
import resource
import sys
import time
from dataclasses import replace
from typing import Any

# names of what is timed inside of a build: module, function, phase
TIMED = (
    ("numba.cuda.cudadrv.nvvm", "compile_ir", "nvvm"),
    ("ferrum_numba.compile.link", "link", "link"),
    ("ferrum_numba.compile.link", "link_ltoir", "link"),
    ("ferrum_numba.compile.build", "instruction_mix", "sass"),
)
ROWS = (1, 16, 64, 256, 1024)
KINDS = ({"group_size": -1}, {"group_size": 64, "zero_points": "gptq"}, {"dtype": "bf16"})


def programs(gpu: Any) -> list[tuple[Any, Any, Any]]:
    """Return (kernel, problem, config) of every default, each config once."""
    from ferrum_numba.kernels import KERNELS, TOOLS
    from ferrum_numba.kernels.w4a16 import OP, W4A16Problem

    plain = [W4A16Problem(M, 4096, 4096) for M in ROWS]
    gemms = plain + [replace(problem, **kind) for kind in KINDS for problem in plain]
    found, seen = [], set()
    kernels: tuple[Any, ...] = (*KERNELS, *TOOLS)
    for kernel in kernels:
        for problem in gemms if kernel.op is OP else kernel.op.tests:
            if not kernel.runs_on(gpu) or kernel.refuses(problem):
                continue
            config = kernel.default(problem, gpu)
            if (kernel.name, config) not in seen:
                seen.add((kernel.name, config))
                found.append((kernel, problem, config))
    return found


def time_phases() -> dict[str, float]:
    """Let the functions of TIMED count their CPU seconds, and return the counts by phase."""
    spent = {phase: 0.0 for *_, phase in TIMED}
    for module, name, phase in TIMED:
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(module)
            # a package may show a function under its module's name
            owner = sys.modules[module]
            setattr(owner, name, _counted(getattr(owner, name), spent, phase))
    return spent


def _counted(function: Any, spent: dict[str, float], phase: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[phase] += time.process_time() - start

    return call


def main() -> None:
    """Say which programs there are, then build each that is asked for."""
    from ferrum_numba.compile import build
    from ferrum_numba.gpu import find

    gpu = find(sys.argv[1])
    import_s = time.process_time()
    found = programs(gpu)
    spent = time_phases()
    # the first build of a process loads the compiler: libraries, numba's tables of functions
    start = time.process_time()
    tool = next(kernel for kernel, _, _ in found if kernel.name == "add_bias")
    build(tool, tool.configs(gpu)[0], gpu.arch, use_cache=False)
    first_s = time.process_time() - start
    names = [f"{kernel.name} {problem}" for kernel, problem, _ in found]
    print(json.dumps({"names": names, "import_s": import_s, "first_s": first_s}), flush=True)
    for line in sys.stdin:
        kernel, _, config = found[int(line)]
        spent.update(dict.fromkeys(spent, 0.0))
        start = time.process_time()
        binary = build(kernel, config, gpu.arch, use_cache=False)
        cpu_s = time.process_time() - start
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer = {"cpu_s": cpu_s, "phases": dict(spent), "peak_mb": peak_mb}
        facts = {"registers": binary.registers, "spill_bytes": binary.spill_bytes}
        print(json.dumps({**answer, **facts}), flush=True)


if __name__ == "__main__":
    main()
