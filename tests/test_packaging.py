"""The package as pip sees it: every listed package is there, every folder is listed."""

import importlib
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import ferrum_numba

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_every_listed_package_can_be_imported(package):
    assert importlib.import_module(package).__doc__


def test_every_folder_with_code_is_listed():
    folders = {package: folder for package, folder in SETUPTOOLS["package-dir"].items()}
    found = {
        ".".join((package, *init.parent.relative_to(ROOT / folder).parts))
        for package, folder in folders.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(SETUPTOOLS["packages"])


def test_the_version_is_one():
    assert ferrum_numba.__version__ == PROJECT["project"]["version"]
    assert metadata.version("ferrum-numba") == ferrum_numba.__version__


@pytest.mark.parametrize("name", ferrum_numba.__all__)
def test_every_public_name_exists(name):
    assert getattr(ferrum_numba, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Kernal'"):
        _ = ferrum_numba.Kernal
