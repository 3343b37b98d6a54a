"""The wheel in a fresh environment outside the checkout: to run only, and with the compiler.

Nothing is downloaded: what a requirement asks for is linked from the environment of the tests.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import distribution

import pytest
from layer_programs import COMPILER, ON_A_GPU, ON_THE_HOST, SUPPORT, packages
from packaging.requirements import Requirement
from test_packaging import PACKAGE_DIR, ROOT, build

DECODE, PREFILL = (4096, 4096, 1, {}), (4096, 4096, 256, {})
STEPS = "ferrum_numba/kernels/decode/steps.py"
KIND = "M=3,N=512,K=512,group_size=32,zero_points=gptq"
UNTUNED = ("plan", "marlin", "--problem", KIND, "--limit", "1", "--gpu", "h200")
COMMAND = "pip install 'ferrum-numba[compile]'"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the wheel of this tree."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in set(PACKAGE_DIR.values()):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    return build("build_wheel", tree, tree)


class Environment:
    """A virtual environment with the wheel, and what it requires."""

    def __init__(self, folder, wheel, extras):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.folder, self.python = folder, folder / "bin" / "python"
        install = ["-m", "pip", "--python", self.python, "install", "--no-deps", "--no-index"]
        subprocess.run([sys.executable, *install, "--quiet", wheel], check=True)
        (self.site,) = folder.glob("lib/python*/site-packages")
        (metadata,) = self.site.glob("ferrum_numba-*.dist-info/METADATA")
        lines = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-")]
        requirements = [Requirement(line.partition(":")[2]) for line in lines if "Dist" in line]
        self.linked = set()
        self.link(requirements, extras, {"ferrum-numba": set(extras)})

    def link(self, requirements, extras, done):
        """Link what is required, and what that requires, from the environment of the tests."""
        for wanted in requirements:
            if wanted.marker and not any(
                wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            ):
                continue
            if wanted.extras | {""} <= done.get(wanted.name, set()):
                continue
            done.setdefault(wanted.name, {""}).update(wanted.extras)
            if wanted.name == "ferrum-numba":
                continue
            found = distribution(wanted.name)
            for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
                if not (self.site / top).exists():
                    (self.site / top).symlink_to(found.locate_file(top))
            self.linked.add(wanted.name)
            inner = [Requirement(text) for text in found.requires or ()]
            self.link(inner, tuple(wanted.extras), done)

    def run(self, *command, **environment):
        """Run the environment's Python outside of the checkout, with an empty cache."""
        cache = self.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        hidden = ("PYTHONPATH", "FERRUM_NUMBA_PROGRAMS_DIR")
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        return subprocess.run(
            [self.python, *command], cwd=self.folder, capture_output=True, text=True, check=False,
            env=inherited | {"FERRUM_NUMBA_CACHE_DIR": str(cache)} | environment,
        )  # fmt: skip

    def cli(self, *argv):
        """Run the command line as it is installed."""
        return self.run(self.folder / "bin" / "ferrum-numba", *argv)

    def layer(self, program, *arguments):
        """Run a program of a layer."""
        return self.run("-c", program, SUPPORT, *map(json.dumps, arguments))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory, wheel):
    return Environment(tmp_path_factory.mktemp("runtime"), wheel, ())


@pytest.fixture(scope="module")
def compiler(tmp_path_factory, wheel):
    return Environment(tmp_path_factory.mktemp("compiler"), wheel, ("compile",))


