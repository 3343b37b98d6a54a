"""The report of the recorded results, which several files look at."""

import pytest

from ferrum_numba import report, shipped
from ferrum_numba.perf.peers import PEERS
from ferrum_numba.report import Sources, checked_results


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """Return a folder with the report of the recorded results."""
    folder = tmp_path_factory.mktemp("recorded")
    paths = sorted((shipped.results_folder() / "h200").glob("*.json"))
    files = {path.stem: checked_results(path) for path in paths}
    ceilings = [files.pop("ceilings")]
    report.write(folder, Sources(list(files.values()), ceilings, peers=PEERS))
    return folder
