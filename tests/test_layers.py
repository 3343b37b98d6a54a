"""The order of the rooms: who may import whom, read off the source, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ferrum_numba

ROOT = Path(__file__).resolve().parent.parent
# folder in the tree -> package it is imported as
FOLDERS = {
    "ferrum_numba": "ferrum_numba",
    "kernels": "ferrum_numba.kernels",
    "reference": "ferrum_numba.reference",
    "perf": "ferrum_numba.perf",
}
BASE = {
    "errors", "words", "door", "whole", "gpu", "contract", "division", "cases", "layout", "shown",
    "arguments",
}  # fmt: skip
# room -> rooms it may import besides itself; a room is what follows `ferrum_numba.`
LAYERS = {
    "errors": set(),
    "words": set(),
    "shown": set(),
    "door": set(),
    "whole": set(),
    "division": set(),
    "gpu": {"errors", "door"},
    "tolerance": {"errors"},
    "layout": set(),
    "contract": {"errors", "gpu", "tolerance", "layout"},
    "cases": {"contract", "gpu"},
    "arguments": {"contract"},
    "space": {"errors"},
    "reference": set(),
    "ptx": {"errors"},
    "interpreter": BASE | {"ptx"},
    "compile": BASE | {"ptx", "shipped"},
    "launch": BASE | {"compile"},
    "results": BASE,
    "measure": BASE | {"compile", "launch"},
    "check": BASE | {"tolerance", "compile", "launch", "interpreter"},
    "tracing": BASE | {"check", "interpreter", "results"},
    "tune": BASE | {"compile", "launch", "measure", "check", "results"},
    "compare": BASE | {"compile", "launch", "measure", "check", "results", "tune", "shipped"},
    "pytest_plugin": BASE | {"compile", "launch", "measure", "check", "results", "cli"},
    "roofline": BASE | {"results"},
    "report": BASE | {"results", "roofline"},
    # what a program is, with no kernel of its own
    "explain": BASE | {"ptx", "compile", "roofline"},
    # copies a kernel's files, whichever kernel it is
    "starter": BASE,
    "kernels": BASE | {"space", "ptx", "reference"},
    "gptq": BASE | {"reference"},
    "shipped": set(),
    # runs what was decided: it neither searches nor measures, and reads no results
    "linear": BASE | {"compile", "launch", "kernels", "reference", "gptq", "results", "shipped"},
    # writes down what layers run, on a machine that need not have the GPU
    "export": BASE | {"compile", "launch", "kernels", "gptq", "results", "linear"},
    # layers as modules of torch's, which is imported there, and by who traces a call of a layer
    "torch": BASE | {"launch", "linear", "kernels", "gptq"},
}
# they stand above everything; the command line alone must not know a kernel
TOP = {"perf", "notebook", "__main__", "__init__"}
HANDED_IN = {"kernels", "reference", "perf"}
# outside package -> rooms that may import it
OUTSIDE = {
    "numba": {"ptx", "compile", "interpreter", "kernels"},
    "llvmlite": {"ptx", "compile"},
    "greenlet": {"ptx", "interpreter"},
    "cuda": {"gpu", "compile", "launch", "measure"},
    "matplotlib": {"roofline", "report"},
    "rich": {"cli"},
    "safetensors": {"export", "gptq", "perf"},
    "msgspec": {"gptq", "results", "compile", "tune", "export"},
    "regex": {"gptq"},
    "filelock": {"tune"},
    "optuna": {"tune"},
    "distributed": {"tune"},
    "torch": {"torch", "linear", "perf"},
    "triton": {"perf"},
    "transformers": {"perf"},
}


def modules():
    """Return (file, dotted name) of every module of the package."""
    found = []
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found.append((file, ".".join((package, *parts))))
    return found


def room_of(module):
    """Return the room of a dotted name: `ferrum_numba.ptx.mma` is in `ptx`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(source, module):
    """Return the dotted names that a module's source imports, wherever they stand."""
    package = module.split(".")[:-1]
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            # `from ferrum_numba import ptx` imports a room, not a name
            names += [f"{origin}.{a.name}" if origin == "ferrum_numba" else origin
                      for a in node.names]  # fmt: skip
    return names


