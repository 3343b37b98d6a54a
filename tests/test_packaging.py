"""The package as pip sees it: a wheel, an sdist and an editable install hold the whole tree."""

import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from datetime import date
from importlib import metadata
from pathlib import Path

import pytest

import ferrum_numba

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
PACKAGE_DIR = PROJECT["tool"]["setuptools"]["package-dir"]
# what installs beside the modules
DATA = (
    "ferrum_numba/py.typed", "ferrum_numba/report/*.css", "ferrum_numba/export/schema/*.json",
    "ferrum_numba/starter/*/*.txt",
    "perf/results/*/*.json", "perf/decisions/*.json", "perf/measurements/*.json",
    "perf/programs/*/*", "perf/*.toml",
)  # fmt: skip
# a folder of packages as anyone might add it
NEW = (
    "kernels/newest/__init__.py",
    "kernels/newest/parts/__init__.py",
    "kernels/newest/parts/a.py",
)
BUILD = (
    "import sys; from setuptools import build_meta; "
    "print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
)


# as if the folder were the only editable install of this environment
IMPORT = """
import site, sys
ours = [name for name in sys.modules if name.startswith("__editable__")]
sys.meta_path = [f for f in sys.meta_path if getattr(f, "__module__", "") not in ours]
for name in ours:
    del sys.modules[name]
sys.path.insert(0, sys.argv[1])
site.addsitedir(sys.argv[1])
import ferrum_numba.kernels.newest.parts.a as one, ferrum_numba.kernels.newest.later
import ferrum_numba.perf.problems, ferrum_numba.reference
print(one.__file__)
"""


def build(kind, tree, out):
    """Return what setuptools makes of a tree: `build_wheel`, `build_sdist`, `build_editable`."""
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def installed(path):
    """Return where a file of the tree is installed."""
    for package, folder in sorted(PACKAGE_DIR.items(), key=lambda item: -len(item[1])):
        if path.is_relative_to(folder):
            return Path(*package.split("."), path.relative_to(folder)).as_posix()
    raise AssertionError(f"{path} is in no package")


def wanted(tree):
    """Return what a wheel of a tree must hold: every module, and the data."""
    modules = [file for folder in PACKAGE_DIR.values() for file in (tree / folder).rglob("*.py")]
    data = [file for pattern in DATA for file in tree.glob(pattern)]
    assert all(any(tree.glob(pattern)) for pattern in DATA)
    return {installed(file.relative_to(tree)) for file in modules + data}


def contents(wheel):
    """Return what a wheel installs."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return a copy of the tree with one more design, of two nested packages."""
    copy = tmp_path_factory.mktemp("copy") / "tree"
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in set(PACKAGE_DIR.values()):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    for name in NEW:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text('"""New."""\n')
    return copy


@pytest.fixture(scope="module")
def wheel(tree):
    return build("build_wheel", tree, tree.parent)


def test_a_wheel_holds_the_tree_and_nothing_else(tree, wheel):
    assert contents(wheel) == wanted(tree)
    assert {installed(Path(name)) for name in NEW} <= contents(wheel)


def test_an_sdist_makes_the_same_wheel(tree, wheel, tmp_path):
    sdist = build("build_sdist", tree, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert contents(build("build_wheel", unpacked, tmp_path)) == contents(wheel)


def test_an_editable_install_finds_nested_packages(tree, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(build("build_editable", tree, tmp_path)) as archive:
        archive.extractall(site)
    # made after the installation
    later = tree / "kernels/newest/later"
    later.mkdir()
    (later / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(site)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    later.joinpath("__init__.py").unlink()
    later.rmdir()
    assert done.stdout.strip() == str(tree / NEW[-1]), done.stderr


PACKAGES = sorted(
    Path(installed(file.relative_to(ROOT))).parent.as_posix().replace("/", ".")
    for folder in PACKAGE_DIR.values()
    for file in (ROOT / folder).rglob("__init__.py")
)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_what_it_is(package):
    assert importlib.import_module(package).__doc__


def test_no_requirement_is_named_twice():
    named = PROJECT["project"]["dependencies"]
    assert len({name.split("[")[0].split("<")[0].split(">")[0] for name in named}) == len(named)


def test_the_compiler_of_either_cuda_is_one_extra():
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["cu13"] == ["ferrum-numba[compile]"]
    assert extras["cu12"] == [name.replace("[cu13]", "[cu12]") for name in extras["compile"]]
    assert extras["cu12"] != extras["compile"]


def test_the_version_is_one(wheel):
    version = ferrum_numba.__version__
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert wheel.name == f"ferrum_numba-{version}-py3-none-any.whl"
    # what is installed here; `make test` installs anew when the version changes
    assert metadata.version("ferrum-numba") == version


def test_the_version_has_a_dated_entry():
    entries = re.findall(r"^## \[(.+?)\](?: - (.*))?$", CHANGELOG, re.MULTILINE)
    released = [(version, day) for version, day in entries if version != "Unreleased"]
    assert released[0][0] == ferrum_numba.__version__
    # a date that there is, the newest first
    dates = [date.fromisoformat(day) for _, day in released]
    assert dates == sorted(dates, reverse=True)


@pytest.mark.parametrize("name", ferrum_numba.__all__)
def test_every_public_name_exists(name):
    assert getattr(ferrum_numba, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Kernal'"):
        _ = ferrum_numba.Kernal
