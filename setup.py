"""The packages are found, which pyproject.toml cannot say of folders that are imported as others.

Its `packages.find` names a package after its folder; `kernels/` is `ferrum_numba.kernels`.
"""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# package -> its folder
ROOTS: dict[str, str] = tomllib.loads((HERE / "pyproject.toml").read_text())["tool"]["setuptools"][
    "package-dir"
]
found = [
    package
    for root, folder in ROOTS.items()
    for package in (root, *(f"{root}.{below}" for below in find_packages(str(HERE / folder))))
]

setup(packages=found)