def said(done):
    """Return what a program printed, after checking that it ended well."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_one_sentence(done, words):
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert words in sentence
    assert sentence.endswith(f"; {COMMAND}")


def test_what_runs_only_has_no_compiler(runtime):
    names = {name.replace("_", "-").lower() for name in runtime.linked}
    assert {"numpy", "cuda-core", "cuda-bindings", "safetensors", "platformdirs"} <= names
    assert not names & {"numba", "numba-cuda", "llvmlite", "matplotlib", "greenlet"}
    assert not any(name.startswith("nvidia") for name in names)
    assert runtime.run("-c", "import numba").stderr.endswith("No module named 'numba'\n")


def test_a_layer_on_the_host_runs(runtime):
    assert "ferrum_numba.linear.dense" in said(runtime.layer(ON_THE_HOST))["modules"]


@pytest.mark.parametrize(("layer", "kernel"), [(DECODE, "decode"), (PREFILL, "prefill")])
def test_a_layer_that_was_tuned_is_launched(runtime, layer, kernel):
    found = said(runtime.layer(ON_A_GPU, layer))
    assert found["launched"] == ["repack", kernel]
    assert not packages(found["modules"]) & COMPILER


def test_what_was_not_tuned_says_what_to_install(runtime):
    words = "the package numba is not installed, and no marlin of this config ships for sm_90a"
    assert_one_sentence(runtime.cli(*UNTUNED), words)


@pytest.mark.parametrize(
    ("argv", "package"),
    [
        (("check", "decode", "--on", "interpreter", "--limit", "1"), "check needs numba"),
        (("report", "decode", "--out", "report"), "report needs matplotlib"),
    ],
    ids=["check", "report"],
)
def test_a_command_that_needs_more_says_what_to_install(runtime, argv, package):
    assert_one_sentence(runtime.cli(*argv), f"ferrum-numba: {package}, which is not installed")


def test_doctor_says_it_too(runtime):
    done = runtime.cli("doctor")
    # what it is installed for, without a compiler, works
    assert done.returncode == 0
    assert f"kernels cannot be compiled here: the package numba is not installed; {COMMAND}" in (
        done.stdout
    )
    assert f"{len(list((ROOT / 'perf/programs/sm_90a').glob('*.cubin')))} for sm_90a" in done.stdout
    assert "interprets" not in done.stdout


def test_what_needs_no_compiler_does_without(runtime):
    done = runtime.cli("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "dequant_cublas" in done.stdout


@pytest.fixture
def edited():
    """Return a function that edits the source of an environment, long before it runs."""
    changed = []

    def edit(environment):
        path = environment.site / STEPS
        changed.append((path, path.read_text()))
        path.write_text(f"{changed[-1][1]}\nEDITED = True\n")
        os.utime(path, (time.time() - 1e6,) * 2)

    yield edit
    for path, text in changed:
        path.write_text(text)
        os.utime(path, (time.time() - 1e6,) * 2)


def test_what_ships_for_other_source_is_refused(runtime, edited):
    edited(runtime)
    done = runtime.layer(ON_A_GPU, DECODE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ferrum_numba.errors.ToolchainError: no kernel compiles here: the package numba is not "
        "installed, and the decode that ships for sm_90a is not used: it was made before "
        f"kernels/decode/steps.py was changed; {COMMAND}"
    )
    # what was made of other files is as good as before
    assert said(runtime.layer(ON_A_GPU, PREFILL))["launched"] == ["repack", "prefill"]


def test_with_the_compiler_it_is_compiled(compiler, edited):
    assert not packages(said(compiler.layer(ON_A_GPU, DECODE))["modules"]) & COMPILER
    edited(compiler)
    found = said(compiler.layer(ON_A_GPU, DECODE))
    assert found["launched"] == ["repack", "decode"]
    assert "numba" in found["modules"]
    assert len(list((compiler.folder / "cache").glob("*.cubin"))) == 1


def test_with_the_compiler_what_was_not_tuned_compiles(compiler):
    assert {"numba", "numba-cuda", "greenlet", "matplotlib"} <= compiler.linked
    done = compiler.cli(*UNTUNED)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 compiled candidates" in done.stdout
    done = compiler.cli("check", "add_bias", "--on", "interpreter", "--limit", "1")
    assert done.returncode == 0, done.stderr
