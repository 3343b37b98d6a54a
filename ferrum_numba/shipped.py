"""Where the data lie that ship with the package, for whoever is to be given a path."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

ENVIRONMENT_VARIABLE = "FERRUM_NUMBA_PROGRAMS_DIR"


def results_folder() -> Path:
    """Return the folder of recorded results, <gpu>/<op>.json."""
    return _measured() / "results"


def decisions_path(gpu_key: str) -> Path:
    """Return the file of what to run on a GPU, whether there is one or not."""
    return _measured() / "decisions" / f"{gpu_key}.json"


def targets_path() -> Path:
    """Return the file of what measured kernels must reach."""
    return _measured() / "targets.toml"


def programs_folder(arch: str) -> Path:
    """Return the folder of compiled programs for an architecture, whether there is one or not.

    It lies in `FERRUM_NUMBA_PROGRAMS_DIR`, where that is set.
    """
    return _programs() / arch


def programs() -> dict[str, int]:
    """Return how many compiled programs there are, by architecture."""
    folders = sorted(path for path in _programs().glob("*") if path.is_dir())
    return {folder.name: len(list(folder.glob("*.cubin"))) for folder in folders}


def _programs() -> Path:
    given = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(given) if given else _measured() / "programs"


def _measured() -> Path:
    # found, not imported: its programs know the tuner, and whoever only runs must not
    spec = find_spec("ferrum_numba.perf")
    assert spec is not None, "it is a part of this package"
    assert spec.submodule_search_locations, "and a folder"
    return Path(spec.submodule_search_locations[0])
