"""`ferrum-numba new`: what it writes is right at once, and what cannot be is refused whole."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ferrum_numba import cli, gpu, starter
from ferrum_numba.compile import function_fingerprint
from ferrum_numba.kernels import KERNELS, MOE, TOOLS

ROOT = Path(__file__).resolve().parent.parent.parent
OTHERS = (*TOOLS, *MOE)
DESIGNS = (*KERNELS, *OTHERS)
# a copy of each kind: of a folder, of a module of many, of one that gives several results
CHECKED = {"decode", "add_bias", "route_topk"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # what a command appends goes again
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])


@pytest.fixture
def run(capsys):
    """Run a command on the kernels of the house; return (status, stdout, stderr)."""

    def run(*argv):
        status = cli.main(KERNELS, {}, argv, tools=OTHERS)
        return status, *capsys.readouterr()

    return run


def test_a_new_kernel_is_checked_and_planned_as_it_is(run, tmp_path):
    status, out, _ = run("new", "fresh_op", "--json")
    found = json.loads(out)
    assert status == 0
    written = sorted((tmp_path / "fresh_op").iterdir())
    assert found["files"] == [f"fresh_op/{file.name}" for file in written]
    for line in found["next"][:2]:
        status, out, _ = run(*line.split()[1:], "--json", "--limit", "1")
        assert status == 0
        assert {row["status"] for row in json.loads(out) if row.get("registers", 1)} == {"ok"}
    (kernel,) = importlib.import_module("fresh_op.kernels").KERNELS
    assert len(kernel.configs(gpu.find("h200"))) == 9
    files = [file for file in (tmp_path / "fresh_op").iterdir() if file.is_file()]
    assert "test_fresh_op.py" in {file.name for file in files}
    text = "".join(file.name + file.read_text() for file in files)
    assert not {"my_op", "MyOp"} & set(re.findall(r"[a-zA-Z_]+", text))


# before and after the names that it is imported with, and those of the package
@pytest.mark.parametrize("name", ["a_op", "my_op", "rms_norm", "zzz"])
def test_what_is_written_is_linted_and_sorted_under_any_name(name, run):
    assert run("new", name)[0] == 0
    # as in a project of the user's, to which ferrum_numba is a package as any
    lint = ("check", "--ignore", "ANN,D103", "--config", "lint.isort.known-first-party=[]")
    for command in (lint, ("format", "--check")):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", name]
        done = subprocess.run(
            [*ruff, "--config", ROOT / "pyproject.toml", "--config", "src=['.']"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_the_tests_that_are_written_pass(run):
    assert run("new", "tested_op")[0] == 0
    assert run("new", "tested_bias", "--like", "add_bias")[0] == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    done = subprocess.run(
        [*command, "tested_op", "tested_bias"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "20 passed" in done.stdout


def test_its_tests_can_fail(run, tmp_path):
    assert run("new", "wrong_op")[0] == 0
    program = tmp_path / "wrong_op" / "program.py"
    program.write_text(program.read_text().replace("i < size", "i + uint32(1) < size"))
    status, out, _ = run("check", "wrong_op", "--kernels", "wrong_op.kernels")
    assert status == 1
    assert "0 of 5 checks passed" in out


@pytest.mark.parametrize("kernel", DESIGNS, ids=lambda kernel: kernel.name)
def test_a_design_is_copied_under_another_name(kernel, run, tmp_path):
    name = f"like_{kernel.name}"
    assert run("new", name, "--like", kernel.name)[0] == 0
    (mine,) = importlib.import_module(f"{name}.kernels").KERNELS
    assert (mine.name, type(mine).__name__) == (name, type(kernel).__name__)
    facts = gpu.find("h200")
    for own, theirs in zip(mine.configs(facts)[:2], kernel.configs(facts)[:2], strict=True):
        built, wanted = mine.build(own, facts.arch), kernel.build(theirs, facts.arch)
        # the same code of other files: it compiles to what the design compiles to
        assert built.function.__code__.co_filename.startswith(str(tmp_path / name))
        assert function_fingerprint(built.function) == function_fingerprint(wanted.function)
    # of the design's own folder nothing is imported any more
    home = f"import {type(kernel).__module__.rpartition('.')[0]}."
    text = "".join(file.read_text() for file in (tmp_path / name).glob("*.py"))
    assert home not in text
    assert home.replace("import", "from") not in text
    if kernel.name in CHECKED:
        own = (name, "--kernels", f"{name}.kernels", "--limit", "1")
        status, out, _ = run("check", *own, "--on", "interpreter", "--json")
        assert (status, [row["status"] for row in json.loads(out)]) == (0, ["ok"])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", DESIGNS, ids=lambda kernel: kernel.name)
def test_a_copied_design_checks_plans_and_passes_its_tests(kernel, run):
    name = f"whole_{kernel.name}"
    assert run("new", name, "--like", kernel.name)[0] == 0
    own = (name, "--kernels", f"{name}.kernels", "--limit", "1")
    assert run("check", *own, "--on", "interpreter")[0] == 0
    assert run("plan", *own, "--gpu", "h200")[0] == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["3x"], "such as my_op; got '3x'"),
        (["MyOp"], "such as my_op; got 'MyOp'"),
        (["my-op"], "such as my_op; got 'my-op'"),
        (["../mine"], "such as my_op; got '../mine'"),
        (["class"], "such as my_op; got 'class'"),
        (["x" * 65], "of at most 64 characters"),
        (["decode"], "a kernel that ships is named decode; give yours another name"),
        (["json"], "a module named json is installed, and would be imported in the place of"),
        (["there"], "there is here already and is left as it is; give another name"),
        (["module"], "module.py is here already and is left as it is; give another name"),
        (["mine", "--like", "decod"], "no kernel is named decod; did you mean decode?"),
        (["mine", "--like", "nosuch"], "no kernel is named nosuch; known: add_bias,"),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(argv, words, run, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "module.py").write_text("mine")
    status, out, err = run("new", *argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["module.py", "there"]


def test_twice_refuses_and_leaves_what_was_changed(run, tmp_path):
    assert run("new", "kept_op")[0] == 0
    file = tmp_path / "kept_op" / "reference.py"
    file.write_text("mine")
    status, _, err = run("new", "kept_op")
    assert (status, "kept_op is here already" in err) == (2, True)
    assert file.read_text() == "mine"


def test_nothing_half_written_stays(run, tmp_path, monkeypatch):
    def full(self, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    status, _, err = run("new", "full_op")
    assert (status, err) == (
        2, "ferrum-numba: full_op cannot be written: No space left on device\n"
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_folder_made_meanwhile_is_not_written_over(run, tmp_path, monkeypatch):
    def fresh(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
        return {"kernel.py": ""}

    monkeypatch.setattr(starter, "fresh", fresh)
    status, _, err = run("new", "raced_op")
    assert (status, "raced_op cannot be written: Directory not empty" in err) == (2, True)
    assert [path.name for path in (tmp_path / "raced_op").iterdir()] == ["mine"]