def broken_rules(source, module):
    """Return a sentence for every import that the layers forbid."""
    room, wrong = room_of(module), []
    for name in imports_of(source, module):
        head = name.split(".")[0]
        if head == "ferrum_numba":
            target = room_of(name)
            allowed = LAYERS.get(room)
            if room == "cli" and target in HANDED_IN:
                wrong.append(f"{module} imports {name}: kernels are handed to the command line")
            elif allowed is not None and target not in allowed | {room, "__init__", "__version__"}:
                wrong.append(f"{module} imports {name}: {room} may import {sorted(allowed)}")
        elif room == "reference" and head not in {"numpy", "ml_dtypes", *sys.stdlib_module_names}:
            wrong.append(f"{module} imports {name}: a reference knows NumPy and its types only")
        elif head in OUTSIDE and room not in OUTSIDE[head]:
            wrong.append(f"{module} imports {name}: only {sorted(OUTSIDE[head])} may")
    return wrong


@pytest.mark.parametrize(("file", "module"), modules(), ids=lambda value: str(value).split("/")[-1])
def test_imports_point_down(file, module):
    assert broken_rules(file.read_text(), module) == []


def test_every_room_has_a_place():
    rooms = {room_of(module) for _, module in modules()}
    assert rooms <= {*LAYERS, *TOP, "cli"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ferrum_numba.reference.gptq", "import numba"),
        ("ferrum_numba.reference.gptq", "from ferrum_numba.errors import ProblemError"),
        ("ferrum_numba.compile.compiler", "from ferrum_numba import launch"),
        ("ferrum_numba.ptx.mma", "from ..interpreter import run"),
        ("ferrum_numba.launch.device", "def f():\n    from numba import cuda"),
        ("ferrum_numba.report.html", "import cuda.core"),
        ("ferrum_numba.cli.tune", "from ferrum_numba.kernels import KERNELS"),
        ("ferrum_numba.linear.choice", "from ferrum_numba.tune import tune"),
        ("ferrum_numba.linear.choice", "from ferrum_numba.measure import Policy"),
        ("ferrum_numba.linear.choice", "from ferrum_numba import perf"),
        ("ferrum_numba.linear.choice", "from ferrum_numba.export import export"),
        ("ferrum_numba.export.make", "from ferrum_numba.tune import tune"),
        ("ferrum_numba.linear.runtime", "import filelock"),
        ("ferrum_numba.results.decisions", "from ferrum_numba.launch import lacking"),
    ],
)
def test_a_broken_rule_is_found(module, source):
    assert len(broken_rules(source, module)) == 1


# processor time, because other tests run beside this one
IMPORT_COST = """
import sys, time
began = time.process_time()
import ferrum_numba
print(time.process_time() - began)
import ferrum_numba.cli
heavy = {"numba", "cuda", "matplotlib", "rich", "llvmlite", "safetensors", "ml_dtypes", "torch",
         "msgspec", "regex"}
print(*sorted(heavy & set(sys.modules)))
"""


def test_importing_is_quick_and_touches_no_driver():
    runs = [
        subprocess.run(
            [sys.executable, "-c", IMPORT_COST], capture_output=True, text=True, check=True
        )
        for _ in range(3)
    ]
    seconds, heavy = zip(*(run.stdout.split("\n")[:2] for run in runs), strict=True)
    assert set(heavy) == {""}
    assert min(float(s) for s in seconds) < 0.3


ALL_THAT_RUNS = """
import sys
import ferrum_numba.cli, ferrum_numba.compile, ferrum_numba.kernels.ceilings
import ferrum_numba.linear.dense, ferrum_numba.linear.experts, ferrum_numba.linear.offset
import ferrum_numba.linear.batched, ferrum_numba.linear.moe, ferrum_numba.linear.steps
import ferrum_numba.perf.problems, ferrum_numba.tune
print(*sorted({"numba", "llvmlite", "greenlet", "ferrum_numba.ptx"} & set(sys.modules)))
"""


def test_kernels_layers_and_commands_are_imported_without_a_compiler():
    command = [sys.executable, "-c", ALL_THAT_RUNS]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"


def test_no_public_name_is_a_room_too():
    """Importing the room would put it in the name's place."""
    taken = set(ferrum_numba.__all__) & {file.stem for file in (ROOT / "ferrum_numba").iterdir()}
    assert not taken
