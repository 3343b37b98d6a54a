"""The ways in to numba: few, so that another front end could take its place behind one seam."""

import ast
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
import yaml
from test_layers import modules, room_of

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / ".ci" / "second_front_end"
WORKFLOW = ROOT / ".github" / "workflows" / "second-front-end.yml"
# all modules that know what numba is, and what each of them has of it
WAYS_IN = {
    "ferrum_numba.ptx.instruction": "an instruction is an intrinsic",
    "ferrum_numba.ptx.special": "a block's dynamic shared memory is a symbol of the module",
    "ferrum_numba.compile.compiler": "a function becomes PTX or LTO-IR",
    "ferrum_numba.compile.frontend": "passes and look-ups that kernels do not need are left out",
    "ferrum_numba.compile.fingerprint": "what a program refers to has a digest",
    "ferrum_numba.compile.refusals": "its words become a sentence with a line",
    "ferrum_numba.compile.toolchain": "which libNVVM it finds",
    "ferrum_numba.interpreter.numba_types": "which types it infers",
}
# what a device program has of it: the language, which another front end has too
LANGUAGE = {"numba": {"cuda"}, "numba.cuda.types": {"float32", "int32", "uint32", "uint64"}}
OF_CUDA = {"jit", "threadIdx", "blockIdx", "gridDim", "syncthreads", "local"}


def wrong_ways(source, module):
    """Return a sentence for each use of numba that a module must not make."""
    wrong = []
    kernel = room_of(module) == "kernels"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found = {(node.module, alias.name) for alias in node.names}
        elif kernel and isinstance(node, ast.Attribute) and ast.unparse(node.value) == "cuda":
            if node.attr not in OF_CUDA:
                wrong.append(f"{module} uses cuda.{node.attr}: device code has {sorted(OF_CUDA)}")
            continue
        else:
            continue
        for origin, name in found:
            if origin.partition(".")[0] not in ("numba", "llvmlite"):
                continue
            if kernel and name not in LANGUAGE.get(origin, ()):
                wrong.append(f"{module} imports {name or origin}: device code has {LANGUAGE}")
            elif not kernel and module not in WAYS_IN:
                wrong.append(f"{module} imports {origin}: only {sorted(WAYS_IN)} may")
    return wrong


def test_numba_has_few_ways_in():
    assert [w for file, module in modules() for w in wrong_ways(file.read_text(), module)] == []


def test_each_way_in_is_one():
    texts = {module: file.read_text() for file, module in modules()}
    unused = [m for m in WAYS_IN if not wrong_ways(texts[m], "ferrum_numba.cli.somewhere")]
    assert unused == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ferrum_numba.interpreter.warp", "from numba.cuda import types"),
        ("ferrum_numba.compile.cache", "import llvmlite.binding"),
        ("ferrum_numba.ptx.mma", "def f():\n    from numba import cuda"),
        ("ferrum_numba.kernels.foo.program", "from numba.core.extending import intrinsic"),
        ("ferrum_numba.kernels.foo.program", "import numba"),
        ("ferrum_numba.kernels.foo.program", "from numba.cuda.types import float16"),
        ("ferrum_numba.kernels.foo.program", "from numba import cuda\nx = cuda.shared.array(3)"),
    ],
)
def test_a_new_way_in_is_found(module, source):
    assert len(wrong_ways(source, module)) == 1


def test_the_design_names_every_way_in():
    design = (ROOT / "docs" / "design.md").read_text()
    names = {module.removeprefix("ferrum_numba.").replace(".", "/") for module in WAYS_IN}
    assert [name for name in names if f"`{name}.py`" not in design] == []


def test_the_probe_asks_what_the_documents_tell():
    """Every question has a line in docs/hardware.md#second, with what was found last."""
    listed = subprocess.run(
        [sys.executable, PROBE, "--list"], capture_output=True, text=True, check=True
    )
    questions = listed.stdout.splitlines()
    assert len(questions) == 8
    hardware = (ROOT / "docs" / "hardware.md").read_text()
    assert [q for q in questions if f"| {q} |" not in hardware] == []


def test_the_scheduled_job_runs_the_probe():
    found = yaml.safe_load(WORKFLOW.read_text())
    # YAML 1.1 reads the word `on` as true
    assert set(found[True]) == {"schedule", "workflow_dispatch"}
    minute, hour, day, month, weekday = found[True]["schedule"][0]["cron"].split()
    assert minute.isdigit()
    assert hour.isdigit()
    assert weekday.isdigit()
    assert (day, month) == ("*", "*")
    (job,) = found["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [f"{PROBE.relative_to(ROOT)}"]
    assert os.access(PROBE, os.X_OK)
    assert found["permissions"] == {"contents": "read"}


@pytest.fixture
def probe():
    loader = SourceFileLoader("second_front_end", str(PROBE))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        ("still there", 0, ""),
        ("gone", 1, "still there in the record, now gone. Look again at the second front end"),
        ("could not be asked", 1, "now could not be asked"),
    ],
)
def test_the_probe_fails_where_something_changed(probe, monkeypatch, capsys, state, status, said):
    last = list(probe.QUESTIONS)[-1]

    def ask(python, question):
        return probe.Answer(state if question == last else probe.THERE, "seen")

    monkeypatch.setattr(probe, "install", lambda folder, version: (folder, version))
    monkeypatch.setattr(probe, "ask", ask)
    monkeypatch.setattr(sys, "argv", ["second_front_end", "--version", "9.9"])
    assert probe.main() == status
    out, err = capsys.readouterr()
    assert out.startswith("numba-cuda-mlir 9.9\n")
    assert said in err
    assert bool(err) == bool(status)
