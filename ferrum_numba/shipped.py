"""Where the data lie that ship with the package, for whoever is to be given a path."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def results_folder() -> Path:
    """Return the folder of recorded results, <gpu>/<op>.json."""
    return _measured() / "results"


def decisions_path(gpu_key: str) -> Path:
    """Return the file of what to run on a GPU, whether there is one or not."""
    return _measured() / "decisions" / f"{gpu_key}.json"


def _measured() -> Path:
    # found, not imported: its programs know the tuner, and whoever only runs must not
    spec = find_spec("ferrum_numba.perf")
    assert spec is not None, "it is a part of this package"
    assert spec.submodule_search_locations, "and a folder"
    return Path(spec.submodule_search_locations[0])
